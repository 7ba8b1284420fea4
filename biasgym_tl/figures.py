"""Figures that can be drawn again: beside each lies a JSON that says what it shows, and of what.

``heatmap.json`` beside ``heatmap.html`` and ``heatmap.png`` names the kind of picture, the saved
results that it shows, and its options; :func:`redraw` does it again from these.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import plotly.graph_objects as go

from biasgym_tl.errors import SettingError, StoreError
from biasgym_tl.evaluation.report import Report
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.manifest import settle
from biasgym_tl.plots import (
    plot_agreement,
    plot_benefit_and_damage,
    plot_comparison,
    plot_conditions,
    plot_frontier,
    plot_heads,
    plot_k_sweep,
    plot_loss,
    plot_methods,
    plot_off_target,
    plot_slider,
    plot_specificity,
    plot_targets,
    write_html,
    write_pngs,
)
from biasgym_tl.scoping.compare import compare
from biasgym_tl.scoping.damage import HeadDamage, KSweep
from biasgym_tl.scoping.scores import HeadScores
from biasgym_tl.store import BROKEN, kind_of, read_json, read_kind, versions, write_json


def _figure(path: Path) -> go.Figure:
    return read_kind(path, "Figure", lambda values: go.Figure(_plain(values["figure"])))


def _plain(value: Any) -> Any:
    """Parts of a figure with no other markup in their texts than what lays out a title."""
    if isinstance(value, str):
        return _OTHER_MARKUP.sub("&lt;", value)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return list(map(_plain, value)) if isinstance(value, list) else value


_OTHER_MARKUP = re.compile(r"<(?!(?:/?(?:b|i|em|extra|sub|sup)|br */?)>)", re.IGNORECASE)


_KINDS: dict[str, Callable[[Path], Any]] = {
    kind.__name__: kind.load for kind in (BiasToken, HeadDamage, HeadScores, KSweep, Report)
} | {"Figure": _figure}


def _agreement(maps: Mapping[str, HeadScores], **options: Any) -> go.Figure:
    return plot_agreement(compare(list(maps.values()), names=list(maps)), **options)


def _each(plot: Callable[..., go.Figure]) -> Callable[..., go.Figure]:
    """Of a plot that takes its results one by one."""
    return lambda found, **options: plot(*found.values(), **options)


PLOTS: dict[str, Callable[..., go.Figure]] = {
    "agreement": _agreement,
    "as it was drawn": _each(lambda figure: figure),
    "conditions": _each(plot_conditions),
    "benefit and damage": _each(plot_benefit_and_damage),
    "comparison": lambda found, **options: plot_comparison(list(found.values()), **options),
    "frontier": _each(plot_frontier),
    "heads": _each(plot_heads),
    "k sweep": _each(plot_k_sweep),
    "loss": _each(plot_loss),
    "methods": plot_methods,
    "off target": plot_off_target,
    "slider": plot_slider,
    "specificity": plot_specificity,
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

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Recipe:
        """From JSON; a part of another type is a StoreError."""
        plot, of, options = (values[key] for key in cls._fields)
        texts = isinstance(of, dict) and all(isinstance(file, str) for file in of.values())
        if not (isinstance(plot, str) and texts and isinstance(options, dict)):
            raise StoreError(
                f"recipe of a figure must name a plot, files by name, and options, got {values!r}."
            )
        return cls(plot, of, options)

    def figure(self, folder: Path, *, within: Path | None = None) -> go.Figure:
        """Draw it from saved results, seen from ``folder``, none outside ``within`` (default: it).

        Raises:
            StoreError: a result is missing, broken or outside, or the recipe names no known plot or
                option.
        """
        if self.plot not in PLOTS:
            raise StoreError(f"plot must be one of {sorted(PLOTS)}, got {self.plot!r}.")
        files = {name: _inside(folder / file, within or folder) for name, file in self.of.items()}
        found = {name: load_any(path) for name, path in files.items()}
        try:
            return PLOTS[self.plot](found, **self.options)
        except SettingError:
            raise
        except BROKEN as error:
            raise StoreError(f"plot {self.plot!r} must fit its options, but: {error}.") from error


def _inside(path: Path, folder: Path) -> Path:
    """The path, unless it leads out of the folder, by ``..`` or by a link."""
    if "\0" in str(path) or not path.resolve().is_relative_to(folder.resolve()):
        raise StoreError(
            f"files of a figure must lie in its folder {str(folder)!r}, got {str(path)!r}."
        )
    return path


def load_any(path: Path) -> Any:
    """A saved result of any kind that a figure can be made of; otherwise a StoreError."""
    kind = kind_of(path)
    if kind not in _KINDS:
        raise StoreError(f"{str(path)!r} must hold one of {sorted(_KINDS)}, got {kind!r}.")
    return _KINDS[kind](path)


def keep_figure(path: Path, figure: go.Figure) -> Path:
    """Save a figure whose results are not kept, such as that of a notebook, to be drawn again."""
    return write_json(path, {"kind": "Figure", "figure": json.loads(figure.to_json())})


def recipe(plot: str, of: Mapping[str, str] | Sequence[str], **options: Any) -> Recipe:
    """Of a plot of saved results, by the name that they have in the figure or without one."""
    return Recipe(plot, dict(of) if isinstance(of, Mapping) else {f: f for f in of}, options)


def draw(folder: Path, recipes: Mapping[str, Recipe], *, png: bool = True) -> str | None:
    """Write figures: for each name ``.html``, ``.png``, and ``.json``, its recipe with versions.

    Results are looked for beside each figure. Without ``png`` no browser has to start. Returns why
    there are no PNGs, if they were asked for and there are none.
    """
    paths = {name: _inside(folder / name, folder) for name in recipes}
    figures = {name: one.figure(paths[name].parent, within=folder) for name, one in recipes.items()}
    for name, one in recipes.items():
        write_html(figures[name], _with(paths[name], "html"), plotlyjs="beside")
        write_json(_with(paths[name], "json"), {**one._asdict(), "versions": versions()})
    pngs = {_with(paths[name], "png"): figure for name, figure in figures.items()}
    return write_pngs(pngs) if png else None


def _with(path: Path, ending: str) -> Path:
    """The path with an ending; a dot in its name ("lr-0.01") begins none."""
    return path.with_name(f"{path.name}.{ending}")


def redraw(folder: Path) -> tuple[list[str], str | None]:
    """Draw every figure in a folder and below again, from its recipe.

    Returns the name of each, and why there are no PNGs, if there are none.

    Raises:
        StoreError: there is no figure with a recipe, or see :meth:`Recipe.figure`.
    """
    settle(folder)
    recipes = {}
    for path in sorted(folder.rglob("*.json")):
        name = path.with_suffix("").relative_to(folder)
        if any(part.startswith(".") for part in name.parts):
            continue  # no result yet, but in a temporary folder
        values = read_json(path)
        if isinstance(values, dict) and set(Recipe._fields) <= set(values):
            recipes[str(name)] = Recipe.read(values)
    if not recipes:
        raise StoreError(
            f"folder must hold figures with their recipes, got none in {str(folder)!r}. They are "
            "written by 'biasgym demo', 'run' and 'evaluate'."
        )
    return list(recipes), draw(folder, recipes)
