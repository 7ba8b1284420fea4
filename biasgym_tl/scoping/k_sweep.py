"""How many heads to steer: benefit and damage over k, on fitting data only."""

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

from biasgym_tl.biases.given import GivenBias, as_bias
from biasgym_tl.elicitation import bias_log_odds
from biasgym_tl.errors import SettingError
from biasgym_tl.hooks import head_means, steer
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.lens import HookedTransformer, check_model
from biasgym_tl.passages import load_passages
from biasgym_tl.scoping.scores import HeadScores
from biasgym_tl.stats import Interval, crossed_interval
from biasgym_tl.store import TensorResult, versions
from biasgym_tl.text import mean_loss

if TYPE_CHECKING:
    import plotly.graph_objects as go

KS = (1, 2, 3, 5, 8, 12, 20, 30, 50)
SATURATED = 0.9
"""Share of the largest benefit at which a curve counts as saturated."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class KSweep(TensorResult):
    """Steering the top k heads, for several k, on the data that the heads were chosen on.

    It serves to choose k. What the heads do elsewhere is for an evaluation to say.
    """

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
    kept = tuple(k for k in ks if k <= scores.values.numel())
    if not kept or kept[0] < 1 or list(kept) != sorted(set(kept)):
        raise SettingError(
            f"ks must rise within 1..{scores.values.numel()}, got {list(ks)}. Sort them."
        )
    for name, value in zip(
        ("model", "bias", "token"), (model.cfg.model_name, bias.name, token.label), strict=True
    ):
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
        bias=bias.name,
        token=token.label,
        settings=scores.settings,
        model=model.cfg.model_name,
        versions=versions(),
    )
