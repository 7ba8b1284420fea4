"""The methods by name. One more is one file with a function, and one line here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, get_type_hints

from biasgym_tl.biases.given import GivenBias, as_bias
from biasgym_tl.errors import SettingError, StoreError, check_one_of
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.lens import HookedTransformer, check_model
from biasgym_tl.rivals.caa import caa
from biasgym_tl.rivals.fairsteer import fairsteer
from biasgym_tl.rivals.final_state import inlp, sentence_debias
from biasgym_tl.rivals.gating import gating
from biasgym_tl.rivals.head_sets import factors, top
from biasgym_tl.rivals.intervention import Intervention
from biasgym_tl.rivals.iti import iti
from biasgym_tl.rivals.leace import leace
from biasgym_tl.rivals.logit_shift import logit_shift
from biasgym_tl.rivals.lora import dpo, sft
from biasgym_tl.rivals.projection import projection
from biasgym_tl.rivals.random_direction import random_direction
from biasgym_tl.rivals.ugs import ugs
from biasgym_tl.rivals.unlikelihood import unlikelihood
from biasgym_tl.store import read_as


class Method(NamedTuple):
    """How an intervention is made."""

    prepare: Callable[..., Intervention]
    """Of a model, a bias and BiasTokens, with keyword-only settings; sees scoping prompts, fitting
    targets, the panel's fitting half and budget data alone."""
    passes: float
    """What it takes on one bias in passes over the scoping prompts with ten targets, about."""


METHODS = {
    "logit_shift": Method(logit_shift, 0),
    "factors": Method(factors, 15),
    "top": Method(top, 4),
    "caa": Method(caa, 10),
    "iti": Method(iti, 2),
    "projection": Method(projection, 10),
    "leace": Method(leace, 10),
    "random_direction": Method(random_direction, 10),
    "fairsteer": Method(fairsteer, 2),
    "gating": Method(gating, 10),
    "unlikelihood": Method(unlikelihood, 15),
    "sft": Method(sft, 12),
    "dpo": Method(dpo, 13),
    "inlp": Method(inlp, 3),
    "sentence_debias": Method(sentence_debias, 2),
    "ugs": Method(ugs, 25),
}


def prepare(
    model: HookedTransformer,
    bias: GivenBias,
    tokens: Sequence[BiasToken] = (),
    *,
    method: str,
    settings: Mapping[str, Any] | None = None,
) -> Intervention:
    """Make an intervention; :func:`biasgym_tl.rivals.damage.to_kl` sets its dial.

    Args:
        model: The model, unchanged and without a token.
        bias: What is to be weakened.
        tokens: BiasTokens of it; none: a stereotype that the model holds by itself.
        method: One of :data:`METHODS`.
        settings: Of the method.

    Raises:
        SettingError: there is no such method or setting.
        BiasFileError: the bias lacks what the method uses.
    """
    check_settings(method, settings or {})
    check_model(model)
    bias = as_bias(bias)
    bias.needs("scoping")
    return METHODS[method].prepare(model, bias, tokens, **(settings or {}))


def check_settings(method: str, settings: Mapping[str, Any]) -> None:
    """Refuse a method or setting that there is not, or a setting of another type.

    Raises:
        SettingError: the message names those that there are, or the type.
    """
    check_one_of("method", method, METHODS)
    known = inspect.signature(METHODS[method].prepare).parameters.values()
    names = [each.name for each in known if each.kind is inspect.Parameter.KEYWORD_ONLY]
    if unknown := sorted(set(settings) - set(names)):
        raise SettingError(f"settings of {method!r} must be among {names}, got {unknown}.")
    declared = get_type_hints(METHODS[method].prepare)
    for name, value in settings.items():
        try:
            if name in declared:
                read_as(METHODS[method].prepare, name, value)
        except (StoreError, TypeError) as error:
            raise SettingError(f"settings of {method!r} must be as declared: {error}.") from error
