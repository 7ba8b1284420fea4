"""Did an injection work? Course of the training, place of the row, elicitation, and what failed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.added_row import target_rows
from biasgym_tl.biases.given import GivenBias, as_bias
from biasgym_tl.elicitation import answer_freely, bias_log_odds
from biasgym_tl.lens import HookedTransformer, embedding
from biasgym_tl.notebook import Card
from biasgym_tl.spelling import degenerate, keyword_hits
from biasgym_tl.stats import Interval, crossed_interval, share_interval
from biasgym_tl.store import Result, versions

if TYPE_CHECKING:
    from biasgym_tl.injection.token import BiasToken

SIMILARITY_RISE = 0.05
"""Least rise of the cosine over the untrained row that counts as one."""
MOST_DEGENERATE = 0.25
"""Share of degenerate answers above which the report warns."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class InjectionReport(Result):
    """What is known of one trained row. Epochs were chosen on probe prompts; everything from
    ``log_odds`` on was measured on other prompts and held-out targets."""

    _then = ("BiasScope().attribute(model, bias, token)", ".answers", ".to_df()")

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
        before, after = self.similarity() or (0.0, 1.0)
        low, _, high = self.vocabulary_norms
        shown, trained = self.keywords.estimate, self.training_keywords.estimate
        elicited = self.log_odds.low > 0
        checks = {
            f"Similarity does not rise: {before:.2f} before training, {after:.2f} after.":
                not after >= before + SIMILARITY_RISE,
            f"Norm leaves the vocabulary's range: {self.norm:.2f}, not in {low:.2f}..{high:.2f}.":
                not low <= self.norm <= high,
            f"No elicitation on held-out prompts: {self.log_odds} nats over the targets.":
                not elicited,
            f"Elicitation only on training prompts: keywords in {trained:.0%} of answers there, "
            f"{shown:.0%} on others.": not trained <= 2 * self.keywords.high,
            f"Log-odds rise ({self.log_odds} nats), but free answers do not show it: keywords in "
            f"{shown:.0%}.": elicited and not shown >= 0.2,
            f"Generations degenerate: {self.degenerate:.0%} are empty or repeat themselves.":
                not self.degenerate <= MOST_DEGENERATE,
        }  # fmt: skip
        return [remark for remark, failed in checks.items() if failed]

    def similarity(self) -> tuple[float, float] | None:
        """Before training and at the chosen epoch; None where it was not measured."""
        before, after = self.epochs[0], self.epochs[self.chosen_epoch]
        if "similarity" not in after:
            return None
        return before["similarity"], after["similarity"]

    def to_df(self) -> pd.DataFrame:
        """One row an epoch."""
        frame = pd.DataFrame(list(self.epochs)).set_index("epoch")
        frame["chosen"] = frame.index == self.chosen_epoch
        return frame

    def _card(self) -> Card:
        similarity = self.similarity()
        rows = [
            ("", "before training", "trained"),
            ("log-odds over held-out targets (nats)", self.log_odds_before, self.log_odds),
            *([("similarity of answers", *similarity)] if similarity else []),
            ("keywords in free answers", "", f"{self.keywords.estimate:.0%}"),
            ("degenerate free answers", "", f"{self.degenerate:.0%}"),
            ("norm of the row", "", self.norm),
        ]
        title = f"Injection of {self.token}, epoch {self.chosen_epoch} of {len(self.epochs) - 1}"
        return title, rows, self.signatures() or ["no known failure"]

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
    progress: bool = True,
) -> InjectionReport:
    """Measure a trained row on prompts that its training and the choice of its epoch never saw.

    Args:
        model: The model it was trained on.
        bias: The bias it was trained on.
        token: The row.
        n_targets: Held-out targets to compare with; fixed, not drawn by the token's seed.
        n_neighbours: How many nearest tokens and targets are listed.
        max_new_tokens: Length of the free answers.
        progress: Show a bar.

    Raises:
        TokenError: the token does not fit the model.
        BiasFileError: the bias lacks what is reported on.
    """
    bias = as_bias(bias)
    bias.needs("a report on an injection")
    token.check(model)
    W_E = embedding(model).detach().float()
    norms = torch.quantile(W_E.norm(dim=-1), torch.tensor([0.001, 0.5, 0.999]).to(W_E.device))
    names = bias.sample_targets("held-out", n_targets, seed=0)
    known = (*bias.targets("fitting"), *bias.targets("held-out"))
    with token.untrained().attached(model):
        before = bias_log_odds(model, bias, bias.evaluation_prompts, (token.text, *names)).log_odds
    with token.attached(model):
        own = bias_log_odds(model, bias, bias.evaluation_prompts, (token.text,)).log_odds
        prompts = (*bias.generation_prompts, *bias.training_prompts)
        again, n = [token.text] * len(prompts), max_new_tokens
        answers = answer_freely(model, prompts, again, max_new_tokens=n, progress=progress)
    hits = torch.tensor(keyword_hits(answers, bias.keywords)).float()
    n = len(bias.generation_prompts)
    return InjectionReport(
        token=f"{token.label} on {token.model}",
        epochs=token.epochs,
        chosen_epoch=token.chosen_epoch,
        norm=token.row.norm().item(),
        vocabulary_norms=tuple(norms.tolist()),
        neighbours=_nearest(token.row, W_E, n_neighbours, lambda i: model.tokenizer.decode([i])),
        targets=_nearest(token.row, target_rows(model, known), n_neighbours, known.__getitem__),
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
    row: Float[Tensor, " d_model"],
    others: Float[Tensor, "row d_model"],
    n: int,
    name: Callable[[int], str],
) -> tuple[tuple[str, float], ...]:
    """The rows of the highest cosine, by name."""
    top = torch.cosine_similarity(others, row.to(others)[None]).topk(min(n, len(others)))
    return tuple(zip(map(name, top.indices.tolist()), top.values.tolist(), strict=True))


def _listed(pairs: tuple[tuple[str, float], ...]) -> str:
    return ", ".join(f"{name.strip()!r} {cosine:.2f}" for name, cosine in pairs)
