"""Figures that can be drawn again: beside each lies a JSON that says what it shows, and of what.

``heatmap.json`` beside ``heatmap.html`` and ``heatmap.png`` names the kind of picture, the saved
results that it shows, and its options; :func:`redraw` does it again from these.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import plotly.graph_objects as go

from biasgym_tl.errors import StoreError
from biasgym_tl.evaluation.random_control import RandomControl
from biasgym_tl.evaluation.report import Report
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.plots import (
    plot_agreement,
    plot_benefit_and_damage,
    plot_comparison,
    plot_frontier,
    plot_heads,
    plot_k_sweep,
    plot_loss,
    plot_methods,
    plot_settings,
    plot_slider,
    plot_targets,
    write_html,
    write_png,
)
from biasgym_tl.scoping.compare import compare
from biasgym_tl.scoping.damage import HeadDamage
from biasgym_tl.scoping.k_sweep import KSweep
from biasgym_tl.scoping.scores import HeadScores
from biasgym_tl.store import kind_of, read_json, read_kind, versions, write_json


def _figure(path: Path) -> go.Figure:
    return read_kind(path, "Figure", lambda values: go.Figure(values["figure"]))


_KINDS: dict[str, Callable[[Path], Any]] = {
    kind.__name__: kind.load
    for kind in (BiasToken, HeadDamage, HeadScores, KSweep, RandomControl, Report)
} | {"Figure": _figure}


def _agreement(maps: Mapping[str, HeadScores], **options: Any) -> go.Figure:
    return plot_agreement(compare(list(maps.values()), names=list(maps)), **options)


def _each(plot: Callable[..., go.Figure]) -> Callable[..., go.Figure]:
    """Of a plot that takes its results one by one."""
    return lambda found, **options: plot(*found.values(), **options)


def _list(plot: Callable[..., go.Figure]) -> Callable[..., go.Figure]:
    return lambda found, **options: plot(list(found.values()), **options)


PLOTS: dict[str, Callable[..., go.Figure]] = {
    "agreement": _agreement,
    "benefit and damage": _each(plot_benefit_and_damage),
    "as it was drawn": _each(lambda figure: figure),
    "comparison": _list(plot_comparison),
    "frontier": _each(plot_frontier),
    "heads": _each(plot_heads),
    "k sweep": _each(plot_k_sweep),
    "loss": _each(plot_loss),
    "methods": plot_methods,
    "settings": _each(plot_settings),
    "slider": plot_slider,
    "targets": _each(plot_targets),
}
"""By name, what draws a figure of results, which are given by name."""


class Recipe(NamedTuple):
    """What a figure is made of."""

    plot: str
    """Key of :data:`PLOTS`."""
    of: dict[str, str]
    """Name of each result in the figure -> its file, seen from the figure's folder."""
    options: dict[str, Any]

    def figure(self, folder: Path) -> go.Figure:
        """Draw it from the saved results.

        Raises:
            StoreError: a result is missing or broken, or the recipe names no known plot or option.
        """
        if self.plot not in PLOTS:
            raise StoreError(f"plot must be one of {sorted(PLOTS)}, got {self.plot!r}.")
        found = {name: load_any(folder / file) for name, file in self.of.items()}
        try:
            return PLOTS[self.plot](found, **self.options)
        except TypeError as error:
            raise StoreError(f"plot {self.plot!r} must fit its options, but: {error}.") from error


def load_any(path: Path) -> Any:
    """Read a saved result of whatever kind.

    Raises:
        StoreError: the file is missing or broken, or no figure can be made of its kind.
    """
    kind = kind_of(path)
    if kind not in _KINDS:
        raise StoreError(f"{str(path)!r} must hold one of {sorted(_KINDS)}, got {kind!r}.")
    return _KINDS[kind](path)


def keep_figure(path: Path, figure: go.Figure) -> Path:
    """Save a figure whose results are not kept, such as that of a notebook, to be drawn again."""
    return write_json(path, {"kind": "Figure", "figure": json.loads(figure.to_json())})


def draw(
    path: Path, plot: str, of: Mapping[str, str] | Sequence[str], **options: Any
) -> str | None:
    """Write a figure: ``path`` with ``.html``, ``.png``, and ``.json``, its recipe and versions.

    Args:
        path: Without an ending; results are looked for in its folder.
        plot: Key of :data:`PLOTS`.
        of: Files of saved results, by the name that they have in the figure or without one.
        options: Of the plot.

    Returns:
        Why there is no PNG, if there is none.

    Raises:
        StoreError: see :meth:`Recipe.figure`.
    """
    named = dict(of) if isinstance(of, Mapping) else {Path(file).stem: file for file in of}
    return _written(path, Recipe(plot, named, options))


def said_once(remarks: Iterable[str | None]) -> list[str]:
    """What :func:`draw` returned for several figures, each remark once."""
    return list(dict.fromkeys(filter(None, remarks)))


def redraw(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """Draw every figure in a folder and below again, from its recipe.

    Yields:
        The recipe of each figure, and why it has no PNG, if it has none.

    Raises:
        StoreError: there is no figure with a recipe, or see :meth:`Recipe.figure`.
    """
    found = [path for path in sorted(folder.rglob("*.json")) if _is_recipe(read_json(path))]
    if not found:
        raise StoreError(
            f"folder must hold figures with their recipes, got none in {str(folder)!r}. They are "
            "written by 'biasgym demo', 'run' and 'evaluate'."
        )
    for path in found:
        values = read_json(path)
        yield path, _written(path.with_suffix(""), Recipe(*(values[key] for key in Recipe._fields)))


def _written(path: Path, recipe: Recipe) -> str | None:
    figure = recipe.figure(path.parent)
    write_html(figure, path.with_suffix(".html"))
    write_json(path.with_suffix(".json"), {**recipe._asdict(), "versions": versions()})
    return write_png(figure, path.with_suffix(".png"))


def _is_recipe(values: Any) -> bool:
    return isinstance(values, dict) and set(Recipe._fields) <= set(values)
