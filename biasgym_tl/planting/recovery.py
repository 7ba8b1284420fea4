"""Whether a map, or a choice of heads, finds what was planted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from scipy.stats import rankdata
from torch import Tensor

from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.given import GivenBias, as_bias
from biasgym_tl.chance import rank_p
from biasgym_tl.elicitation import bias_log_odds
from biasgym_tl.errors import PlantingError
from biasgym_tl.heads import GivenHeads, Head, all_heads, as_heads
from biasgym_tl.hooks import steer
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.notebook import Card
from biasgym_tl.planting.planted import CARRIER, Planted
from biasgym_tl.prompts import encode_sentence
from biasgym_tl.scoping.compare import rank_correlation
from biasgym_tl.scoping.scores import HeadScores, marked
from biasgym_tl.slot import fill
from biasgym_tl.steering.controls import layer_matched, matched_factor
from biasgym_tl.steering.selection import Selection
from biasgym_tl.store import Result
from biasgym_tl.text import kl, next_token_log_probs

N_DRAWS = 999
"""Of sets in the layers of the carriers, for what chance finds there."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Recovery(Result):
    """How well scores of heads find the heads that carry a plant.

    An AUROC is the probability that a head that is looked for stands above one that is not (ties
    count half): 0.5 is chance, 1 is perfect.
    """

    carriers: tuple[Head, ...]
    """Heads whose restoration takes back a share of the rise, strongest first."""
    ranks: tuple[float, ...]
    """The place of each among all heads, 1 the highest; the mean of the places of ties."""
    auroc: float
    """Of the carriers; NaN without any."""
    auroc_planted: float
    """Of all heads that were changed, whether they carry anything or not; NaN if all were."""
    auroc_before: float | None
    """Of the carriers by the same map of the model before planting; None: not given. What it found
    before there was anything to find is no merit."""
    chance: tuple[float, float]
    """Mean AUROC of random heads of the carriers' layers, and the share of the draws that reach the
    carriers' own."""
    precision: float
    """Share of carriers among as many of the highest heads as there are carriers."""
    correlation: float
    """Spearman's, of the scores with what restoring each head of the model takes back."""
    readers: tuple[Head, ...]
    """Heads among as many of the highest that were not changed, but score higher than before by at
    least half of what the highest carrier does: they read the planted ones, and are no false
    finds. Empty without the map before."""
    method: str

    def __repr__(self) -> str:
        first = f"rank of the strongest {self.ranks[0]:g}" if self.ranks else "no carrier"
        return (
            f"Recovery({self.method}: {first}, AUROC {self.auroc:.2f}, precision "
            f"{self.precision:.2f} of {len(self.carriers)} carriers)"
        )

    def _card(self) -> Card:
        rows = [("carrier", "rank"), *zip(map(str, self.carriers), self.ranks, strict=True)]
        return repr(self), rows, (f"AUROC before planting: {self.auroc_before}",)


def recovery(
    scores: HeadScores | Selection,
    planted: Planted,
    *,
    base: HeadScores | None = None,
    share: float = CARRIER,
    seed: int = 0,
) -> Recovery:
    """Compare scores of a planted model's heads with the truth.

    Args:
        scores: A map of the planted model, or heads that were chosen on it, strongest first.
        planted: The truth.
        base: The same map of the model before planting.
        share: Of the whole rise, that restoring a carrier takes back.
        seed: Of the draws that chance is judged by.

    Raises:
        PlantingError: the scores are of a model of another size.
    """
    values = _values(scores, planted)
    truth, flat = planted.map_of_truth(), values.flatten()
    carriers = planted.carriers(share)
    wanted = marked(carriers, *values.shape).flatten()
    places, own = _ranks(-flat).view_as(values), auroc(flat, wanted)
    order = flat.argsort(descending=True, stable=True)[: len(carriers)].tolist()
    every = all_heads(*values.shape)
    highest = [every[i] for i in order]
    return Recovery(
        carriers=carriers,
        ranks=tuple(places[head].item() for head in carriers),
        auroc=own,
        auroc_planted=auroc(flat, marked(planted.heads, *values.shape).flatten()),
        auroc_before=None if base is None else auroc(base.values.flatten(), wanted),
        chance=_chance(values, carriers, own, seed),
        precision=len({*highest} & {*carriers}) / len(carriers) if carriers else float("nan"),
        correlation=rank_correlation(flat[None], truth.flatten()[None]).item(),
        readers=() if base is None else _readers(highest, values - base.values, planted, carriers),
        method=scores.method if isinstance(scores, Selection) else _named(scores),
    )


def _named(scores: HeadScores) -> str:
    return f"{scores.settings['method']}, {scores.settings.get('contrast', 'biased')}"


def _values(scores: HeadScores | Selection, planted: Planted) -> Float[Tensor, "layer head"]:
    """Of each head; chosen ones above all others, which are equal."""
    shape = planted.n_layers, planted.n_heads
    values = torch.zeros(shape)
    if isinstance(scores, HeadScores):
        values = scores.values.float()
    elif all(h.layer < shape[0] and h.head < shape[1] for h in scores):
        for place, head in enumerate(scores):
            values[head] = len(scores) - place
    if tuple(values.shape) != shape or (isinstance(scores, Selection) and not values.any()):
        raise PlantingError(
            f"scores must be of a model of {shape[0]} layers of {shape[1]} heads, as the plant is, "
            f"got {scores!r:.200}."
        )
    return values


def _ranks(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """1 for the lowest; ties have the mean of their places."""
    return torch.from_numpy(rankdata(values.numpy()))


def auroc(values: Float[Tensor, " n"], wanted: Bool[Tensor, " n"]) -> float:
    """Probability that a wanted one stands above another; NaN if all or none are wanted."""
    return _auroc(_ranks(values), wanted)


def _auroc(ranks: Float[Tensor, " n"], wanted: Bool[Tensor, " n"]) -> float:
    n = int(wanted.sum())
    others = len(wanted) - n
    if not n or not others:
        return float("nan")
    return (ranks[wanted].sum().item() - n * (n + 1) / 2) / (n * others)


def _chance(
    values: Float[Tensor, "layer head"], carriers: Sequence[Head], own: float, seed: int
) -> tuple[float, float]:
    """Of random heads in the layers of the carriers: mean AUROC, and share that reaches theirs."""
    if math.isnan(own):
        return own, own
    ranks, n_heads = _ranks(values.flatten()), values.shape[1]
    draws = layer_matched(carriers, n_heads=n_heads, n_draws=N_DRAWS, seed=seed)
    wanted = (marked(draw, *values.shape).flatten() for draw in draws)
    found = torch.tensor([_auroc(ranks, each) for each in wanted])
    return found.mean().item(), rank_p(own, found)


def _readers(
    highest: Sequence[Head],
    rise: Float[Tensor, "layer head"],
    planted: Planted,
    carriers: Sequence[Head],
) -> tuple[Head, ...]:
    least = max((rise[head].item() for head in carriers), default=0.0) / 2
    return tuple(h for h in highest if h not in planted.heads and rise[h] >= least > 0)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Removal(Result):
    """What bringing heads to their mean does to a planted model.

    Shares are of the plant's rise (NaN if there is none): 1 takes the target's log-odds back to
    where they were. KL is from the steered plant to the original model (nats), at the answers of
    held-out prompts about the target: 0 if the plant is gone and nothing else has changed.
    """

    removed: float
    """Share that the heads take back."""
    removed_planted: float
    """Share that as many of the carriers take back."""
    removed_random: tuple[float, ...]
    """Shares that random heads of the same layers take back."""
    kl: float
    kl_planted: float
    kl_random: tuple[float, ...]
    kl_unsteered: float
    """Of the plant as it is."""
    heads: tuple[Head, ...]

    def __repr__(self) -> str:
        at_random = sum(self.removed_random) / len(self.removed_random)
        return (
            f"Removal({len(self.heads)} heads: {self.removed:.0%} of the rise, carriers "
            f"{self.removed_planted:.0%}, random {at_random:.0%}; KL to the original "
            f"{self.kl:.3f}, unsteered {self.kl_unsteered:.3f} nats)"
        )


def removal(
    model: HookedTransformer,
    bias: GivenBias,
    planted: Planted,
    heads: GivenHeads,
    *,
    n_random: int = 3,
    seed: int = 0,
) -> Removal:
    """Bring heads of a planted model to their mean, and compare with the model before planting.

    Args:
        model: The model, without the plant.
        bias: The planted one.
        planted: The plant.
        heads: Such as ``scores.top(len(planted.carriers()))``; a ``Selection`` with its factors.
        n_random: Random sets of other heads of the same layers.
        seed: Of these.
    """
    bias = as_bias(bias)
    chosen, factor = as_heads(heads), getattr(heads, "factor", None)
    after = getattr(heads, "after", ())
    best = planted.ranked[: len(chosen)]
    options = {"n_heads": planted.n_heads, "n_draws": n_random, "seed": seed}
    drawn = layer_matched(chosen, **options, apart=True)

    def measured() -> tuple[float, Tensor]:
        odds, log_probs = answers(model, bias, [planted.target])
        return odds.item(), log_probs

    low, original = measured()
    with planted.attached(model):
        high, unsteered = measured()
        found = []
        matched = [(draw, matched_factor(chosen, draw, factor)) for draw in drawn]
        for each, kept in ((chosen, factor), (best, None), *matched):
            with steer(model, each, "mean", factor=kept, after=after):
                found.append(measured())
    rise = high - low
    removed = [(high - odds) / rise if rise else math.nan for odds, _ in found]
    kls = [kl(log_probs, original).item() for _, log_probs in found]
    return Removal(
        removed=removed[0],
        removed_planted=removed[1],
        removed_random=tuple(removed[2:]),
        kl=kls[0],
        kl_planted=kls[1],
        kl_random=tuple(kls[2:]),
        kl_unsteered=kl(unsteered, original).item(),
        heads=chosen,
    )


def answers(
    model: HookedTransformer, bias: Bias, targets: Sequence[str]
) -> tuple[Float[Tensor, " target"], Float[Tensor, "prompt d_vocab"]]:
    """Of the model as it is, on the bias's evaluation prompts: mean log-odds with each target in
    the slot, and log-probabilities of what follows with the first (nats).

    Args:
        model: The model, planted and steered or not.
        bias: Gives words and evaluation prompts.
        targets: Names.
    """
    texts = [fill(prompt, targets[0]) for prompt in bias.evaluation_prompts]
    sequences = [encode_sentence(model, text) for text in texts]
    odds = bias_log_odds(model, bias, bias.evaluation_prompts, targets).log_odds
    return odds.double().mean(0), next_token_log_probs(model, sequences).double()
