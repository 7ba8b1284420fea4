"""How much the strongest heads write, with the injection and without it (the paper's figure 2a)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import plotly.graph_objects as go
import torch

from biasgym_tl.errors import SettingError
from biasgym_tl.plots.figure import Series, styled
from biasgym_tl.scoping.scores import HeadScores

NAMED_K = 10
"""The title has the values at this k."""


def plot_top_k(maps: Mapping[str, Sequence[HeadScores]]) -> go.Figure:
    """Mean delta-logit (logits) of the k strongest heads of each map, over k.

    One curve a name: the mean over its maps (seeds), with their range as a band.

    Args:
        maps: Maps of one model, by what stood in the slot.

    Raises:
        SettingError: there is no name, or a name has no map.
    """
    if not maps:
        raise SettingError("maps must hold one name or more, got none.")
    figure, at_k = go.Figure(), list[str]()
    for i, (name, found) in enumerate(maps.items()):
        if not found:
            raise SettingError(f"maps must hold scores for each name, got none for {name!r}.")
        ranked = torch.stack([scores.values.flatten() for scores in found]).sort(descending=True)
        curves = ranked.values.cumsum(1) / torch.arange(1, ranked.values.shape[1] + 1)
        ks, look = list(range(1, curves.shape[1] + 1)), Series.of(i)
        k = min(NAMED_K, len(ks))
        at_k.append(f"{escape(name)} {curves[:, k - 1].mean():+.2f}")
        if len(found) > 1:
            figure.add_scatter(
                x=[*ks, *reversed(ks)],
                y=[*curves.amax(0).tolist(), *reversed(curves.amin(0).tolist())],
                fill="toself",
                fillcolor=look.colour,
                opacity=0.15,
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
            )
        figure.add_scatter(
            x=ks,
            y=curves.mean(0).tolist(),
            mode="lines",
            line={"color": look.colour, "dash": look.dash},
            name=f"{escape(name)} ({len(found)})",
            hovertemplate="top %{x}: %{y:+.3f} logits<extra>" + escape(name) + "</extra>",
        )
    first = next(iter(maps.values()))[0]
    figure.update_xaxes(title="strongest heads k", type="log")
    figure.update_yaxes(title="mean delta-logit of the top k")
    figure.update_layout(legend={"x": 0.98, "xanchor": "right", "y": 0.98})
    title = (
        f"Top {k} heads: {', '.join(at_k)}<br><sup>"
        f'mean in logits toward "{escape(first.bias)}", {escape(first.model)}; range over seeds '
        "(their number in brackets)</sup>"
    )
    return styled(figure, title, height=480)
