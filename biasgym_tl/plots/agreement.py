"""One map of heads against another: do two methods name the same heads."""

from __future__ import annotations

from html import escape

import plotly.graph_objects as go

from biasgym_tl.errors import SettingError
from biasgym_tl.plots.figure import styled
from biasgym_tl.plots.scatter import head_scatter
from biasgym_tl.scoping.compare import Comparison


def plot_agreement(
    comparison: Comparison, x: str | None = None, y: str | None = None, *, label_top: int = 5
) -> go.Figure:
    """Scatter of every head: its value on one map against its value on another (logits).

    Args:
        comparison: From :func:`biasgym_tl.compare`.
        x: Name of the map on the horizontal axis; default: the first.
        y: Of the vertical axis; default: the second.
        label_top: Name so many of the strongest heads of each map.

    Raises:
        SettingError: they are not two of the maps.
    """
    names = comparison.names
    x, y = x or names[0], y or names[1]
    if x == y or not {x, y} <= set(names):
        raise SettingError(f"x and y must be two of {list(names)}, got {x!r} and {y!r}.")
    on_x, on_y = (comparison.maps[names.index(name)] for name in (x, y))
    figure = head_scatter(on_x, on_y, label_top)
    for axis, name in ((figure.update_xaxes, x), (figure.update_yaxes, y)):
        effect = escape(comparison.effects[names.index(name)])
        axis(title=f"{escape(name)} (logits)<br><sup>{effect}</sup>")
    key = (x, y) if (x, y) in comparison.rank_correlation else (y, x)
    agreement = comparison.rank_correlation[key]
    reliability = ", ".join(f"{escape(n)} {comparison.reliability[n]:.2f}" for n in (x, y))
    title = (
        f"{escape(x)} and {escape(y)}: rank correlation {agreement}"
        f"<br><sup>reliability of each map: {reliability}</sup>"
    )
    return styled(figure, title, height=560)
