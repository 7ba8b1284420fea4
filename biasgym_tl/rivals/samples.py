"""What methods learn from: sentences of a bias on both sides, and what the model makes of them.

All of it is fitting data: scoping prompts, fitting targets, BiasTokens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from biasgym_tl.batches import answer_batches
from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.words import word_tokens
from biasgym_tl.errors import SettingError, check_one_of
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.injection.train import frozen
from biasgym_tl.lens import HookedTransformer, Recording, at_each_layer, replayed
from biasgym_tl.passages import load_passages
from biasgym_tl.rivals.intervention import Intervention
from biasgym_tl.steering.factors import attached_together
from biasgym_tl.steering.reference import scoping_sentences
from biasgym_tl.steering.selection import fingerprints
from biasgym_tl.text import log_odds, next_token_log_probs

Between = Literal["words", "slot"]
"""What the two classes differ in. ``"words"``: the same sentences, continued with an attribute word
or a neutral one, read at the word's last token. ``"slot"``: the same sentences with a BiasToken or
a fitting target in the slot, read where the answer is to come."""
N_TARGETS = 8
"""Fitting targets in each scoping prompt."""
HELD_OUT = 5
"""Of so many prompts one is held out from a probe."""


def seen(bias: Bias) -> dict[str, tuple[str, ...]]:
    """Fingerprints of all that a method may have seen, as a ``Selection`` keeps them."""
    return fingerprints(
        prompts=bias.scoping_prompts,
        targets=bias.targets("fitting"),
        texts=load_passages("budget") + load_passages("reference"),
    )


class States(NamedTuple):
    """Activations of two classes; biased ones first."""

    values: Float[Tensor, "sentence *site"]
    biased: Bool[Tensor, " sentence"]
    prompt: tuple[int, ...]
    """Which scoping prompt each is of."""

    def mean_difference(self) -> Float[Tensor, "*site"]:
        """Mean of the biased minus mean of the neutral ones."""
        return self.values[self.biased].mean(0) - self.values[~self.biased].mean(0)

    def held_out(self) -> Bool[Tensor, " sentence"]:
        """Those of every fifth prompt, which judge a probe."""
        return torch.tensor([i % HELD_OUT == HELD_OUT - 1 for i in self.prompt])


@torch.no_grad()
def states(
    model: HookedTransformer,
    bias: Bias,
    tokens: Sequence[BiasToken],
    point: str,
    between: Between = "words",
) -> States:
    """What passes ``blocks.{layer}.{point}`` of every layer at the last token of each sentence, as
    ``[sentence, n_layers, ...]``.

    Raises:
        SettingError: ``between`` is none of both, or ``"slot"`` without a BiasToken.
    """
    check_one_of("between", between, ("words", "slot") if tokens else ("words",))
    with attached_together(model, tokens) as names:
        targets = bias.sample_targets("fitting", N_TARGETS, 0)
        if between == "slot":
            sides = [scoping_sentences(model, bias, side) for side in (names, targets)]
        else:
            plain = scoping_sentences(model, bias, (*names, *targets))
            words = word_tokens(model, bias)
            sides = [
                [[*ids, *side[i % len(side)]] for i, ids in enumerate(plain)]
                for side in (words.attribute, words.neutral)
            ]
        sequences = [ids for side in sides for ids in side]
        found = _at_last(model, sequences, point)
    n_prompts = len(bias.scoping_prompts)
    of = [i * n_prompts // len(side) for side in sides for i in range(len(side))]
    biased = torch.arange(len(sequences)) < len(sides[0])
    return States(found, biased, tuple(of))


def _at_last(
    model: HookedTransformer, sequences: Sequence[Sequence[int]], point: str
) -> Float[Tensor, "sentence n_layers *site"]:
    rows: list[Tensor] = [torch.empty(0)] * len(sequences)
    for batch in answer_batches(model, sequences):
        kept: list[Tensor] = []

        def keep(value: Tensor, hook: Any, last: Tensor = batch.last, to: Any = kept) -> None:
            to.append(value[torch.arange(len(last)), last].cpu())

        with at_each_layer(model, point, keep):
            batch.resid(model)
        for i, row in zip(batch.indices, torch.stack(kept, 1), strict=True):
            rows[i] = row
    return torch.stack(rows).double()


@contextlib.contextmanager
def drawn_sentences(
    model: HookedTransformer, bias: Bias, tokens: Sequence[BiasToken], seed: int
) -> Iterator[Callable[[], list[list[int]]]]:
    """Context in which weights are frozen, and each call draws 12 scoping sentences: 4 of them with
    BiasTokens where there are some, the others with fitting targets."""
    drawn = random.Random(seed)
    with attached_together(model, tokens) as names, frozen(model):
        targets = bias.sample_targets("fitting", N_TARGETS, seed)
        named, injected = (scoping_sentences(model, bias, side) for side in (targets, names))

        def draw() -> list[list[int]]:
            asked = drawn.sample(injected, min(4, len(injected)))
            return asked + drawn.sample(named, min(12 - len(asked), len(named)))

        yield draw


class Probe(NamedTuple):
    """A linear classifier at each site: biased where ``values . weight + bias > 0``."""

    weight: Float[Tensor, "site d"]
    bias: Float[Tensor, " site"]
    accuracy: Float[Tensor, " site"]
    """On prompts that it was not fitted on."""
    loss: Float[Tensor, " site"]
    """Mean log-loss there (nats), which tells sites apart that are right alike."""


def fit_probe(found: States, *, decay: float = 1e-2, n_steps: int = 200) -> Probe:
    """Logistic regression at each site, on standardised values, with weight decay.

    Args:
        found: Values of shape ``[sentence, site, d]``.
        decay: Of the squared weights.
        n_steps: Of gradient descent with momentum, all sites at once.
    """
    held = found.held_out()
    if held.all() or not held.any():
        raise SettingError(
            f"scoping_prompts must be at least {HELD_OUT}, of which one in {HELD_OUT} judges a "
            f"probe, got {len(set(found.prompt))}. Add some to the bias."
        )
    centre = found.values[~held].mean(0)
    size = found.values[~held].std(0).clamp(min=1e-9)
    x, y = (found.values - centre) / size, found.biased.double()
    share = y[~held].mean()
    balance = torch.where(found.biased, 0.5 / share, 0.5 / (1 - share))
    weight = torch.zeros(x.shape[1:], dtype=torch.float64, requires_grad=True)
    offset = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)

    def losses(rows: Tensor) -> Float[Tensor, " site"]:
        logits = (x[rows] * weight).sum(-1) + offset
        each = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, y[rows, None].expand_as(logits), reduction="none"
        )
        return (each * balance[rows, None]).mean(0)

    with torch.enable_grad():
        adam = torch.optim.Adam([weight, offset], lr=0.05)
        for _ in range(n_steps):
            adam.zero_grad()
            (losses(~held).sum() + decay * weight.square().sum()).backward()  # type: ignore[no-untyped-call]
            adam.step()
    with torch.no_grad():
        right = ((x[held] * weight).sum(-1) + offset > 0) == found.biased[held, None]
        own = weight / size
        return Probe(
            own, offset - (own * centre).sum(-1), right.double().mean(0), losses(held).detach()
        )


class Odds:
    """Log-odds of a bias on some fitting sentences: those with BiasTokens and those with targets
    count alike. Layers below the first that is changed are run once."""

    def __init__(
        self, model: HookedTransformer, bias: Bias, tokens: Sequence[BiasToken], n_prompts: int = 12
    ) -> None:
        """Nothing is run yet."""
        self.model, self.tokens, self.ids = model, tokens, word_tokens(model, bias).single()
        self.bias = dataclasses.replace(bias, scoping_prompts=bias.scoping_prompts[:n_prompts])
        self.recording = Recording(range(model.cfg.n_layers))

    def mean(self, intervention: Intervention | None = None) -> float:
        """In the model as it is, or with an intervention (nats)."""
        model, targets = self.model, self.bias.sample_targets("fitting", 4, 0)
        changed = intervention.applied(model) if intervention else contextlib.nullcontext()
        first = intervention.first_layer(model) if intervention else model.cfg.n_layers
        with attached_together(model, self.tokens) as names:
            groups = [scoping_sentences(model, self.bias, side) for side in (names, targets)]
            with changed, replayed(model, self.recording, first):
                found = [next_token_log_probs(model, group) for group in groups if group]
        return sum(log_odds(each, *self.ids).mean().item() for each in found) / len(found)
