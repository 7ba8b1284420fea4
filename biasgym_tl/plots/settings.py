"""Log-odds of the attribute in every setting."""

from __future__ import annotations

from html import escape

import plotly.graph_objects as go

from biasgym_tl.evaluation.report import Report
from biasgym_tl.plots.figure import styled


def plot_settings(report: Report) -> go.Figure:
    """Mean log-odds (nats) by setting, one colour for the BiasToken, one for countries."""
    names = [result.name for result in report.results]
    means = [result.means() for result in report.results]
    figure = go.Figure(
        [
            go.Scatter(
                x=[mean[key] for mean in means],
                y=names,
                mode="markers",
                name=label,
                marker={"size": 11, "color": colour, "symbol": symbol},
                hovertemplate="%{y}: %{x:.2f} nats<extra></extra>",
            )
            for key, label, colour, symbol in (
                ("token_log_odds", "BiasToken", "#b2182b", "circle"),
                ("country_log_odds", "held-out countries", "#2166ac", "diamond"),
            )
        ]
    )
    figure.update_xaxes(title="log-odds of attribute against neutral words (nats)")
    figure.update_yaxes(autorange="reversed")
    title = (
        f'"{escape(report.attribute)}" in every setting<br><sup>{escape(report.model)}, '
        f"{len(report.evaluation_prompts)} held-out prompts</sup>"
    )
    return styled(figure, title, height=440)
