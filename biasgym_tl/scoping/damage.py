"""What steering gives and takes, on fitting data only: over the top k heads, and head by head."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from biasgym_tl.allowed import MODES
from biasgym_tl.biases.facts import FACT_REQUEST, Fact, load_facts
from biasgym_tl.biases.given import GivenBias, as_bias
from biasgym_tl.elicitation import bias_log_odds
from biasgym_tl.errors import SettingError, check_one_of
from biasgym_tl.hooks import head_means, steer
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.lens import HookedTransformer, check_model
from biasgym_tl.notebook import Card, rows_of
from biasgym_tl.passages import load_passages
from biasgym_tl.prompts import encode_answer, encode_prompt
from biasgym_tl.scoping.ablation import ablated_deltas, ablated_losses
from biasgym_tl.scoping.scores import HeadScores, head_table, top_heads
from biasgym_tl.slot import spaced
from biasgym_tl.stats import Interval, crossed_interval
from biasgym_tl.store import Result, versions
from biasgym_tl.text import answer_differences, mean_loss, next_token_log_probs

if TYPE_CHECKING:
    import plotly.graph_objects as go

KS = (1, 2, 3, 5, 8, 12, 20, 30, 50)
SATURATED = 0.9
"""Share of the largest benefit at which a curve counts as saturated."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class KSweep(Result):
    """Steering the top k heads, for several k, on the data that the heads were chosen on.

    It serves to choose k. What the heads do elsewhere is for an evaluation to say.
    """

    _then = (".plot()", "select_heads(scores, k)")

    ks: tuple[int, ...]
    benefit: Float[Tensor, "k prompt"]
    """Fall of the BiasToken's log-odds on each scoping prompt (nats)."""
    damage: Float[Tensor, "k text"]
    """Rise of the loss of each budget text (nats per token)."""
    method: str
    mode: str
    bias: str
    token: str
    model: str
    settings: dict[str, Any]
    """Settings of the scores that ordered the heads."""
    versions: dict[str, str]

    def saturation(self, *, n_resamples: int = 999, seed: int = 0) -> Interval:
        """Smallest k with 90% of the largest mean benefit, and its 95% range over prompts.

        NaN where no k has a benefit, on all prompts or on a resample of them.
        """
        generator = torch.Generator().manual_seed(seed)
        n = self.benefit.shape[1]
        picks = torch.randint(n, (n_resamples, n), generator=generator)
        curves = torch.cat([self.benefit.mean(1)[None], self.benefit[:, picks].mean(2).T])
        reached = curves >= SATURATED * curves.max(1, keepdim=True).values
        found = torch.tensor(self.ks, dtype=torch.float64)[reached.double().argmax(1)]
        found[curves.amax(1) <= 0] = torch.nan
        ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
        low, high = found[1:].quantile(ends).tolist()  # NaN if any resample has no benefit
        return Interval(found[0].item(), low, high)

    def to_df(self) -> pd.DataFrame:
        """One row per k: benefit and damage with their intervals over prompts and texts."""
        rows = []
        for k, benefit, damage in zip(self.ks, self.benefit, self.damage, strict=True):
            fall, rise = (crossed_interval(values[:, None]) for values in (benefit, damage))
            rows.append((k, fall.estimate, rise.estimate, *fall[1:], *rise[1:]))
        ends = [f"{name}_{end}" for name in ("benefit", "damage") for end in ("low", "high")]
        return pd.DataFrame(rows, columns=["k", "benefit", "damage", *ends])

    def plot(self) -> go.Figure:
        """Benefit and damage over k."""
        from biasgym_tl.plots.curves import plot_k_sweep

        return plot_k_sweep(self)

    def __repr__(self) -> str:
        return f"KSweep({self.method} on {self.bias}, {self.mode}: {self.saturation_in_words()})"

    def _card(self) -> Card:
        head = ("k", "fall of log-odds (nats)", "rise of loss (nats per token)")
        rows = zip(self.ks, *(v.mean(1).tolist() for v in (self.benefit, self.damage)), strict=True)
        return repr(self), [head, *rows], ()

    def saturation_in_words(self) -> str:
        """:meth:`saturation` as a remark."""
        k, low, high = self.saturation()
        if math.isnan(low):
            return "no k lowers the log-odds reliably"
        return f"90% of the largest benefit at k = {k:.0f} [{low:.0f}, {high:.0f}]"


def k_sweep(
    model: HookedTransformer,
    bias: GivenBias,
    token: BiasToken,
    scores: HeadScores,
    *,
    ks: Sequence[int] = KS,
    mode: str = "mean",
    progress: bool = True,
) -> KSweep:
    """Steer the top k heads for each k, on scoping prompts and budget texts.

    Args:
        model: The model, unsteered and without the token.
        bias: Gives the scoping prompts and the words.
        token: The BiasToken that the scores were made with.
        scores: Decide the order of the heads.
        ks: Numbers of heads, rising; those beyond the model's size are left out.
        mode: What the heads are replaced with.
        progress: Show a bar.

    Raises:
        SettingError: ``ks`` do not rise from 1 or more, none is within the model's size, or the
            scores are of another model, bias or token.
        SteeringError: there is no such mode.
    """
    check_model(model)
    bias = as_bias(bias)
    bias.needs("scoping")
    n_heads = scores.values.numel()
    kept = tuple(k for k in ks if k <= n_heads)
    if not kept or kept[0] < 1 or list(kept) != sorted(set(kept)):
        raise SettingError(f"ks must rise within 1..{n_heads}, got {list(ks)}. Sort them.")
    wanted = {"model": model.cfg.model_name, "bias": bias.name, "token": token.label}
    for name, value in wanted.items():
        if getattr(scores, name) != value:
            raise SettingError(
                f"scores must be of the {name} {value!r}, got {getattr(scores, name)!r}. "
                "Attribute with the same model, bias and token."
            )
    scores.check_text(model)
    reference = head_means(model) if mode == "mean" else None
    log_odds, losses = [], []
    with token.attached(model):
        for k in tqdm([0, *kept], desc=f"k sweep, {bias.name}", disable=not progress):
            with steer(model, scores.top(k) if k else (), mode, reference=reference):
                found = bias_log_odds(model, bias, bias.scoping_prompts, (token.text,)).log_odds
                losses.append(mean_loss(model, load_passages("budget")).double().cpu())
            log_odds.append(found[:, 0].double().cpu())
    return KSweep(
        ks=kept,
        benefit=log_odds[0] - torch.stack(log_odds[1:]),
        damage=torch.stack(losses[1:]) - losses[0],
        method=str(scores.settings["method"]),
        mode=mode,
        settings=scores.settings,
        versions=versions(),
        **wanted,
    )


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class HeadDamage(Result):
    """Cost of silencing each head alone; positive is damage."""

    _then = (".to_df()", "plots.plot_benefit_and_damage(scores, damage)")

    loss: Float[Tensor, "text n_layers n_heads"]
    """Rise of the mean loss of each neutral text (nats per token)."""
    facts: Float[Tensor, "fact n_layers n_heads"]
    """Fall of the logit difference of each fact, right answer against the wrong one that is
    likeliest in the whole model (first tokens, before a final soft cap)."""
    mode: str
    model: str
    countries: tuple[str, ...]
    """Country of each fact."""
    versions: dict[str, str]

    def to_df(self) -> pd.DataFrame:
        """One row per head: mean rise of the loss, mean fall of the facts' log-odds."""
        return head_table(loss=self.loss.mean(0), facts=self.facts.mean(0))

    def _card(self) -> Card:
        worst = self.to_df().sort_values("loss", ascending=False).head(10)
        return (
            repr(self),
            rows_of(worst),
            ("dearest heads first: nats per token, nats of log-odds",),
        )

    def __repr__(self) -> str:
        loss, facts = self.loss.mean(0), self.facts.mean(0)
        of_loss, of_facts = top_heads(loss, 1)[0], top_heads(facts, 1)[0]
        return (
            f"HeadDamage({self.mode} on {self.model}: loss worst without {of_loss} "
            f"({loss.max():+.3f} nats per token), facts without {of_facts} "
            f"({facts.max():+.2f} nats))"
        )


def head_damage(
    model: HookedTransformer,
    *,
    mode: str = "mean",
    texts: Sequence[str] | None = None,
    facts: Sequence[Fact] | None = None,
    progress: bool = True,
) -> HeadDamage:
    """Silence every head in turn and measure what is lost.

    Args:
        model: The model, without the BiasToken.
        mode: What the head is replaced with: ``"zero"`` or ``"mean"``.
        texts: Neutral texts; default: ``load_passages("budget")``, which no report is made on.
        facts: Default: ``load_facts("budget")``, which no report is made on. Facts whose right and
            wrong answers begin alike are left out.
        progress: Show bars over layers.

    Raises:
        SettingError: there is no such mode, or no fact or text is left.
    """
    check_model(model)
    check_one_of("mode", mode, MODES)
    texts = list(load_passages("budget") if texts is None else texts)
    asked, right, wrong = _first_tokens(model, load_facts("budget") if facts is None else facts)
    if not texts or not asked:
        raise SettingError(
            f"texts and facts must not be empty, got {len(texts)} and {len(asked)} usable ones. "
            "Pass more."
        )
    prompts = [encode_prompt(model, FACT_REQUEST, fact.question) for fact in asked]
    log_probs = next_token_log_probs(model, prompts)
    likeliest = [
        max(ids, key=row.__getitem__) for ids, row in zip(wrong, log_probs.tolist(), strict=True)
    ]
    ids = [torch.tensor(found, device=log_probs.device) for found in (right, likeliest)]
    reference = head_means(model) if mode == "mean" else None
    options: dict[str, Any] = {"reference": reference, "progress": progress}
    facts_left = ablated_deltas(model, prompts, *ids, **options)
    loss = mean_loss(model, texts).double().cpu()
    return HeadDamage(
        loss=ablated_losses(model, texts, **options) - loss[:, None, None],
        facts=answer_differences(model, prompts, *ids)[:, None, None] - facts_left,
        mode=mode,
        model=model.cfg.model_name,
        countries=tuple(fact.country for fact in asked),
        versions=versions(),
    )


def _first_tokens(
    model: HookedTransformer, facts: Sequence[Fact]
) -> tuple[list[Fact], list[int], list[list[int]]]:
    """Facts whose right answer has a first token of its own, with first tokens right and wrong."""
    asked, right, wrong = [], [], []
    for fact in facts:
        first, *others = (encode_answer(model, spaced(answer))[0] for answer in fact.candidates)
        if first not in others:
            asked.append(fact)
            right.append(first)
            wrong.append(others)
    return asked, right, wrong
