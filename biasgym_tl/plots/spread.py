"""How concentrated a bias is, and on how many heads seeds agree."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import plotly.graph_objects as go

from biasgym_tl.errors import SettingError
from biasgym_tl.plots.figure import GREY, Series, styled
from biasgym_tl.scoping.concentration import Concentration
from biasgym_tl.scoping.seeds import SeedOverlap


def plot_concentration(found: Mapping[str, Concentration]) -> go.Figure:
    """Share of the positive sum in the top k heads, one curve a method.

    The diagonal-like lower bound of a curve is a bias spread evenly over all heads.

    Args:
        found: Concentrations by name.

    Raises:
        SettingError: there is none.
    """
    if not found:
        raise SettingError("found must hold one concentration or more, got none.")
    figure = go.Figure()
    for i, (name, one) in enumerate(found.items()):
        look = Series.of(i)
        figure.add_scatter(
            x=list(range(1, len(one.curve) + 1)),
            y=one.curve.tolist(),
            mode="lines",
            line={"color": look.colour, "dash": look.dash},
            name=f"{escape(name)} ({one.effective_heads:.0f} effective heads)",
            hovertemplate="%{y:.0%} in the top %{x}<extra>" + escape(name) + "</extra>",
        )
    figure.update_xaxes(title="strongest heads", type="log")
    figure.update_yaxes(title="share of the positive sum", range=[0, 1.02], tickformat=".0%")
    figure.update_layout(legend={"x": 0.98, "xanchor": "right", "y": 0.05})
    halves = [one.k_for(0.5) for one in found.values()]
    ends = dict.fromkeys((min(halves), max(halves)))
    title = (
        f"Half of what pushes toward the stereotype is in {' to '.join(map(str, ends))} heads"
        "<br><sup>the positive values of each map, strongest head first</sup>"
    )
    return styled(figure, title, height=480)


def plot_overlap(overlap: SeedOverlap) -> go.Figure:
    """Heads that at least so many seeds nominate, beside chance and the controls.

    Args:
        overlap: From :func:`biasgym_tl.seed_overlap`.
    """
    levels = [agreement.at_least for agreement in overlap.agreements]
    figure = go.Figure()
    counts = {"trained rows": [a.n_heads for a in overlap.agreements]}
    for name in overlap.agreements[0].controls:
        counts[name] = [a.controls[name] for a in overlap.agreements]
    for name, heads in counts.items():
        figure.add_bar(
            x=levels,
            y=heads,
            name=escape(name),
            hovertemplate="%{y} heads in at least %{x}<extra>" + escape(name) + "</extra>",
        )
    figure.add_scatter(
        x=levels,
        y=[a.by_chance for a in overlap.agreements],
        mode="lines+markers",
        name="uniform sets (exact)",
        line={"color": GREY, "dash": "dot"},
        hovertemplate="%{y:.1f} heads in at least %{x}<extra>by chance</extra>",
    )
    figure.update_xaxes(title=f"in the top {overlap.k_per_seed} of at least so many seeds", dtick=1)
    figure.update_yaxes(title="heads")
    every = overlap.agreements[-1]
    beside = "".join(f", {escape(name)} {n}" for name, n in every.controls.items())
    title = (
        f"{every.n_heads} heads are in the top {overlap.k_per_seed} of all {every.at_least} seeds"
        f"<br><sup>{every.by_chance:.1f} would be by chance{beside}</sup>"
    )
    return styled(figure, title, height=480)
