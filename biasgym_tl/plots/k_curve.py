"""Benefit and damage over the number of steered heads, and head by head."""

from __future__ import annotations

from html import escape

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from biasgym_tl.errors import SettingError
from biasgym_tl.plots.figure import BLUE, RED, error_bars, styled
from biasgym_tl.plots.scatter import head_scatter
from biasgym_tl.scoping.compare import rank_correlation
from biasgym_tl.scoping.damage import HeadDamage
from biasgym_tl.scoping.k_sweep import KSweep
from biasgym_tl.scoping.scores import HeadScores
from biasgym_tl.stats import Interval


def plot_k_sweep(sweep: KSweep) -> go.Figure:
    """Fall of the log-odds and, below it, rise of the loss over k, with 95% intervals.

    Args:
        sweep: From :func:`biasgym_tl.k_sweep`.
    """
    figure, frame = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=0.06), sweep.to_df()
    for row, (name, label, colour) in enumerate(
        (
            ("benefit", "fall of log-odds (nats)", RED),
            ("damage", "rise of loss (nats per token)", BLUE),
        ),
        start=1,
    ):
        ends = frame[[name, f"{name}_low", f"{name}_high"]]
        figure.add_scatter(
            x=frame["k"].tolist(),
            y=frame[name].tolist(),
            error_y=error_bars([Interval(*one) for one in ends.itertuples(index=False)], cap=4),
            line={"color": colour},
            showlegend=False,
            hovertemplate=f"k = %{{x}}: {label} %{{y:+.3f}}<extra></extra>",
            row=row,
            col=1,
        )
        figure.update_yaxes(title=label, row=row)
    figure.update_xaxes(type="log", tickvals=frame["k"].tolist())
    figure.update_xaxes(title="steered heads k", row=2)
    title = (
        f'"{escape(sweep.bias)}": {sweep.saturation_in_words()}<br><sup>'
        f"top k heads of {escape(sweep.method)} steered, {escape(sweep.mode)}; on fitting data; "
        f"{escape(sweep.model)}; 95% intervals</sup>"
    )
    return styled(figure, title)


def plot_benefit_and_damage(
    scores: HeadScores, damage: HeadDamage, *, cost: str = "facts", label_top: int = 8
) -> go.Figure:
    """Scatter of every head: what it adds to the stereotype against what is lost without it.

    Args:
        scores: Of any method.
        damage: From :func:`biasgym_tl.head_damage`.
        cost: ``"facts"`` or ``"loss"``.
        label_top: Name so many of the strongest heads on either axis.

    Raises:
        SettingError: there is no such cost, or the two results are of different models.
    """
    if cost not in ("facts", "loss"):
        raise SettingError(f"cost must be 'facts' or 'loss', got {cost!r}.")
    if scores.model != damage.model:
        raise SettingError(
            f"damage must be of the model {scores.model!r} of the scores, got {damage.model!r}."
        )
    lost = getattr(damage, cost).mean(0)
    figure = head_scatter(scores.values, lost, label_top)
    agreement = rank_correlation(scores.values.flatten()[None], lost.flatten()[None])
    unit = {"facts": "fall of facts' log-odds (nats)", "loss": "rise of loss (nats per token)"}
    figure.update_xaxes(title=f"delta-logit, {escape(scores.effect)}")
    figure.update_yaxes(title=f"{unit[cost]} without the head")
    title = (
        f'"{escape(scores.bias)}" against {cost}: rank correlation of heads '
        f"{agreement.item():+.2f}<br><sup>"
        f"{escape(scores.model)}, each head alone, {escape(damage.mode)}</sup>"
    )
    return styled(figure, title, height=560)
