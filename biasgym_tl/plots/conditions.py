"""Log-odds of the attribute in every condition."""

from __future__ import annotations

import plotly.graph_objects as go

from biasgym_tl.evaluation.report import Report
from biasgym_tl.plots.figure import BLUE, RED, error_bars, heading, label, styled


def plot_conditions(report: Report) -> go.Figure:
    """Log-odds (nats) by condition with 95% intervals, for the BiasToken and for targets.

    Open marks are random controls, without an interval.
    """
    figure = go.Figure()
    for key, who, colour, symbol in (
        ("token_log_odds", "BiasToken", RED, "circle"),
        ("target_log_odds", "held-out targets", BLUE, "diamond"),
    ):
        if key not in report.measures:
            continue
        names = [result.name for result in report.results if result.control_of is None]
        intervals = {name: report.interval(name, key) for name in names}
        found = {name: interval for name, interval in intervals.items() if interval}
        figure.add_scatter(
            x=[interval.estimate for interval in found.values()],
            y=list(map(label, found)),
            error_x=error_bars(list(found.values()), cap=4),
            mode="markers",
            name=who,
            marker={"size": 11, "color": colour, "symbol": symbol},
            customdata=[str(interval) for interval in found.values()],
            hovertemplate="%{y}: %{customdata} nats<extra>" + who + "</extra>",
        )
        for random, controls in report.controls.items():
            draws = [report.interval(control.name, key) for control in controls]
            known = [interval.estimate for interval in draws if interval]
            if not known:
                continue
            figure.add_scatter(
                x=known,
                y=[label(random)] * len(known),
                mode="markers",
                marker={"size": 9, "color": colour, "symbol": f"{symbol}-open"},
                showlegend=False,
                hovertemplate="a random set: %{x:.2f} nats<extra></extra>",
            )
    figure.update_yaxes(autorange="reversed")
    return styled(
        figure,
        headline(report),
        f'right: more of "{report.attribute}"; open marks: random sets of heads; {report.model}, '
        f"{report.n_prompts} held-out prompts, 95% intervals",
        x="log-odds of attribute against neutral words (nats)",
        height=240 + sum(16 + 16 * len(label(name).split("<br>")) for name in report.shown),
    )


def headline(report: Report) -> str:
    """What steering the chosen heads did to the log-odds, or else what the injection did."""
    name = report.main
    if name is None and "token_log_odds" not in report.measures:
        name = report.results[-1].name  # no heads are known of a model behind an address
    if name is None:
        return f"Injected: BiasToken {_by(report, 'injected', 'token_log_odds', 'original')}"
    targets = f"targets {_by(report, name, 'target_log_odds', 'original')}"
    if "token_log_odds" not in report.measures:
        return f"{heading(name)}: {targets}"
    token = _by(report, name, "token_log_odds", report.baseline(name, "token_log_odds"))
    return f"{heading(name)}: BiasToken {token}, {targets}"


def _by(report: Report, name: str, measure: str, since: str) -> str:
    names = {result.name for result in report.results}
    known = measure in report.measures and {name, since} <= names
    change = report.change(name, measure, since) if known else None
    return "not measured" if change is None else f"{change.estimate:+.1f} nats"
