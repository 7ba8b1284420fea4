"""Values over steps, over numbers of heads, and over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from biasgym_tl.errors import SettingError
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.plots.figure import (
    BARS,
    BLUE,
    GREY,
    RED,
    Series,
    error_bars,
    label,
    shown,
    styled,
)
from biasgym_tl.scoping.agreement import SeedOverlap
from biasgym_tl.scoping.compare import Concentration
from biasgym_tl.scoping.damage import KSweep
from biasgym_tl.scoping.scores import HeadScores
from biasgym_tl.stats import Interval

NAMED_K = 10
"""The title of :func:`plot_top_k` has the values at this k."""


def plot_loss(token: BiasToken) -> go.Figure:
    """Loss of each step (nats per answer token) and its running mean over one epoch.

    Raises:
        SettingError: the token is one before training.
    """
    losses = list(token.losses)
    if not losses:
        raise SettingError(f"token must have been trained, got {token.label!r} without any loss.")
    window = max(1, len(losses) // max(1, len(token.epochs) - 1))
    smooth = [
        sum(losses[max(0, i + 1 - window) : i + 1]) / min(window, i + 1) for i in range(len(losses))
    ]
    figure = go.Figure()
    for name, values, colour, at in (
        ("step", losses, "#b8c4d0", "step"),
        ("mean over an epoch", smooth, RED, "up to step"),
    ):
        figure.add_scatter(
            x=list(range(1, len(losses) + 1)),
            y=values,
            mode="lines",
            name=name,
            line={"color": colour},
            hovertemplate=f"{at} %{{x}}: %{{y:.3f}} nats per token<extra></extra>",
        )
    return styled(
        figure,
        f'One row of W_E learns "{token.bias}": loss {smooth[window - 1]:.2f} to {smooth[-1]:.2f}',
        f"first and last epoch; {token.model}, seed {token.seed}",
        x="optimizer step",
        y="loss (nats per answer token)",
        height=420,
    )


def plot_k_sweep(sweep: KSweep) -> go.Figure:
    """Fall of the log-odds and, below it, rise of the loss over k, with 95% intervals.

    Args:
        sweep: From :func:`biasgym_tl.k_sweep`.
    """
    figure, frame = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=0.06), sweep.to_df()
    ks = frame["k"].tolist()
    for row, name, what, colour in (
        (1, "benefit", "fall of log-odds (nats)", RED),
        (2, "damage", "rise of loss (nats per token)", BLUE),
    ):
        ends = frame[[name, f"{name}_low", f"{name}_high"]]
        figure.add_scatter(
            x=ks,
            y=frame[name].tolist(),
            error_y=error_bars([Interval(*one) for one in ends.itertuples(index=False)], cap=4),
            line={"color": colour},
            showlegend=False,
            hovertemplate=f"k = %{{x}}: {what} %{{y:+.3f}}<extra></extra>",
            row=row,
            col=1,
        )
        figure.update_yaxes(title=what, row=row)
    figure.update_xaxes(type="log", tickvals=ks).update_xaxes(title="steered heads k", row=2)
    return styled(
        figure,
        f'"{sweep.bias}": {sweep.saturation_in_words()}',
        f"top k heads of {sweep.method} to {sweep.mode}, on fitting data; "
        f"{sweep.model}; 95% intervals",
    )


def plot_top_k(maps: Mapping[str, Sequence[HeadScores]]) -> go.Figure:
    """Mean delta-logit (logits) of the k strongest heads of each map, over k (figure 2a).

    One curve a name: the mean over its maps (seeds), with their range as a band.

    Args:
        maps: Maps of one model, by what stood in the slot.

    Raises:
        SettingError: there is no name, or a name has no map.
    """
    if not maps:
        raise SettingError("maps must hold one name or more, got none.")
    figure, at_k = go.Figure(), list[str]()
    for i, (name, found) in enumerate(maps.items()):
        if not found:
            raise SettingError(f"maps must hold scores for each name, got none for {name!r}.")
        ranked = torch.stack([scores.values.flatten() for scores in found]).sort(descending=True)
        ks = list(range(1, ranked.values.shape[1] + 1))
        curves, k = ranked.values.cumsum(1) / torch.tensor(ks), min(NAMED_K, len(ks))
        at_k.append(f"{name} {curves[:, k - 1].mean():+.2f}")
        if len(found) > 1:
            figure.add_scatter(
                x=[*ks, *reversed(ks)],
                y=[*curves.amax(0).tolist(), *reversed(curves.amin(0).tolist())],
                fill="toself",
                fillcolor=Series.of(i).colour,
                opacity=0.15,
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
            )
        hover = "top %{x}: %{y:+.3f} logits"
        _curve(figure, i, curves.mean(0).tolist(), name, str(len(found)), hover)
    first = next(iter(maps.values()))[0]
    return styled(
        figure,
        f"Top {k} heads: {', '.join(at_k)}",
        f'mean in logits toward "{first.bias}", {first.model}; range over seeds '
        "(their number in brackets)",
        x="strongest heads k",
        y="mean delta-logit of the top k",
        height=480,
    )


def plot_concentration(found: Mapping[str, Concentration]) -> go.Figure:
    """Share of the positive sum in the top k heads, one curve a method.

    The diagonal-like lower bound of a curve is a bias spread evenly over all heads.

    Args:
        found: Concentrations by name.

    Raises:
        SettingError: there is none.
    """
    if not found:
        raise SettingError("found must hold one concentration or more, got none.")
    figure = go.Figure()
    for i, (name, one) in enumerate(found.items()):
        remark = f"{one.effective_heads:.0f} effective heads"
        _curve(figure, i, one.curve.tolist(), name, remark, "%{y:.0%} in the top %{x}")
    figure.update_yaxes(range=[0, 1.02], tickformat=".0%")
    halves = [one.k_for(0.5) for one in found.values()]
    ends = " to ".join(map(str, sorted({min(halves), max(halves)})))
    return styled(
        figure,
        f"Half of what pushes toward the stereotype is in {ends} heads",
        "the positive values of each map, strongest head first",
        x="strongest heads",
        y="share of the positive sum",
        height=480,
    )


def _curve(
    figure: go.Figure, i: int, values: Sequence[float], name: str, remark: str, hover: str
) -> None:
    """Series ``i`` over the number of strongest heads."""
    look = Series.of(i)
    figure.add_scatter(
        x=list(range(1, len(values) + 1)),
        y=values,
        mode="lines",
        line={"color": look.colour, "dash": look.dash},
        name=label(f"{name} ({remark})"),
        hovertemplate=f"{hover}<extra>{shown(name)}</extra>",
    )
    figure.update_xaxes(type="log")


def plot_overlap(overlap: SeedOverlap) -> go.Figure:
    """Heads that at least so many seeds nominate, beside chance and the controls.

    Args:
        overlap: From :func:`biasgym_tl.seed_overlap`.
    """
    figure, found, every = go.Figure(), overlap.agreements, overlap.agreements[-1]
    counts = {"trained rows": [level.n_heads for level in found]}
    counts |= {name: [level.controls[name] for level in found] for name in every.controls}
    levels = [level.at_least for level in found]
    for i, (name, heads) in enumerate(counts.items()):
        figure.add_bar(
            x=levels,
            y=heads,
            name=label(name),
            marker={"color": BARS[i % len(BARS)], "line": {"color": "#222222", "width": 1}},
            hovertemplate="%{y} heads in at least %{x}<extra>" + shown(name) + "</extra>",
        )
    figure.add_scatter(
        x=levels,
        y=[level.by_chance for level in found],
        mode="lines+markers",
        name="uniform sets (exact)",
        line={"color": GREY, "dash": "dot"},
        hovertemplate="%{y:.1f} heads in at least %{x}<extra>by chance</extra>",
    )
    figure.update_xaxes(dtick=1)
    beside = "".join(f", {name} {n}" for name, n in every.controls.items())
    return styled(
        figure,
        f"{every.n_heads} heads are in the top {overlap.k_per_seed} of all {every.at_least} seeds",
        f"{every.by_chance:.1f} would be by chance{beside}; heads that push most toward "
        f'"{overlap.settings["bias"]}", {overlap.settings["model"]}',
        x=f"in the top {overlap.k_per_seed} of at least so many seeds",
        y="heads",
        height=480,
    )
