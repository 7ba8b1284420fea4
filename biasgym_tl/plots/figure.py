"""The look that all figures share, and writing them to files."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from biasgym_tl.stats import Interval
from biasgym_tl.store import write_atomically, write_text

FONT = "Helvetica, Arial, sans-serif"


def styled(figure: go.Figure, title: str, *, width: int = 720, height: int = 640) -> go.Figure:
    """Apply the common look; ``title`` may hold a second line after ``<br>``."""
    figure.update_layout(
        title={"text": title, "x": 0.02, "xanchor": "left"},
        template="plotly_white",
        font={"family": FONT, "size": 14},
        width=width,
        height=height,
        margin={"l": 70, "r": 30, "t": 90, "b": 60},
    )
    return figure


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


def write_html(figure: go.Figure, path: Path) -> Path:
    """Write a page that loads plotly.js from its CDN, so the file stays small."""
    return write_text(path, figure.to_html(include_plotlyjs="cdn", div_id=path.stem))


def write_png(figure: go.Figure, path: Path) -> str | None:
    """Write a PNG through kaleido; where that is not possible, return one line that says why."""
    try:
        import kaleido  # noqa: F401
    except ImportError:
        return "PNG not written: kaleido is not installed. Run: pip install 'biasgym-tl[png]'"
    from kaleido.errors import ChromeNotFoundError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            image = figure.to_image(format="png", scale=2)
    except (ChromeNotFoundError, RuntimeError, OSError) as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        return (
            "PNG not written: kaleido found no usable Chrome or Chromium. Install one (Debian: "
            f"apt install chromium; elsewhere: plotly_get_chrome). ({reason})"
        )
    write_atomically(path, lambda to: to.write_bytes(image))
    return None
