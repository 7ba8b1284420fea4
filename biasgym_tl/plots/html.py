"""Figures as HTML: where plotly.js comes from, and what a page says without it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs, get_plotlyjs_version

from biasgym_tl.errors import check_one_of
from biasgym_tl.files import write_text
from biasgym_tl.plots.figure import shown

PLOTLYJS = ("inline", "beside", "cdn")
"""``"inline"``: 5 MB in the page, which needs nothing else. ``"beside"``: :data:`LIBRARY` in the
page's folder, once for all pages there; a page without it loads the library from the network.
``"cdn"``: always from the network."""
LIBRARY = "plotly.min.js"
_MISSING = (
    "<p><strong>The figures are missing:</strong> the library that draws them, plotly.js, could "
    "not be loaded. Connect to the network and load this page again, or put plotly.min.js, which "
    "lies beside the other pages, into its folder.</p>"
)
_UNLESS = "<script>window.Plotly || document.write(`{}`)</script>"


def figures_html(figures: Sequence[go.Figure], plotlyjs: str = "inline") -> list[str]:
    """Each figure as a part of one page; the first brings the library.

    Raises:
        SettingError: ``plotlyjs`` is none of :data:`PLOTLYJS`.
    """
    check_one_of("plotlyjs", plotlyjs, PLOTLYJS)
    parts = [
        figure.to_html(full_html=False, include_plotlyjs=False, div_id=f"figure-{i}")
        for i, figure in enumerate(figures)
    ]
    return [_library(plotlyjs) + part if i == 0 else part for i, part in enumerate(parts)]


def _library(plotlyjs: str) -> str:
    """What loads plotly.js, or says in its place that it is missing."""
    if plotlyjs == "inline":
        first, others = f"<script>{get_plotlyjs()}</script>", []
    elif plotlyjs == "beside":
        first, others = f'<script src="{LIBRARY}"></script>', [_cdn()]
    else:
        first, others = _cdn(), []
    tries = (_UNLESS.format(each.replace("</", r"<\/")) for each in (*others, _MISSING))
    noscript = "<noscript><p>The figures need JavaScript.</p></noscript>"
    return "\n".join((first, *tries, noscript))


@cache
def _cdn() -> str:
    address = f"https://cdn.plot.ly/plotly-{get_plotlyjs_version()}.min.js"
    sha = base64.b64encode(hashlib.sha256(get_plotlyjs().encode()).digest()).decode()
    return f'<script src="{address}" integrity="sha256-{sha}" crossorigin="anonymous"></script>'


def write_library(folder: Path) -> Path:
    """Write plotly.js for the pages of a folder that have it ``"beside"`` them."""
    path = folder / LIBRARY
    source = get_plotlyjs()
    if not path.is_file() or path.stat().st_size != len(source.encode()):
        write_text(path, source)
    return path


def write_html(figure: go.Figure, path: Path, *, plotlyjs: str = "inline") -> Path:
    """Write a page with one figure.

    Args:
        figure: What to write.
        path: Where to.
        plotlyjs: Where the library of the figure is: ``"inline"`` (5 MB more), ``"beside"`` (a file
            in the same folder, or else the network) or ``"cdn"`` (the network).

    Raises:
        SettingError: ``plotlyjs`` is none of these.
    """
    (part,) = figures_html([figure], plotlyjs)
    if plotlyjs == "beside":
        write_library(path.parent)
    return write_text(path, _PAGE.format(title=shown(path.stem), part=part))


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
</head>
<body>
{part}
</body>
</html>
"""
