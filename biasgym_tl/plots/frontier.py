"""What steering takes away, against what it costs."""

from __future__ import annotations

from html import escape

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from biasgym_tl.evaluation.report import Report
from biasgym_tl.plots.figure import GREY, RED, error_bars, styled

_PANELS = (
    ("token_log_odds", "injected", "BiasToken"),
    ("target_log_odds", "original", "held-out targets"),
)


def plot_frontier(report: Report) -> go.Figure:
    """Fall of the log-odds against the rise of the loss on neutral text, for every setting.

    Further up is less bias, further right is more damage. Grey marks are random heads.
    """
    figure = make_subplots(cols=2, subplot_titles=[title for *_, title in _PANELS])
    random = [control.name for control in report.random_controls()]
    chosen = [r.name for r in report.results if (r.heads or r.instruction) and r.name not in random]
    for column, (measure, since, _) in enumerate(_PANELS, start=1):
        for names, label, colour in (
            (random, "random heads", GREY),
            (chosen, "settings", RED),
        ):
            falls = [found for name in names if (found := report.change(since, measure, name))]
            costs = [report.change(name, "damage_loss", "original") for name in names]
            known = [cost for cost in costs if cost]
            bars = {"error_x": error_bars(known, cap=3), "error_y": error_bars(falls, cap=3)}
            figure.add_scatter(
                x=[cost.estimate for cost in known],
                y=[fall.estimate for fall in falls],
                mode="markers" if names is random else "markers+text",
                text=[escape(name) for name in names],
                textposition="top right",
                marker={"size": 9, "color": colour},
                name=label,
                showlegend=column == 1 and bool(names),
                hovertemplate="%{text}: %{y:.2f} nats for %{x:.3f}<extra></extra>",
                col=column,
                row=1,
                **({} if names is random else bars),
            )
        figure.add_hline(y=0, line={"color": "#cccccc"}, col=column, row=1)
        figure.add_vline(x=0, line={"color": "#cccccc"}, col=column, row=1)
    figure.update_xaxes(title="rise of the loss on neutral text (nats per token)")
    figure.update_yaxes(title="fall of the log-odds (nats)", col=1)
    title = (
        f'What it takes away and what it costs: "{escape(report.attribute)}"<br><sup>'
        f"{escape(report.model)}, held out; 95% intervals</sup>"
    )
    return styled(figure, title, width=1080, height=520)
