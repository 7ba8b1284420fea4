"""What steering takes away, against what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from biasgym_tl.errors import SettingError
from biasgym_tl.evaluation.report import Report
from biasgym_tl.plots.figure import (
    COLOURS,
    GREY,
    SYMBOLS,
    Series,
    error_bars,
    heading,
    label,
    shown,
    styled,
)
from biasgym_tl.stats import Interval

_PANELS = {"token_log_odds": "BiasToken", "target_log_odds": "held-out targets"}


def plot_frontier(report: Report) -> go.Figure:
    """Fall of the log-odds against the rise of the loss on neutral text, for every condition.

    Further up is less bias, further right is more damage. Grey marks are random heads. A fall of
    the BiasToken is from the unsteered condition with the same row. Conditions that differ in the
    row alone are one point for targets.
    """
    figure = make_subplots(2, subplot_titles=list(_PANELS.values()), vertical_spacing=0.12)
    random = [result.name for result in report.results if result.control_of]
    chosen = [
        r.name for r in report.results if (r.steers or r.instruction) and r.control_of is None
    ]
    for row, measure in enumerate(_PANELS, start=1):
        if not {measure, "damage_loss"} <= set(report.measures):
            continue
        figure.add_hline(y=0, line={"color": "#cccccc"}, layer="below", col=1, row=row)
        figure.add_vline(x=0, line={"color": "#cccccc"}, layer="below", col=1, row=row)
        points = {
            name: (cost, fall)
            for name in (*random, *chosen)
            if (cost := report.change(name, "damage_loss", "original"))
            and (fall := report.change(report.baseline(name, measure), measure, name))
        }
        cloud = [points[name] for name in random if name in points]
        if cloud:
            look = {"size": 8, "color": GREY}
            figure.add_trace(_marks(cloud, "random heads", look, row == 1), row, 1)
        seen = []
        for i, name in enumerate(chosen):
            if name in points and points[name] not in seen:
                seen.append(points[name])
                series = Series.of(i)
                look = {"size": 11, "color": series.colour, "symbol": series.symbol}
                figure.add_trace(_marks(seen[-1:], name, look, row == 1, bars=True), row, 1)
    figure.update_xaxes(title="rise of the loss on neutral text (nats per token)", row=2)
    figure.update_yaxes(title="fall of the log-odds (nats)")
    return styled(
        figure,
        _finding(report),
        f'up: less of "{report.attribute}", right: more damage; {report.model}, held out, 95% '
        "intervals",
        height=960,
    )


def plot_off_target(reports: Mapping[str, Report]) -> go.Figure:
    """Change of the log-odds on held-out targets against the mean change on things and nobody.

    A mark is a condition of a bias, with 95% intervals. On the dotted line the word falls; below
    it, the stereotype; straight below 0, the stereotype alone.

    Args:
        reports: By name, such as that of the bias.

    Raises:
        SettingError: in none of them was anything measured off target.
    """
    found = {
        (name, condition): off
        for name, report in reports.items()
        for condition, off in report.off_target.items()
        if any(condition == r.name and r.steers for r in report.results)
    }
    if not found:
        raise SettingError("reports must hold a steered condition that was measured off target.")
    figure = go.Figure()
    conditions = list(dict.fromkeys(condition for _, condition in found))
    names = list(dict.fromkeys(name for name, _ in found))
    for i, condition in enumerate(conditions):
        marks = {name: off for (name, of), off in found.items() if of == condition}
        spared, targets = [off.spared for off in marks.values()], [m.target for m in marks.values()]
        figure.add_scatter(
            x=[each.estimate for each in spared],
            y=[each.estimate for each in targets],
            error_x=error_bars(spared, cap=3),
            error_y=error_bars(targets, cap=3),
            mode="markers",
            marker={
                "size": 11,
                "color": COLOURS[i % len(COLOURS)],
                "symbol": [SYMBOLS[names.index(name) % len(SYMBOLS)] for name in marks],
            },
            name=label(condition),
            customdata=[
                f"{shown(name)}: specificity {off.specificity}" for name, off in marks.items()
            ],
            hovertemplate=f"<b>{shown(condition)}</b><br>%{{customdata}}<extra></extra>",
        )
    ends = [end for off in found.values() for each in (off.target, off.spared) for end in each[1:]]
    low, high = min([*ends, 0.0]), max([*ends, 0.0])
    figure.add_scatter(
        x=[low, high], y=[low, high], mode="lines", line={"color": GREY, "dash": "dot"},
        name="the word falls", hoverinfo="skip",
    )  # fmt: skip
    return styled(
        figure,
        "On target against off target",
        "a mark is a bias; below the dotted line targets fall further than things and nobody; 95% "
        "intervals",
        x="change on things and nobody (nats)",
        y="change on held-out targets (nats)",
        height=560,
    )


def _finding(report: Report) -> str:
    """What the chosen heads take from targets, and for how much."""
    name = report.main
    known = {"target_log_odds", "damage_loss"} <= set(report.measures)
    fall = name and known and report.change(name, "target_log_odds", "original")
    cost = name and known and report.change(name, "damage_loss", "original")
    if not (name and fall and cost):
        return "What each condition takes away, and what it costs"
    return (
        f"{heading(name)}: targets {fall.estimate:+.1f} nats for {cost.estimate:+.3f} nats of loss"
    )


def _marks(
    points: Sequence[tuple[Interval, Interval]],
    name: str,
    look: dict[str, object],
    named: bool,
    *,
    bars: bool = False,
) -> go.Scatter:
    costs, falls = zip(*points, strict=True)
    return go.Scatter(
        x=[cost.estimate for cost in costs],
        y=[fall.estimate for fall in falls],
        error_x=error_bars(costs, cap=3) if bars else None,
        error_y=error_bars(falls, cap=3) if bars else None,
        mode="markers",
        marker=look,
        name=label(name),
        legendgroup=name,
        showlegend=named,
        customdata=[f"{fall} nats less<br>loss {cost} nats per token" for cost, fall in points],
        hovertemplate=f"<b>{shown(name)}</b><br>%{{customdata}}<extra></extra>",
    )
