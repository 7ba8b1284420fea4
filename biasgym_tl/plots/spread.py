"""How concentrated a bias is, and on how many heads seeds agree."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import plotly.graph_objects as go

from biasgym_tl.plots.figure import styled
from biasgym_tl.scoping.concentration import Concentration
from biasgym_tl.scoping.seeds import SeedOverlap


def plot_concentration(found: Mapping[str, Concentration]) -> go.Figure:
    """Share of the positive sum in the top k heads, one curve a method.

    The diagonal-like lower bound of a curve is a bias spread evenly over all heads.

    Args:
        found: Concentrations by name.
    """
    figure = go.Figure()
    for name, one in found.items():
        figure.add_scatter(
            x=list(range(1, len(one.curve) + 1)),
            y=one.curve.tolist(),
            mode="lines",
            name=f"{escape(name)} ({one.effective_heads:.0f} effective heads)",
        )
    figure.update_xaxes(title="strongest heads", type="log")
    figure.update_yaxes(title="share of the positive sum", range=[0, 1.02], tickformat=".0%")
    figure.update_layout(legend={"x": 0.98, "xanchor": "right", "y": 0.05})
    return styled(figure, "How concentrated the bias is in few heads", height=480)


def plot_overlap(overlap: SeedOverlap) -> go.Figure:
    """Heads that at least so many seeds nominate, beside chance and the controls.

    Args:
        overlap: From :func:`biasgym_tl.seed_overlap`.
    """
    levels = [agreement.at_least for agreement in overlap.agreements]
    figure = go.Figure(
        go.Bar(x=levels, y=[a.n_heads for a in overlap.agreements], name="trained rows")
    )
    for name in overlap.agreements[0].controls:
        figure.add_bar(
            x=levels, y=[a.controls[name] for a in overlap.agreements], name=escape(name)
        )
    figure.add_scatter(
        x=levels,
        y=[a.by_chance for a in overlap.agreements],
        mode="lines+markers",
        name="uniform sets (exact)",
        line={"color": "#525252", "dash": "dot"},
    )
    figure.update_xaxes(title=f"in the top {overlap.k_per_seed} of at least so many seeds", dtick=1)
    figure.update_yaxes(title="heads")
    return styled(figure, "On how many heads the seeds agree", height=480)
