"""Log-odds of the attribute in every setting."""

from __future__ import annotations

from html import escape

import plotly.graph_objects as go

from biasgym_tl.evaluation.report import RANDOM, Report
from biasgym_tl.plots.figure import BLUE, RED, error_bars, heading, styled


def plot_settings(report: Report) -> go.Figure:
    """Log-odds (nats) by setting with 95% intervals, for the BiasToken and for targets.

    Open marks are random controls, without an interval.
    """
    figure = go.Figure()
    for key, label, colour, symbol in (
        ("token_log_odds", "BiasToken", RED, "circle"),
        ("target_log_odds", "held-out targets", BLUE, "diamond"),
    ):
        names = [result.name for result in report.results if not result.name.startswith(RANDOM)]
        intervals = {name: report.interval(name, key) for name in names}
        found = {name: interval for name, interval in intervals.items() if interval}
        figure.add_scatter(
            x=[interval.estimate for interval in found.values()],
            y=[escape(name) for name in found],
            error_x=error_bars(list(found.values()), cap=4),
            mode="markers",
            name=label,
            marker={"size": 11, "color": colour, "symbol": symbol},
            customdata=[str(interval) for interval in found.values()],
            hovertemplate="%{y}: %{customdata} nats<extra>" + label + "</extra>",
        )
        draws = [report.interval(control.name, key) for control in report.random_controls()]
        if draws:
            figure.add_scatter(
                x=[interval.estimate for interval in draws if interval],
                y=["random heads, mean"] * len(draws),
                mode="markers",
                marker={"size": 9, "color": colour, "symbol": f"{symbol}-open"},
                showlegend=False,
                hovertemplate="a random set: %{x:.2f} nats<extra></extra>",
            )
    figure.update_xaxes(title="log-odds of attribute against neutral words (nats)")
    figure.update_yaxes(autorange="reversed")
    title = (
        f'{headline(report)}<br><sup>"{escape(report.attribute)}", {escape(report.model)}, '
        f"{len(report.evaluation_prompts)} held-out prompts, 95% intervals</sup>"
    )
    return styled(figure, title, height=240 + 26 * len(report.results))


def headline(report: Report) -> str:
    """What steering the chosen heads did to the log-odds, or else what the injection did."""
    name = main_setting(report)
    if name is None:
        return f"Injected: BiasToken {_by(report, 'injected', 'token_log_odds', 'original')}"
    token = _by(report, name, "token_log_odds", report.baseline(name, "token_log_odds"))
    targets = _by(report, name, "target_log_odds", "original")
    return f"{heading(name)}: BiasToken {token}, targets {targets}"


def main_setting(report: Report) -> str | None:
    """The setting that a title is about: the chosen heads at their mean, or else the first."""
    steered = [r.name for r in report.results if r.name.startswith("steered")]
    return "steered, mean" if "steered, mean" in steered else next(iter(steered), None)


def _by(report: Report, name: str, measure: str, since: str) -> str:
    change = report.change(name, measure, since)
    return "not measured" if change is None else f"{change.estimate:+.1f} nats"
