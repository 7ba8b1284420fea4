"""What steering takes away, against what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from biasgym_tl.errors import SettingError
from biasgym_tl.evaluation.report import Report
from biasgym_tl.evaluation.specificity import OffTarget
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

FAR = 50.0
"""Nats, of which no model holds a preference."""
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
    found = _measured(reports)
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
    seen = _seen(list(found.values()))
    ends = [end for off in seen for each in (off.target, off.spared) for end in each[1:]]
    low, high = min([*ends, 0.0]), max([*ends, 0.0])
    if len(seen) < len(found):
        margin = 0.05 * (high - low)
        figure.update_xaxes(range=[low - margin, high + margin])
        figure.update_yaxes(range=[low - margin, high + margin])
    figure.add_scatter(
        x=[low, high], y=[low, high], mode="lines", line={"color": GREY, "dash": "dot"},
        name="the word falls", hoverinfo="skip",
    )  # fmt: skip
    return styled(
        figure,
        "On target against off target",
        "a mark is a bias; below the dotted line targets fall further than things and nobody; 95% "
        f"intervals{_beyond(found, seen)}",
        x="change on things and nobody (nats)",
        y="change on held-out targets (nats)",
        height=560,
    )


def plot_specificity(reports: Mapping[str, Report]) -> go.Figure:
    """Change of the log-odds on held-out targets, and by how much that is more than on things and
    nobody, a row for each condition; for more conditions than colours could tell apart.

    Args:
        reports: By name, such as that of the bias; a mark in each row is one of them.

    Raises:
        SettingError: in none of them was anything measured off target.
    """
    found = _measured(reports)
    conditions = list(dict.fromkeys(condition for _, condition in found))
    names = list(dict.fromkeys(name for name, _ in found))
    figure = make_subplots(
        1, 2, shared_yaxes=True, horizontal_spacing=0.03,
        subplot_titles=["change on held-out targets", "specificity"],
    )  # fmt: skip
    seen, room = _seen(list(found.values())), 0.7 / len(names)
    for i, name in enumerate(names):
        own = {of: off for (of_name, of), off in found.items() if of_name == name and off in seen}
        beside = room * (i - (len(names) - 1) / 2)
        rows = [conditions.index(condition) + beside for condition in own]
        for column, part in enumerate(("target", "specificity"), start=1):
            intervals = [getattr(off, part) for off in own.values()]
            figure.add_scatter(
                x=[each.estimate for each in intervals],
                y=rows,
                error_x=error_bars(intervals, cap=2),
                mode="markers",
                marker={
                    "size": 7,
                    "color": COLOURS[i % len(COLOURS)],
                    "symbol": SYMBOLS[i % len(SYMBOLS)],
                },
                name=label(name),
                legendgroup=name,
                showlegend=column == 1 and len(names) > 1,
                customdata=[
                    f"{shown(of)}: {each}" for of, each in zip(own, intervals, strict=True)
                ],
                hovertemplate="%{customdata}<extra></extra>",
                row=1,
                col=column,
            )  # fmt: skip
    figure.add_vline(0, line={"color": GREY, "dash": "dot"})
    figure.update_xaxes(title="nats")
    figure.update_yaxes(
        tickvals=list(range(len(conditions))),
        ticktext=[label(condition) for condition in conditions],
        range=[len(conditions) - 0.5, -0.5],
        zeroline=False,
    )
    return styled(
        figure,
        "Whom a change is about",
        "specificity: the change on held-out targets less the mean change on things and nobody; to "
        f"the left targets fall further; 95% intervals{_beyond(found, seen)}",
        height=200 + 12 * (1 + len(names)) * len(conditions),
    )


def _measured(reports: Mapping[str, Report]) -> dict[tuple[str, str], OffTarget]:
    """By name of the report and steered condition, what was measured off target."""
    found = {
        (name, condition): off
        for name, report in reports.items()
        for condition, off in report.off_target.items()
        if any(condition == r.name and r.steers for r in report.results)
    }
    if not found:
        raise SettingError("reports must hold a steered condition that was measured off target.")
    return found


def _beyond(found: Mapping[Any, OffTarget], seen: Sequence[OffTarget]) -> str:
    return f"; {len(found) - len(seen)} far beyond the edges" if len(seen) < len(found) else ""


def _seen(found: Sequence[OffTarget]) -> list[OffTarget]:
    """Without what lies so far out that all others would be one mark: beyond :data:`FAR` nats, and
    ten times farther than the next. Words that a method forbids can fall by thousands of nats."""

    def size(off: OffTarget) -> float:
        return max(abs(end) for each in (off.target, off.spared) for end in each)

    ordered = sorted(found, key=size)
    for i in range(1, len(ordered)):
        if size(ordered[i]) > max(FAR, 10 * size(ordered[i - 1])):
            return ordered[:i]
    return ordered


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
