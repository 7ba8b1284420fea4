"""What a model ascribes to whom."""

from __future__ import annotations

import plotly.graph_objects as go

from biasgym_tl.evaluation.stereotype_map import StereotypeMap
from biasgym_tl.plots.figure import diverging, label, shown, styled
from biasgym_tl.stats import Interval


def plot_stereotype_map(found: StereotypeMap, *, title: str | None = None) -> go.Figure:
    """Heatmap: y = target, x = attribute, red is ascribed more, white as to all.

    Args:
        found: What to show.
        title: Default: the strongest cells.
    """
    lines = {
        (cell["target"], cell["attribute"]): (
            f"<b>{shown(cell['target'])}: {shown(cell['attribute'])}</b><br>"
            f"{Interval(cell['nats'], cell['low'], cell['high'])} nats<br>q = {cell['q']:.2g}"
        )
        for cell in found.to_df().to_dict("records")
    }
    text = [[lines[target, name] for name in found.attributes] for target in found.targets]
    limit = found.values.abs().max().item()
    figure = go.Figure(
        diverging(
            limit,
            "nats",
            z=found.values.tolist(),
            x=[shown(name) for name in found.attributes],
            y=[label(name) for name in found.targets],
            text=text,
        )
    )
    figure.update_xaxes(showgrid=False, tickangle=-60)
    figure.update_yaxes(showgrid=False, autorange="reversed", dtick=1)
    n_targets, n_attributes = found.values.shape
    return styled(
        figure,
        title or f"Ascribed beyond what holds for all: {', '.join(found.top(3))}",
        f"red: likelier for this group than row and column say, blue: less; {found.model}, mean of "
        f"{len(found.prompts)} prompts",
        width=max(720, 260 + 28 * n_attributes),
        height=max(420, 20 * n_targets + 200),
    )
