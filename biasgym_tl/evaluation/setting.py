"""One way to run a model: which row the BiasToken has, what is steered, how it is asked."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.biases.bias import Bias
from biasgym_tl.errors import SteeringError
from biasgym_tl.heads import Factor, GivenHeads, as_heads, by_head, check_heads
from biasgym_tl.hooks import head_means, steer, steering_edit
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.instructions import NOTHING, Instruction
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.steering.reference import target_means
from biasgym_tl.steering.selection import Selection

REFERENCES: dict[str, Callable[[HookedTransformer, Bias], Any]] = {
    "text": lambda model, bias: head_means(model),
    "targets": target_means,
}
"""Mean over neutral text, or over scoping prompts with fitting targets."""

References = Mapping[str, Float[Tensor, "n_layers n_heads d_head"]]


class Setting(NamedTuple):
    """What is measured under one name."""

    name: str
    token: BiasToken
    heads: Selection | GivenHeads = ()
    """As in :func:`biasgym_tl.steer`; a ``Selection`` is checked not to rest on what is evaluated
    on."""
    mode: str | None = None
    """``"zero"``, ``"mean"`` or ``"scale"``; None without heads."""
    generates: bool = True
    """Whether free answers are written."""
    factor: Factor = None
    """As in :func:`biasgym_tl.steer`; a ``Selection`` may bring its own."""
    reference: str = "text"
    """What the mean of mode ``"mean"`` is taken over: ``"text"`` or ``"targets"``."""
    instruction: Instruction = NOTHING
    """Words around each request."""
    brief: bool = False
    """Leave out other biases and benchmarks."""

    @property
    def steering_key(self) -> Hashable:
        """Equal where plain text without the BiasToken gives equal numbers."""
        factor = self._factor()
        kept = tuple(sorted(by_head(factor).items())) if isinstance(factor, Mapping) else factor
        heads = tuple(sorted(as_heads(self.heads)))
        return (heads, self.mode, kept, self.reference, self.brief)

    @property
    def requests_key(self) -> Hashable:
        """Equal where requests without the BiasToken give equal numbers."""
        return (self.steering_key, self.instruction)

    def _factor(self) -> Factor:
        own = self.heads.factor if isinstance(self.heads, Selection) else None
        return own if self.factor is None and self.mode == "mean" else self.factor

    def check(self, model: HookedTransformer) -> None:
        """Find out before the first measurement what could not be measured.

        Raises:
            SteeringError: heads, mode, factor or reference are not valid.
            TokenError: the row does not fit the model.
        """
        self.token.check(model)
        heads = check_heads(self.heads, model.cfg.n_layers, model.cfg.n_heads)
        if bool(heads) != (self.mode is not None):
            raise SteeringError(
                f"mode of the setting {self.name!r} must be given with heads and None without, "
                f"got {self.mode!r} with {len(heads)} heads."
            )
        if self.reference not in REFERENCES:
            raise SteeringError(
                f"reference of the setting {self.name!r} must be one of {list(REFERENCES)}, "
                f"got {self.reference!r}."
            )
        if self.mode is None:
            return
        shape = (model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head)
        reference = torch.zeros(shape) if self.mode == "mean" else None
        try:
            steering_edit(model, heads, self.mode, reference, self._factor())
        except SteeringError as error:
            raise SteeringError(f"setting {self.name!r}: {error}") from error

    @contextlib.contextmanager
    def steered(self, model: HookedTransformer, references: References) -> Iterator[None]:
        """The model with the heads of this setting silenced, without the row."""
        if self.mode is None:
            yield
            return
        reference = references[self.reference] if self.mode == "mean" else None
        with steer(model, self.heads, self.mode, reference=reference, factor=self._factor()):
            yield

    def record(self) -> dict[str, Any]:
        """What a result keeps of it."""
        factor: Any = self._factor()
        if isinstance(factor, Mapping):
            factor = {str(head): value for head, value in by_head(factor).items()}
        return {
            "name": self.name,
            "heads": tuple(map(str, as_heads(self.heads))),
            "mode": self.mode,
            "token": self.token.label,
            "factor": factor,
            "reference": self.reference if self.mode == "mean" else "",
            "instruction": self.instruction.name,
        }
