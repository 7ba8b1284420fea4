"""Each target by itself."""

from __future__ import annotations

import plotly.graph_objects as go

from biasgym_tl.evaluation.report import Report
from biasgym_tl.plots.figure import Series, label, shown, styled


def plot_targets(report: Report) -> go.Figure:
    """Log-odds of the attribute (nats) for each held-out target, in every condition of the model.

    Mean over the evaluation prompts. Conditions that differ in the row alone are one.
    """
    figure = go.Figure()
    order = report.values("original", "target_log_odds")
    assert order is not None
    ranked = order.mean(0).argsort(descending=True).tolist()
    names = [label(report.targets[i]) for i in ranked]
    drawn = [
        result
        for result in report.results
        if result.control_of is None
        and result.name != "injected"
        and report.values(result.name, "target_log_odds") is not None
    ]
    fallen: dict[str, int] = {}
    for i, result in enumerate(drawn):
        values = report.values(result.name, "target_log_odds")
        assert values is not None
        look = Series.of(i)
        fallen[result.name] = int((values.mean(0) < order.mean(0)).sum())
        figure.add_scatter(
            x=values.mean(0)[ranked].tolist(),
            y=names,
            mode="markers",
            name=label(result.name),
            marker={"size": 9, "color": look.colour, "symbol": look.symbol},
            hovertemplate="%{y}: %{x:.2f} nats<extra>" + shown(result.name) + "</extra>",
        )
    figure.update_yaxes(autorange="reversed")
    main = report.main if report.main in fallen else None
    fell = f"falls for {fallen[main]} of {len(names)} targets ({main})" if main else "by target"
    return styled(
        figure,
        f'"{report.attribute}" {fell}',
        f"right: more stereotype; {report.model}, mean over {report.n_prompts} held-out prompts",
        x="log-odds of attribute against neutral words (nats)",
        height=240 + 32 * len(names),
    )
