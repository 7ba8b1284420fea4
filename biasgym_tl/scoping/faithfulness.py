"""How well the highest heads of a map carry the difference alone (MIB, arXiv 2504.13151)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from biasgym_tl.errors import AttributionError
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.lens import HookedTransformer, at_each_layer, logit_difference
from biasgym_tl.prompts import encode_sentence
from biasgym_tl.scoping.checks import check_precision
from biasgym_tl.scoping.patching import BATCH_SIZE, Counterpart, Sequences, traced
from biasgym_tl.scoping.scores import HeadScores, marked, top_heads
from biasgym_tl.slot import fill

SHARES = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of all heads that are kept."""
LEAST = 0.5
"""Logits by which both runs must differ: what is divided by less says nothing."""


class Faithfulness(NamedTuple):
    """The difference that some heads alone leave: 0 is that of the neutral run, 1 of the biased."""

    ks: tuple[int, ...]
    """Heads that are kept."""
    signed: tuple[float, ...]
    """The share with the ``k`` highest heads."""
    sized: tuple[float, ...]
    """With the ``k`` heads of the largest size."""
    cpr: float
    """Area under ``signed`` over the share of heads: higher is better."""
    cmd: float
    """Area between ``sized`` and 1: lower is better."""


@torch.no_grad()
def faithfulness(
    model: HookedTransformer,
    scores: HeadScores,
    token: BiasToken | None,
    *,
    shares: Sequence[float] = SHARES,
    batch_size: int = BATCH_SIZE,
) -> Faithfulness:
    """Keep the highest heads of a map in the biased run, and give all others the neutral run's.

    Args:
        model: The model, unsteered and without the token.
        scores: The map; their pairs are run again, beside the first target of each.
        token: The BiasToken that they were made with.
        shares: Shares of all heads that are kept.
        batch_size: Pairs at once.

    Raises:
        AttributionError: the scores are not of this token or have no pairs, or both runs differ by
            less than :data:`LEAST`.
    """
    check_precision(model)
    if token is None or token.label != scores.token or not scores.targets:
        raise AttributionError(
            f"token must be the one that the scores are of, {scores.token!r}, got "
            f"{token.label if token else None!r}. A map needs a biased and a neutral run."
        )
    if scores.model != model.cfg.model_name:
        raise AttributionError(
            f"scores must be of the model {model.cfg.model_name!r}, got {scores.model!r}."
        )
    scores.check_text(model)
    n = scores.values.numel()
    ks = sorted({0, n, *(round(share * n) for share in shares)})
    neutral = [
        encode_sentence(model, fill(prompt, targets[0]))
        for prompt, targets in zip(scores.prompts, scores.targets, strict=True)
    ]
    orders = [top_heads(values, n) for values in (scores.values, scores.values.abs())]
    kept = [[marked(order[:k], *scores.values.shape) for k in ks] for order in orders]
    assert scores.biased_ids is not None and scores.neutral_ids is not None
    ids = scores.biased_ids.to(model.cfg.device), scores.neutral_ids.to(model.cfg.device)
    with token.attached(model):
        biased = [encode_sentence(model, fill(prompt, token.text)) for prompt in scores.prompts]
        left = kept_differences(model, biased, neutral, *ids, [*kept[0], *kept[1]], batch_size)
    means = left.mean(1)
    none, every = means[0].item(), means[len(ks) - 1].item()
    if abs(every - none) < LEAST:
        raise AttributionError(
            f"both runs must differ by {LEAST} logits at least, got {every - none:.2f}. Take "
            "prompts that the token changes more."
        )
    signed, sized = ((means - none) / (every - none)).view(2, len(ks)).tolist()
    at = torch.tensor(ks, dtype=torch.float64) / n
    cpr, cmd = (
        torch.trapezoid(y, at).item()
        for y in (torch.tensor(signed), (1 - torch.tensor(sized)).abs())
    )
    return Faithfulness(tuple(ks), tuple(signed), tuple(sized), cpr, cmd)


@torch.no_grad()
def kept_differences(
    model: HookedTransformer,
    sequences: Sequences,
    others: Sequences,
    biased_ids: Int[Tensor, "pair ..."],
    neutral_ids: Int[Tensor, "pair ..."],
    kept: Sequence[Bool[Tensor, "n_layers n_heads"]],
    batch_size: int = BATCH_SIZE,
) -> Float[Tensor, "set pair"]:
    """Logit difference of each sequence where only the ``kept`` heads have their own ``z`` and all
    others that of the other run, at every position.

    With none kept that is the difference of the other run, exactly where the answer position is not
    in the slot and positions are not added to the residual stream: nothing but heads moves anything
    to the answer.
    """
    found = torch.zeros(len(kept), len(sequences), dtype=torch.float64)
    for run in traced(model, sequences, biased_ids, neutral_ids, batch_size):
        batch, other = run.batch, Counterpart.of(run, sequences, others)
        for i, heads in enumerate(kept):

            def keep(
                z: Tensor, hook: Any, heads: Tensor = heads, z_ref: list[Tensor] = other.z
            ) -> Tensor:
                own = heads[hook.layer()].to(z.device)[:, None]
                return torch.where(own, z, z_ref[hook.layer()])

            with at_each_layer(model, "attn.hook_z", keep):
                resid = model(**batch.arguments)[torch.arange(len(batch.last)), batch.last]
            difference = logit_difference(model, resid, run.biased_ids, run.neutral_ids)
            found[i, batch.indices] = difference.double().cpu()
    return found
