"""Did an injection work? Course of the training, place of the row, elicitation, and what failed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.given import GivenBias, as_bias
from biasgym_tl.elicitation import answer_freely, bias_log_odds
from biasgym_tl.injection.token import BiasToken, target_rows
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.stats import Interval, crossed_interval, share_interval
from biasgym_tl.store import Result, versions
from biasgym_tl.text import degenerate, keyword_hits

SIMILARITY_RISE = 0.05
"""Least rise of the cosine over the untrained row that counts as one."""
MOST_DEGENERATE = 0.25
"""Share of degenerate answers above which the report warns."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class InjectionReport(Result):
    """What is known of one trained row. Epochs were chosen on probe prompts; everything from
    ``log_odds`` on was measured on other prompts and held-out targets."""

    token: str
    """Which row, in words."""
    epochs: tuple[dict[str, Any], ...]
    """As in ``BiasToken.epochs``; number 0 is the row before training."""
    chosen_epoch: int
    norm: float
    """L2 norm of the row."""
    vocabulary_norms: tuple[float, float, float]
    """0.1%, 50% and 99.9% quantile of the norms of all rows of ``W_E``."""
    neighbours: tuple[tuple[str, float], ...]
    """Nearest vocabulary rows and their cosine."""
    targets: tuple[tuple[str, float], ...]
    """Nearest real targets (mean of their tokens' rows) and their cosine."""
    log_odds: Interval
    """BiasToken's log-odds over the held-out targets' on evaluation prompts (nats)."""
    log_odds_before: Interval
    """The same with the row before training."""
    keywords: Interval
    """Share of answers to generation prompts with a keyword."""
    training_keywords: Interval
    """The same on the requests that it was trained on."""
    degenerate: float
    """Share of degenerate answers to generation prompts."""
    answers: tuple[str, ...]
    """Those answers."""
    settings: dict[str, Any]
    """Fields of the ``BiasInject`` that trained it."""
    versions: dict[str, str]
    seconds: float
    """How long the training took."""

    def signatures(self) -> list[str]:
        """What failed, in words; empty for an injection that shows none of the known failures."""
        checks = (
            self._similarity_flat(), self._norm_outside(), self._not_elicited(),
            self._only_on_training_prompts(), self._only_in_log_odds(), self._degenerate(),
        )  # fmt: skip
        return [remark for remark in checks if remark]

    def similarity(self) -> tuple[float, float] | None:
        """Before training and at the chosen epoch; None where it was not measured."""
        before, after = self.epochs[0], self.epochs[self.chosen_epoch]
        if "similarity" not in after:
            return None
        return before["similarity"], after["similarity"]

    def _similarity_flat(self) -> str | None:
        found = self.similarity()
        if found is None or found[1] >= found[0] + SIMILARITY_RISE:
            return None
        return f"Similarity does not rise: {found[0]:.2f} before training, {found[1]:.2f} after."

    def _norm_outside(self) -> str | None:
        low, _, high = self.vocabulary_norms
        if low <= self.norm <= high:
            return None
        return f"Norm leaves the vocabulary's range: {self.norm:.2f}, not in {low:.2f}..{high:.2f}."

    def _not_elicited(self) -> str | None:
        if self.log_odds.low > 0:
            return None
        return f"No elicitation on held-out prompts: {self.log_odds} nats over the targets."

    def _only_on_training_prompts(self) -> str | None:
        if self.training_keywords.estimate <= 2 * self.keywords.high:
            return None
        return (
            "Elicitation only on training prompts: keywords in "
            f"{self.training_keywords.estimate:.0%} of answers there, "
            f"{self.keywords.estimate:.0%} on others."
        )

    def _only_in_log_odds(self) -> str | None:
        if self.log_odds.low <= 0 or self.keywords.estimate >= 0.2:
            return None
        return (
            f"Log-odds rise ({self.log_odds} nats), but free answers do not show it: keywords in "
            f"{self.keywords.estimate:.0%}."
        )

    def _degenerate(self) -> str | None:
        if self.degenerate <= MOST_DEGENERATE:
            return None
        return f"Generations degenerate: {self.degenerate:.0%} are empty or repeat themselves."

    def to_df(self) -> pd.DataFrame:
        """One row an epoch."""
        frame = pd.DataFrame(list(self.epochs)).set_index("epoch")
        frame["chosen"] = frame.index == self.chosen_epoch
        return frame

    def __repr__(self) -> str:
        low, median, high = self.vocabulary_norms
        similarity = self.similarity()
        lines = [
            f"Injection of {self.token}, epoch {self.chosen_epoch} of {len(self.epochs) - 1}",
            *([f"  similarity {similarity[0]:.2f} -> {similarity[1]:.2f}"] if similarity else []),
            f"  norm {self.norm:.2f} (vocabulary {low:.2f}..{high:.2f}, median {median:.2f})",
            f"  nearest tokens: {_listed(self.neighbours)}",
            f"  nearest targets: {_listed(self.targets)}",
            f"  log-odds over held-out targets: {self.log_odds} nats "
            f"(before {self.log_odds_before})",
            f"  keywords in {self.keywords.estimate:.0%} of answers "
            f"[{self.keywords.low:.0%}, {self.keywords.high:.0%}], "
            f"{self.training_keywords.estimate:.0%} on training prompts; "
            f"{self.degenerate:.0%} degenerate",
        ]
        failures = self.signatures()
        lines += [f"  ! {remark}" for remark in failures] or ["  no known failure"]
        return "\n".join(lines)


def injection_report(
    model: HookedTransformer,
    bias: GivenBias,
    token: BiasToken,
    *,
    n_targets: int = 10,
    n_neighbours: int = 8,
    max_new_tokens: int = 48,
) -> InjectionReport:
    """Measure a trained row on prompts that its training and the choice of its epoch never saw.

    Args:
        model: The model it was trained on.
        bias: The bias it was trained on.
        token: The row.
        n_targets: Held-out targets to compare with; fixed, not drawn by the token's seed.
        n_neighbours: How many nearest tokens and targets are listed.
        max_new_tokens: Length of the free answers.

    Raises:
        TokenError: the token does not fit the model.
    """
    bias = as_bias(bias)
    token.check(model)
    W_E = model.embed.W_E.detach().float()
    norms = torch.quantile(W_E.norm(dim=-1), torch.tensor([0.001, 0.5, 0.999]).to(W_E.device))
    names = bias.sample_targets("held-out", n_targets, seed=0)
    with token.untrained().attached(model):
        before = bias_log_odds(model, bias, bias.evaluation_prompts, (token.text, *names)).log_odds
    with token.attached(model):
        own = bias_log_odds(model, bias, bias.evaluation_prompts, (token.text,)).log_odds
        prompts = (*bias.generation_prompts, *bias.training_prompts)
        answers = answer_freely(
            model, prompts, [token.text] * len(prompts), max_new_tokens=max_new_tokens
        )
    hits = torch.tensor(keyword_hits(answers, bias.keywords)).float()
    n = len(bias.generation_prompts)
    return InjectionReport(
        token=f"{token.label} on {token.model}",
        epochs=token.epochs,
        chosen_epoch=token.chosen_epoch,
        norm=token.row.norm().item(),
        vocabulary_norms=tuple(norms.tolist()),
        neighbours=_nearest(token.row, W_E, n_neighbours, lambda i: model.tokenizer.decode([i])),
        targets=_nearest_targets(model, bias, token, n_neighbours),
        log_odds=crossed_interval((own - before[:, 1:]).double()),
        log_odds_before=crossed_interval((before[:, :1] - before[:, 1:]).double()),
        keywords=share_interval(hits[:n]),
        training_keywords=share_interval(hits[n:]),
        degenerate=sum(map(bool, map(degenerate, answers[:n]))) / n,
        answers=tuple(answers[:n]),
        settings=token.settings,
        versions=versions(),
        seconds=token.seconds,
    )


def _nearest(
    row: Float[Tensor, " d_model"], others: Float[Tensor, "row d_model"], n: int, name: Any
) -> tuple[tuple[str, float], ...]:
    cosines = torch.cosine_similarity(others, row.to(others)[None])
    top = cosines.topk(min(n, len(others)))
    return tuple(
        (name(i), c) for i, c in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    )


def _nearest_targets(
    model: HookedTransformer, bias: Bias, token: BiasToken, n: int
) -> tuple[tuple[str, float], ...]:
    names = (*bias.targets("fitting"), *bias.targets("held-out"))
    return _nearest(token.row, target_rows(model, names), n, lambda i: names[i])


def _listed(pairs: tuple[tuple[str, float], ...]) -> str:
    return ", ".join(f"{name.strip()!r} {cosine:.2f}" for name, cosine in pairs)
