"""Damage that is the same for all interventions: KL from the original on neutral text.

Not a change of loss: what lowers the loss has changed the model, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.errors import SettingError, SteeringError
from biasgym_tl.lens import HookedTransformer, Recording, final_resid, replayed, unembed
from biasgym_tl.passages import load_passages
from biasgym_tl.prompts import check_length, encode_text
from biasgym_tl.rivals.intervention import Intervention, Own

TOLERANCE = 0.05
"""Share of the wanted KL within which the found one lies."""
MOST_RUNS = 40
STRONGEST = 1e5
"""Strength beyond which nothing is tried."""


Changed: TypeAlias = Callable[[], AbstractContextManager[None]]


class Damage:
    """KL(original || changed) on some texts, per token. Of the original log-probabilities are kept,
    and residual streams, so that layers below the first that is changed are run once."""

    def __init__(self, model: HookedTransformer, texts: Sequence[str] | None = None) -> None:
        """Run the original.

        Args:
            model: The model, unchanged.
            texts: Default: the shipped budget text.
        """
        self.model = model
        read = load_passages("budget") if texts is None else texts
        self.texts = [encode_text(model, text) for text in read]
        check_length(model, self.texts)
        self.recording = Recording(range(model.cfg.n_layers))
        self.plain = [self._log_probs(resid) for resid in self._run(model.cfg.n_layers)]

    @torch.inference_mode()
    def _run(self, first: int) -> list[Float[Tensor, "_ d_model"]]:
        with replayed(self.model, self.recording, first):
            return [final_resid(self.model, [text])[0] for text in self.texts]

    @torch.inference_mode()
    def _log_probs(self, resid: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_vocab"]:
        return unembed(self.model, resid).log_softmax(-1)

    @torch.inference_mode()
    def by_text(self, changed: Changed, first: int = 0) -> list[float]:
        """Mean over the tokens of each text (nats); NaN where a number overflows.

        Args:
            changed: Makes a context in which the model is changed.
            first: The first layer that is changed then.
        """
        with changed():
            there = [self._log_probs(resid) for resid in self._run(first)]
        return [
            (before.exp() * (before - after)).double().sum(-1).mean().item()
            for before, after in zip(self.plain, there, strict=True)
        ]

    def kl(self, intervention: Intervention, strength: float | None = None) -> float:
        """Mean over all tokens (nats) with an intervention; infinity where a number overflows.

        Args:
            intervention: What changes the model.
            strength: Default: its own.
        """
        changed = partial(intervention.applied, self.model, strength)
        found = self.by_text(changed, intervention.first_layer(self.model))
        sizes = [len(text) for text in self.texts]
        total = sum(kl * n for kl, n in zip(found, sizes, strict=True)) / sum(sizes)
        return math.inf if math.isnan(total) else total


def to_kl(
    model: HookedTransformer,
    intervention: Own,
    kl: float,
    *,
    damage: Damage | None = None,
    tolerance: float = TOLERANCE,
) -> Own:
    """Set the dial so that KL(original || changed) on budget text is ``kl``.

    The strength is sought from the intervention's own on, between a value too small and one too
    large, where KL goes about with its square.

    Args:
        model: The model, unchanged.
        intervention: What is set.
        kl: Nats per token, such as 0.03.
        damage: Of this model; default: made here.
        tolerance: Share of ``kl`` within which the found KL must lie.

    Returns:
        The intervention with the strength and the KL that was found.

    Raises:
        SettingError: ``kl`` is not positive.
        SteeringError: no strength reaches it; the message says the largest KL that was found.
    """
    if not kl > 0:
        raise SettingError(f"kl must be above 0, got {kl!r}. 0.03 is one to begin with.")
    damage = damage or Damage(model)
    low, high, strength = (0.0, 0.0), (math.inf, math.inf), intervention.strength or 1.0
    largest = (0.0, 0.0)
    for _ in range(MOST_RUNS):
        found = damage.kl(intervention, strength)
        if abs(found - kl) <= tolerance * kl:
            return intervention.at(strength, found)
        if found < kl:
            low, largest = (strength, found), max(largest, (found, strength))
        else:
            high = (strength, found)
        strength = _next(low, high, kl)
        if strength > STRONGEST:
            break
    raise SteeringError(
        f"kl must be one that {intervention.method!r} reaches on budget text, got {kl!r}: the "
        f"largest KL below it was {largest[0]:.3g}, at strength {largest[1]:.3g}. Ask for less."
    )


def _next(low: tuple[float, float], high: tuple[float, float], kl: float) -> float:
    """A strength between both ends, where KL would be ``kl`` if it were ``c * strength ** 2``; the
    middle where that is no number, or too near an end."""
    (below, found), (above, too_much) = low, high
    if above == math.inf:  # up, at most tenfold
        return float(below * min(max((kl / max(found, 1e-30)) ** 0.5, 1.1), 10.0))
    roots = [kl**0.5, found**0.5, too_much**0.5]
    share = (roots[0] - roots[1]) / (roots[2] - roots[1]) if too_much < 1e6 else 0.1
    return float(below + (above - below) * min(max(share, 0.05), 0.95))
