"""Layer-by-head heatmap of delta-logit."""

from __future__ import annotations

from html import escape

import plotly.graph_objects as go

from biasgym_tl.heads import Head
from biasgym_tl.plots.figure import styled
from biasgym_tl.scoping.scores import HeadScores


def plot_heads(scores: HeadScores, *, title: str | None = None, mark_top: int = 0) -> go.Figure:
    """Heatmap of mean delta-logit: x = head, y = layer, red pushes toward the stereotype.

    The colours are centred at 0, so white is "no direct contribution".

    Args:
        scores: What to show.
        title: Default: what the scores are, with the model and the number of pairs.
        mark_top: Ring this many of the strongest heads.
    """
    values, errors = scores.values, scores.standard_error
    n_layers, n_heads = values.shape
    limit = values.abs().max().item()
    hover = [
        [
            f"<b>{Head(layer, head)}</b><br>delta-logit {values[layer, head]:+.3f} "
            f"± {errors[layer, head]:.3f} (s.e., {len(scores.prompts)} pairs)"
            f"<br>KV group {scores.kv_group(head)}"
            for head in range(n_heads)
        ]
        for layer in range(n_layers)
    ]
    figure = go.Figure(
        go.Heatmap(
            z=values.tolist(),
            x=[f"H{head}" for head in range(n_heads)],
            y=list(range(n_layers)),
            colorscale="RdBu",
            reversescale=True,
            zmid=0,
            zmin=-limit,
            zmax=limit,
            text=hover,
            hovertemplate="%{text}<extra></extra>",
            colorbar={"title": {"text": "delta-logit<br>(+ toward<br>stereotype)"}},
        )
    )
    if mark_top:
        top = scores.top(mark_top)
        figure.add_trace(
            go.Scatter(
                x=[f"H{head.head}" for head in top],
                y=[head.layer for head in top],
                mode="markers",
                marker={"symbol": "square-open", "size": 15, "color": "black"},
                hoverinfo="skip",
                showlegend=False,
            )
        )
    figure.update_xaxes(title="head", side="bottom")
    figure.update_yaxes(
        title="layer", dtick=max(1, n_layers // 15), range=[-0.5, n_layers - 0.5], zeroline=False
    )
    return styled(figure, title or _title(scores, mark_top), height=max(420, 18 * n_layers + 180))


def _title(scores: HeadScores, mark_top: int) -> str:
    ringed = f", top {mark_top} framed" if mark_top else ""
    return (
        f'Direct contribution of each head to "{escape(scores.bias)}"'
        f"<br><sup>{escape(scores.model)}, mean of {len(scores.prompts)} pairs{ringed}</sup>"
    )
