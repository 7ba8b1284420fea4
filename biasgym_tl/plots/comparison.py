"""How far each choice of heads lowers the log-odds, for several biases side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go

from biasgym_tl.evaluation.report import RANDOM, RANDOM_MEAN, Report
from biasgym_tl.plots.figure import Series, error_bars, heading, styled


def plot_comparison(reports: Sequence[Report], measure: str = "token_log_odds") -> go.Figure:
    """Change of a measure from the injected model (nats), by setting and bias, 95% intervals.

    Left of 0: less stereotype. ``random`` is over prompts and random sets.

    Args:
        reports: One per bias, with the same settings.
        measure: Key of one of ``MEASURES``.
    """
    figure = go.Figure()
    steered = [
        result.name
        for result in reports[0].results
        if result.heads and not result.name.startswith(RANDOM)
    ]
    names, lowest = [*steered, RANDOM_MEAN], list[str]()
    for i, report in enumerate(reports):
        known = {result.name for result in report.results} | {RANDOM_MEAN}
        found = {n: report.change(n, measure, "injected") for n in names if n in known}
        look = Series.of(i)
        falls = [(c.estimate, n) for n, c in found.items() if c and n != RANDOM_MEAN]
        lowest += [n for _, n in sorted(falls)[:1]]
        rows = [(names.index(n), change) for n, change in found.items() if change is not None]
        figure.add_scatter(
            x=[change.estimate for _, change in rows],
            y=[at + (i - (len(reports) - 1) / 2) * 0.14 for at, _ in rows],
            error_x=error_bars([change for _, change in rows], cap=3),
            mode="markers",
            name=escape(report.bias),
            marker={"size": 9, "color": look.colour, "symbol": look.symbol},
            customdata=[f"{escape(names[at])}: {change}" for at, change in rows],
            hovertemplate="%{customdata} nats",
        )
    figure.add_vline(x=0, line={"color": "#888", "width": 1})
    shown = reports[0].measures[measure]
    figure.update_xaxes(title=escape(f"change of {shown.label} ({shown.unit})"), zeroline=False)
    figure.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=list(map(escape, names)),
        autorange="reversed",
        zeroline=False,
    )
    finding = "Nothing is steered"
    if lowest:
        ((first, n),) = Counter(lowest).most_common(1)
        finding = f"{heading(first)} is lowest for {n} of {len(reports)} biases"
    title = (
        f"{finding}<br><sup>"
        f"{escape(reports[0].model)}, held-out prompts, 95% intervals; left: less stereotype</sup>"
    )
    return styled(figure, title, width=760, height=560)
