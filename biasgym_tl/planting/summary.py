"""What a study of plants says: methods over plants, and two pictures of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from scipy.stats import bootstrap

from biasgym_tl.figures import draw, keep_figure, recipe
from biasgym_tl.files import write_csv
from biasgym_tl.planting.study import Found
from biasgym_tl.plots.figure import GREY, Series, error_bars, styled
from biasgym_tl.stats import Interval

FEWEST = 8
"""Plants that an interval needs."""


def tables(found: Sequence[Found]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """One row a plant; one row a plant and method; one row a changed head and method."""
    plants, methods, heads = [], [], []
    for each in found:
        name, done = each.plant.name, each.planted
        strongest, about = done.truth().iloc[0], dataclasses.asdict(each.plant)
        about["about"] = about.pop("target")  # a column "target" is its rise
        plants.append(
            {
                "plant": name, **about, **done.report,
                "refused": each.refused, "n_planted": len(done.heads),
                "n_carriers": len(done.carriers()), "strongest": strongest["head"],
                "restored": strongest["restored"],
            }
        )  # fmt: skip
        for method, known in each.recoveries.items():
            about = {"plant": name, "half": each.plant.half, "method": method}
            row = {**about, "refused": each.refused} | {
                field: getattr(known, field)
                for field in ("auroc", "auroc_before", "auroc_planted", "precision", "correlation")
            }
            row |= {"rank": known.ranks[0] if known.ranks else math.nan, "chance": known.chance[0]}
            row |= {"p": known.chance[1], "readers": " ".join(map(str, known.readers))}
            row["n_carriers"] = len(known.carriers)
            row["effective_heads"] = each.effective_heads.get(method, math.nan)
            if gone := each.removals.get(method):
                at_random = sum(gone.removed_random) / len(gone.removed_random)
                row |= {"removed": gone.removed, "removed_planted": gone.removed_planted}
                row |= {"removed_random": at_random, "kl": gone.kl, "kl_planted": gone.kl_planted}
                row["kl_unsteered"] = gone.kl_unsteered
            methods.append(row)
            for head, rank in zip(known.carriers, known.ranks, strict=True):
                restored = done.restored[done.heads.index(head)].item()
                heads.append({**about, "head": str(head), "restored": restored, "rank": rank})
    return pd.DataFrame(plants), pd.DataFrame(methods), pd.DataFrame(heads)


def rivals_table(found: Sequence[Found]) -> pd.DataFrame:
    """One row a plant, rival and KL: the fields of :class:`TakenBack`."""
    return pd.DataFrame(
        [
            {"plant": each.plant.name, **dataclasses.asdict(taken)}
            for each in found
            for taken in each.taken_back
        ]
    )


def over_plants(values: pd.Series) -> Interval:
    """Mean over plants with a 95% interval from resampled plants (percentiles, which stay in the
    range of the values); without ends for fewer than :data:`FEWEST`."""
    found = values.dropna().to_numpy(dtype=float)
    mean = float(found.mean()) if len(found) else math.nan
    if len(found) < FEWEST:
        return Interval(mean, math.nan, math.nan)
    drawn = bootstrap((found,), np.mean, n_resamples=1999, method="percentile", random_state=0)
    return Interval(mean, *map(float, drawn.confidence_interval))


def by_method(methods: pd.DataFrame) -> pd.DataFrame:
    """One row a method: means over plants, with their intervals in words; and the rank correlation
    of the heads that its map's effect amounts to with the number of carriers."""
    rows = []
    for name, of_name in methods.groupby("method", sort=False):
        row = {"method": name, "plants": len(of_name), "first": (of_name["rank"] == 1).mean()}
        row |= {"median rank": of_name["rank"].median()}
        for column in (
            "auroc", "auroc_before", "chance", "precision", "correlation", "removed",
            "removed_planted", "removed_random", "kl", "kl_planted", "kl_unsteered",
        ):  # fmt: skip
            if column in of_name:
                row[column] = str(over_plants(of_name[column].astype(float))).replace("+", "")
        some = of_name[of_name["effective_heads"].notna()]
        if some["n_carriers"].nunique() > 1:
            row["heads told apart"] = of_name["n_carriers"].corr(
                of_name["effective_heads"], method="spearman"
            )
        rows.append(row)
    return pd.DataFrame(rows)


def plot_recovery(methods: pd.DataFrame) -> go.Figure:
    """AUROC of the carriers by method: a point a plant, the mean with its interval, and the mean of
    the same maps before planting."""
    names = list(dict.fromkeys(methods["method"]))
    rows = {name: methods[methods["method"] == name] for name in names}
    means = [over_plants(rows[name]["auroc"].astype(float)) for name in names]
    before = [over_plants(rows[name]["auroc_before"].astype(float)).estimate for name in names]
    figure = go.Figure()
    figure.add_scatter(
        x=methods["auroc"], y=methods["method"], mode="markers", name="one plant",
        marker={"color": Series.of(1).colour, "opacity": 0.35, "size": 7},
        customdata=methods["plant"], hovertemplate="%{customdata}: %{x:.2f}<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        x=before, y=names, mode="markers", name="mean before planting",
        marker={"color": GREY, "symbol": "diamond-open", "size": 11},
    )  # fmt: skip
    figure.add_scatter(
        x=[mean.estimate for mean in means], y=names, mode="markers", name="mean, 95% interval",
        marker={"color": Series.of(0).colour, "size": 11}, error_x=error_bars(means, cap=4),
    )  # fmt: skip
    figure.add_vline(x=0.5, line={"color": GREY, "dash": "dot"})
    figure.update_yaxes(autorange="reversed")
    return styled(
        figure,
        "Which methods find the heads that carry a planted bias?",
        f"{methods['plant'].nunique()} plants; AUROC: probability that a carrier stands above "
        "another head (0.5: chance)",
        x="AUROC of the carriers",
        height=120 + 34 * len(names),
    )


def plot_power(heads: pd.DataFrame, names: list[str]) -> go.Figure:
    """Rank of each carrier on the maps of some methods, by how much it carries."""
    figure = go.Figure()
    for i, name in enumerate(names):
        some, look = heads[heads["method"] == name], Series.of(i)
        figure.add_scatter(
            x=some["restored"], y=some["rank"], mode="markers", name=name,
            marker={"color": look.colour, "symbol": look.symbol, "size": 9, "opacity": 0.7},
            customdata=some["plant"] + ": " + some["head"],
            hovertemplate="%{customdata}: %{x:.1f} nats, rank %{y}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(type="log", tickvals=[0.1, 0.3, 0.5, 1, 2, 3, 5])
    figure.update_yaxes(type="log", autorange="reversed", tickvals=[1, 2, 5, 10, 30, 100, 300])
    return styled(
        figure,
        "How strong must a carrier be to be found?",
        "a point: one carrier of one plant; top: highest of all heads",
        x="nats that restoring the head takes back",
        y="rank on the map",
    )


def write_study(
    plants: pd.DataFrame,
    methods: pd.DataFrame,
    heads: pd.DataFrame,
    folder: Path,
    *,
    rivals: pd.DataFrame | None = None,
    png: bool = True,
) -> str | None:
    """Tables and pictures into a folder; why there are no PNGs, if they were asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "plants.csv", plants)
    if rivals is not None and len(rivals):
        write_csv(folder / "rivals.csv", rivals)
    if methods.empty:
        return None
    write_csv(folder / "methods.csv", methods)
    write_csv(folder / "heads.csv", heads)
    write_csv(folder / "summary.csv", by_method(methods))
    runs = [name for name in dict.fromkeys(methods["method"]) if name.endswith("biased")]
    asked = methods[~methods["method"].str.endswith("trained row")]
    figures = {"recovery": plot_recovery(asked)}
    if not heads.empty:
        figures["power"] = plot_power(heads, runs)
    kept = {name: keep_figure(folder / f"{name}.figure.json", f) for name, f in figures.items()}
    recipes = {name: recipe("as it was drawn", [path.name]) for name, path in kept.items()}
    return draw(folder, recipes, png=png)
