"""What is open on a model: contexts that would mix without a word are refused."""

from __future__ import annotations

import threading
from typing import Any, NoReturn, TypeVar
from weakref import WeakKeyDictionary

from biasgym_tl.errors import ModelError
from biasgym_tl.heads import Head
from biasgym_tl.lens import HookedTransformer


class Change:
    """What a context has done to a model and will take back."""

    def __init__(self, what: str) -> None:
        """Say what the model is meanwhile, such as ``"steered"``."""
        self.what, self.thread = what, threading.get_ident()


class Steering(Change):
    """What :func:`biasgym_tl.steer` does to a model."""

    heads: tuple[Head, ...] = ()
    rests = False
    """Whether it does nothing for now."""


Kind = TypeVar("Kind", bound=Change)
_OPEN: WeakKeyDictionary[HookedTransformer, list[Change]] = WeakKeyDictionary()
_LOCK = threading.Lock()


def begin(model: HookedTransformer, change: Change) -> None:
    """Note that ``model`` is changed from now on.

    Until :func:`end` no other thread can change it, and it cannot be copied or pickled: a copy
    would keep the change, and part of it would act on the original.

    Raises:
        ModelError: another thread has changed the model.
    """
    with _LOCK:
        so_far = _OPEN.get(model, [])
        foreign = [other.what for other in so_far if other.thread != change.thread]
        if foreign:
            raise ModelError(
                f"model must be changed by one thread at a time, got one that is {foreign[-1]} by "
                "another thread. Load it a second time, or take turns."
            )
        _OPEN[model] = [*so_far, change]
        model.__dict__["__getstate__"] = _refuse_to_copy


def end(model: HookedTransformer, change: Change) -> None:
    """Note that a change has been taken back."""
    with _LOCK:
        left = [other for other in _OPEN[model] if other is not change]
        if left:
            _OPEN[model] = left
        else:
            del _OPEN[model]
            del model.__dict__["__getstate__"]


def changes(model: HookedTransformer, kind: type[Kind]) -> list[Kind]:
    """The changes of one kind that are open on a model, the oldest first."""
    return [change for change in _OPEN.get(model, ()) if isinstance(change, kind)]


def steered_heads(model: HookedTransformer) -> tuple[Head, ...]:
    """Heads that open contexts of :func:`biasgym_tl.steer` change, in order; none where nothing is
    steered."""
    acting = (steering for steering in changes(model, Steering) if not steering.rests)
    return tuple(sorted({head for steering in acting for head in steering.heads}))


def _refuse_to_copy(*_: Any) -> NoReturn:
    raise ModelError(
        "model must not be copied or pickled while it is steered or has a BiasToken attached: the "
        "copy would stay so. Leave the context first."
    )
