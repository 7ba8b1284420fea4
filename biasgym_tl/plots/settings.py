"""Log-odds of the attribute in every setting."""

from __future__ import annotations

from html import escape

import plotly.graph_objects as go

from biasgym_tl.evaluation.report import RANDOM, Report
from biasgym_tl.plots.figure import BLUE, RED, error_bars, styled


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
        found = [report.interval(name, key) for name in names]
        figure.add_scatter(
            x=[interval.estimate for interval in found if interval],
            y=[escape(name) for name in names],
            error_x=error_bars([i for i in found if i], cap=4),
            mode="markers",
            name=label,
            marker={"size": 11, "color": colour, "symbol": symbol},
            hovertemplate="%{y}: %{x:.2f} nats<extra></extra>",
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
        f'"{escape(report.attribute)}" in every setting<br><sup>{escape(report.model)}, '
        f"{len(report.evaluation_prompts)} held-out prompts, 95% intervals</sup>"
    )
    return styled(figure, title, height=480)
