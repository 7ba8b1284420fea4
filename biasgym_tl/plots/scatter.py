"""Every head as a point, its value on one measure against its value on another."""

from __future__ import annotations

import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.heads import all_heads


def head_scatter(
    x: Float[Tensor, "n_layers n_heads"], y: Float[Tensor, "n_layers n_heads"], label_top: int
) -> go.Figure:
    """Scatter coloured by layer; the ``label_top`` highest heads on either axis are named."""
    heads = all_heads(*x.shape)
    k = min(label_top, len(heads))
    named = {int(i) for values in (x, y) for i in values.flatten().topk(k).indices}
    # Of two neighbours in height the names stand on the outer sides, so that fewer overlap.
    by_height = sorted(named, key=lambda i: y.flatten()[i].item())
    sides: dict[int, str] = {}
    for i in range(0, len(by_height), 2):
        *left, right = sorted(by_height[i : i + 2], key=lambda head: x.flatten()[head].item())
        sides |= {right: "middle right"} | dict.fromkeys(left, "middle left")
    figure = go.Figure(
        go.Scatter(
            x=x.flatten().tolist(),
            y=y.flatten().tolist(),
            mode="markers+text",
            cliponaxis=False,
            text=[str(head) if i in named else "" for i, head in enumerate(heads)],
            textposition=[sides.get(i, "middle right") for i in range(len(heads))],
            customdata=[str(head) for head in heads],
            marker={
                "color": [head.layer for head in heads],
                "colorscale": "Viridis",
                "size": 7,
                "colorbar": {"title": {"text": "layer"}},
            },
            hovertemplate="%{customdata}: %{x:+.3f}, %{y:+.4f}<extra></extra>",
        )
    )
    room = 0.12 * (x.max() - x.min()).item() or 1.0  # for names
    return figure.update_xaxes(range=[x.min().item() - room, x.max().item() + room])
