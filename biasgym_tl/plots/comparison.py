"""How far each choice of heads lowers the log-odds, for several biases side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import plotly.graph_objects as go

from biasgym_tl.evaluation.report import Report
from biasgym_tl.plots.figure import Series, error_bars, heading, label, shown, styled


def plot_comparison(reports: Sequence[Report], measure: str | None = None) -> go.Figure:
    """Change of a measure from the injected model, or without a row from the original one (nats),
    by condition and bias, 95% intervals.

    Left of 0: less stereotype. Random sets stand together, over prompts and draws.

    Args:
        reports: One per bias, with the same conditions.
        measure: Key of a measure; default: ``report.log_odds``.
    """
    figure, measure = go.Figure(), measure or reports[0].log_odds
    since = "injected" if all("injected" in report.shown for report in reports) else "original"
    steered = [result.name for result in reports[0].steered]
    names, lowest = [*steered, *reports[0].controls], list[str]()
    for i, report in enumerate(reports):
        found = {n: report.change(n, measure, since) for n in names if n in report.shown}
        look = Series.of(i)
        falls = [(c.estimate, n) for n, c in found.items() if c and n in steered]
        lowest += [n for _, n in sorted(falls)[:1]]
        rows = [(names.index(n), change) for n, change in found.items() if change is not None]
        figure.add_scatter(
            x=[change.estimate for _, change in rows],
            y=[at + (i - (len(reports) - 1) / 2) * 0.14 for at, _ in rows],
            error_x=error_bars([change for _, change in rows], cap=3),
            mode="markers",
            name=label(report.bias),
            marker={"size": 9, "color": look.colour, "symbol": look.symbol},
            customdata=[f"{shown(names[at])}: {change}" for at, change in rows],
            hovertemplate="%{customdata} nats",
        )
    figure.add_vline(x=0, line={"color": "#888", "width": 1})
    of = reports[0].measures[measure]
    figure.update_xaxes(zeroline=False)
    figure.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=list(map(label, names)),
        autorange="reversed",
        zeroline=False,
    )
    finding = "Nothing is steered"
    if lowest:
        ((first, n),) = Counter(lowest).most_common(1)
        finding = f"{heading(first)} is lowest for {n} of {len(reports)} biases"
    return styled(
        figure,
        finding,
        f"left of 0: less stereotype than {since}; {reports[0].model}, held-out "
        "prompts, 95% intervals",
        x=f"change of {of.label} ({of.unit})",
        height=200 + max(44, 14 * len(reports)) * len(names),
    )
