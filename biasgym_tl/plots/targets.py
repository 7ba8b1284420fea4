"""Each target by itself."""

from __future__ import annotations

from html import escape

import plotly.graph_objects as go

from biasgym_tl.evaluation.report import RANDOM, Report
from biasgym_tl.plots.figure import COLOURS, styled


def plot_targets(report: Report) -> go.Figure:
    """Log-odds of the attribute (nats) for each held-out target, in every setting of the model.

    Mean over the evaluation prompts. Settings that differ in the row alone are one.
    """
    figure = go.Figure()
    order = report.values("original", "target_log_odds")
    assert order is not None
    ranked = order.mean(0).argsort(descending=True).tolist()
    names = [escape(report.targets[i]) for i in ranked]
    shown = [
        result
        for result in report.results
        if not result.name.startswith(RANDOM) and result.name != "injected"
    ]
    for i, result in enumerate(shown):
        values = report.values(result.name, "target_log_odds")
        assert values is not None
        figure.add_scatter(
            x=values.mean(0)[ranked].tolist(),
            y=names,
            mode="markers",
            name=escape(result.name),
            marker={"size": 9, "color": COLOURS[i % len(COLOURS)], "symbol": i},
            hovertemplate="%{y}: %{x:.2f} nats<extra></extra>",
        )
    figure.update_xaxes(title="log-odds of attribute against neutral words (nats)")
    figure.update_yaxes(autorange="reversed")
    title = (
        f'"{escape(report.attribute)}", target by target<br><sup>{escape(report.model)}, mean over '
        f"{len(report.evaluation_prompts)} held-out prompts</sup>"
    )
    return styled(figure, title, height=160 + 32 * len(names))
