"""The look that all figures share, and writing them to files."""

from __future__ import annotations

import shutil
import tempfile
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.io import write_images

from biasgym_tl.errors import first_line
from biasgym_tl.files import write_atomically
from biasgym_tl.stats import Interval

FONT = "Helvetica, Arial, sans-serif"
RED, BLUE, GREY = "#b2182b", "#2166ac", "#999999"
"""Toward the stereotype, or the BiasToken; away from it, or real targets; random or no effect."""
COLOURS = (RED, BLUE, "#d98c00", "#000000", "#88ccee", "#882255", "#66c2a5")
"""Of series, in this order: apart for the red- and green-blind too."""
SYMBOLS = ("circle", "diamond", "square", "cross", "triangle-up", "x", "star")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
BARS = (RED, "#88ccee", "#000000", "#d98c00", "#ffffff")
"""Of bars, which have no symbols: apart in grey too."""
_AXIS = {
    "gridcolor": "#e5e5e5",
    "zerolinecolor": "#bbbbbb",
    "automargin": True,
    "title": {"standoff": 12},
}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": FONT, "size": 15, "color": "#222222"},
        "title": {
            "font": {"size": 18},
            "subtitle": {"font": {"size": 13, "color": "#555555"}},
            **{"x": 0, "xref": "container", "y": 1, "yref": "container", "yanchor": "top"},
            "pad": {"l": 16, "t": 24},
        },
        "margin": {"l": 70, "r": 30, "t": 100, "b": 75},
        "legend": {
            **{"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
            "font": {"size": 13},
        },
        "colorway": COLOURS,
        "colorscale": {"diverging": "RdBu_r"},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "hoverlabel": {"font": {"family": FONT, "size": 13}},
    }
)
"""The look of all figures: text that can be read at half the width, on white, whatever the page."""


class Series(NamedTuple):
    """How one of several series looks: no two of the first 49 agree in both colour and symbol."""

    colour: str
    symbol: str
    dash: str

    @classmethod
    def of(cls, i: int) -> Series:
        """The look of series ``i``."""
        rounds = i // len(COLOURS)
        return cls(
            COLOURS[(i + rounds) % len(COLOURS)], SYMBOLS[i % len(SYMBOLS)], DASHES[i % len(DASHES)]
        )


def diverging(limit: float, unit: str, **given: Any) -> go.Heatmap:
    """Cells that are red above 0 and blue below it, up to ``limit``, with a text of each."""
    return go.Heatmap(
        colorscale="RdBu",
        reversescale=True,
        zmid=0,
        zmin=-limit,
        zmax=limit,
        hovertemplate="%{text}<extra></extra>",
        colorbar={"title": {"text": unit}},
        **given,
    )


def shown(text: str) -> str:
    """A text that no part of is markup in a figure. Plotly knows no ``&quot;``, so quotes stay."""
    return escape(text, quote=False)


def label(text: str, n: int = 32) -> str:
    """The same in lines of at most ``n`` characters."""
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, n)]
    return "<br>".join(map(shown, lines))


def heading(name: str) -> str:
    """A name as the first words of a title: its first letter large."""
    return name[:1].upper() + name[1:]


def styled(
    figure: go.Figure,
    title: str,
    below: str = "",
    *,
    x: str | None = None,
    y: str | None = None,
    width: int = 720,
    height: int = 640,
) -> go.Figure:
    """Apply the common look, a title with smaller lines ``below``, and titles of both axes.

    All of them are plain text, which goes on in more lines where it is too long; the figure grows.
    """
    for axis, name, room in ((figure.update_xaxes, x, width), (figure.update_yaxes, y, height)):
        if name is not None:
            axis(title=label(name, (room - 160) // 8))
    title, below = label(title, (width - 40) // 9), label(below, (width - 40) // 7)
    above = 22 * (1 + title.count("<br>")) + 17 * (1 + below.count("<br>"))
    panels = [
        note.text.count("<br>") for note in figure.layout.annotations if note.showarrow is False
    ]
    top = 33 + above + (10 + 18 * (1 + max(panels)) if panels else 0)
    return figure.update_layout(
        title={"text": title, "subtitle": {"text": below}},
        template=TEMPLATE,
        margin={"t": top},
        width=width,
        height=height + top - 72,
    )


def error_bars(intervals: Sequence[Interval], *, cap: int) -> dict[str, Any]:
    """Value of ``error_x`` that draws each interval around its estimate; ``cap`` in pixels."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [interval.high - interval.estimate for interval in intervals],
        "arrayminus": [interval.estimate - interval.low for interval in intervals],
        "thickness": 1.5,
        "width": cap,
    }


def write_png(figure: go.Figure, path: Path) -> str | None:
    """Write a PNG through kaleido; where that is not possible, return one line that says why."""
    return write_pngs({path: figure})


def write_pngs(figures: Mapping[Path, go.Figure]) -> str | None:
    """:func:`write_png` of several figures, for which one browser is started."""
    try:
        import kaleido  # noqa: F401
    except ImportError:
        return "PNG not written: kaleido is not installed. Run: pip install 'biasgym-tl[png]'"
    from kaleido.errors import ChromeNotFoundError

    with tempfile.TemporaryDirectory() as folder:
        images = [Path(folder) / f"{i}.png" for i in range(len(figures))]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                write_images(
                    list(figures.values()),
                    images,
                    scale=2,
                    width=[figure.layout.width for figure in figures.values()],
                    height=[figure.layout.height for figure in figures.values()],
                )
        except (ChromeNotFoundError, RuntimeError, OSError) as error:
            return (
                "PNG not written: kaleido found no usable Chrome or Chromium. Install one (Debian: "
                f"apt install chromium; elsewhere: plotly_get_chrome). ({first_line(error)})"
            )
        written = {
            path: image for path, image in zip(figures, images, strict=True) if image.exists()
        }
        for path, image in written.items():
            write_atomically(path, partial(shutil.copyfile, image))
    lost = [path.name for path in figures if path not in written]
    return f"PNG not written: kaleido left out {', '.join(lost)}." if lost else None
