"""What a run of a protocol leaves behind: results, tables, figures, one manifest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd
import torch

from biasgym_tl.evaluation.report import Report
from biasgym_tl.figures import Recipe, draw, recipe
from biasgym_tl.files import write_csv
from biasgym_tl.manifest import write_results
from biasgym_tl.protocol.map_table import map_table
from biasgym_tl.protocol.protocol import Protocol
from biasgym_tl.protocol.result import BiasResult, ProtocolResult
from biasgym_tl.stats import Interval, few_rows_interval
from biasgym_tl.steering.selection import Selection
from biasgym_tl.store import Result

POOLED = (
    "token_log_odds", "target_log_odds", "other_log_odds", "token_strength", "target_strength",
    "other_strength", "token_degenerate", "target_degenerate", "damage_loss", "facts", "blimp",
    "mmlu",
)  # fmt: skip
"""Measures whose mean over biases is the paper's table."""


def write_outputs(result: ProtocolResult, out: Path) -> str | None:
    """Write everything to the folder ``out``; files of several biases begin with their names.

    Returns:
        Why there are no PNGs, if there are none.
    """

    def write(folder: Path) -> str | None:
        figures: dict[str, Recipe] = {}
        for name, found in result.biases.items():
            prefix = _prefix(result.protocol, name)
            write_bias(found, folder, result.protocol, prefix)
            figures |= {f"{prefix}{key}": each for key, each in _figures(found, prefix).items()}
        if len(result.biases) > 1:
            write_csv(folder / "table.csv", pooled_table(reports_of(result)))
            files = {n: f"{_prefix(result.protocol, n)}report.json" for n in result.biases}
            figures |= _off_target({n: (r, files[n]) for n, r in reports_of(result).items()})
        return draw(folder, figures)

    return write_results(out, write, result.manifest())


def write_part(name: str, found: BiasResult, out: Path, protocol: Protocol) -> None:
    """What there is of one bias so far, with its heatmaps, as pages alone."""
    prefix = _prefix(protocol, name)

    def write(folder: Path) -> None:
        write_bias(found, folder, protocol, prefix)
        if not found.reports:
            figures = {f"{prefix}{key}": each for key, each in _heatmaps(found, prefix).items()}
            draw(folder, figures, png=False)

    write_results(out, write)


def tables_of(out: Path, files: Iterable[str]) -> dict[str, pd.DataFrame]:
    """By name, those of a run's files that are tables and still there."""
    tables = (name for name in files if name.endswith(".csv") and (out / name).exists())
    return {name: pd.read_csv(out / name) for name in tables}


def farthest(before: Mapping[str, pd.DataFrame], after: Mapping[str, pd.DataFrame]) -> str:
    """How far apart the numbers of two runs are, in one line."""
    found, others = [], []
    for name, old in before.items():
        new = after.get(name)
        names = [str(column) for column in old if old[column].dtype.kind not in "iuf"]
        alike = new is not None and list(old) == list(new) and len(old) == len(new)
        if new is None or not alike or not old[names].equals(new[names]):
            others.append(name)
            continue
        one, other = (table.drop(columns=names).astype(float) for table in (old, new))
        apart = (one - other).abs().fillna(0).mask(one.isna() != other.isna(), math.inf).to_numpy()
        if apart.size:
            row, column = divmod(int(apart.argmax()), apart.shape[1])
            at = " ".join(map(str, new[names].iloc[row].dropna()))
            found.append((float(apart.max()), f"in {one.columns[column]} of {at} ({name})"))
    said = []
    if found:
        largest, where = max(found)
        said.append(f"The largest difference in its tables is {largest:.2g}, {where}.")
    if others:
        said.append(f"With other rows or columns: {', '.join(others)}.")
    return " ".join(said)


def reports_of(result: ProtocolResult) -> dict[str, Report]:
    """By bias."""
    return {name: found.report for name, found in result.biases.items()}


def _prefix(protocol: Protocol, bias: str) -> str:
    return f"{bias}-" if len(protocol.biases) > 1 else ""


def write_bias(found: BiasResult, out: Path, protocol: Protocol, prefix: str) -> None:
    """Results of one bias, in files that begin with ``prefix``."""
    for seed, row in found.rows.items():
        row.save(out / f"{prefix}row-{seed}")
    for name, maps in found.maps.items():
        for seed, scores in maps.items():
            scores.save(out / f"{prefix}map-{name}-{seed}")
    for name, by_seed in found.choices.items():
        for seed, heads in by_seed.items():
            if isinstance(heads, Selection):
                heads.save(out / f"{prefix}heads-{name}-{seed}.json")
    beside: dict[str, Result] = {f"sweep-{name}": each for name, each in found.sweeps.items()}
    beside |= {f"rival-{name}": each for name, each in found.rivals.items()}
    for name, result in beside.items():
        result.save(out / f"{prefix}{name}")
    for report in found.reports:
        write_report(report, out, prefix)
    if found.maps:
        write_csv(out / f"{prefix}maps.csv", map_table(found.maps, protocol.maps))


def write_report(report: Report, out: Path, prefix: str = "") -> None:
    """A report as JSON, as a page and as a table, in files that begin with ``prefix``."""
    report.save(out / f"{prefix}report.json")
    report.to_html(out / f"{prefix}report.html", plotlyjs="beside")
    report.to_csv(out / f"{prefix}table.csv")


def _figures(found: BiasResult, prefix: str) -> Mapping[str, Recipe]:
    rows = [f"{prefix}row-{seed}.safetensors" for seed in found.rows][:1]
    report = f"{prefix}report.json"
    return {
        **({"loss": recipe("loss", rows)} if rows else {}),
        **_off_target({found.report.bias: (found.report, report)}),
        "conditions": recipe("conditions", [report]),
        "frontier": recipe("frontier", [report]),
        **_heatmaps(found, prefix),
    }


def _off_target(reports: Mapping[str, tuple[Report, str]]) -> Mapping[str, Recipe]:
    """Two figures of the biases of which a steered condition was measured off target."""
    files = {
        bias: file
        for bias, (report, file) in reports.items()
        if {result.name for result in report.steered} & report.off_target.keys()
    }
    plots = {"off-target": "off target", "specificity": "specificity"} if files else {}
    return {name: recipe(plot, files) for name, plot in plots.items()}


def _heatmaps(found: BiasResult, prefix: str) -> Mapping[str, Recipe]:
    figures = {}
    for name, by_seed in found.maps.items():
        first = next(iter(by_seed))
        chosen = [c for c in found.choices.values() if _is_of(c.get(first), name, found)]
        mark = {"mark_top": len(chosen[0][first])} if chosen else {}
        figures[f"heatmap-{name}"] = recipe(
            "heads", [f"{prefix}map-{name}-{first}.safetensors"], **mark
        )
    for name in found.sweeps:
        figures[f"sweep-{name}"] = recipe("k sweep", [f"{prefix}sweep-{name}.safetensors"])
    return figures


def pooled_table(reports: Mapping[str, Report]) -> pd.DataFrame:
    """Means over biases, and changes from the baseline with 95% intervals over biases: one row per
    condition and measure. With few biases the intervals are wide, and say so."""
    first = next(iter(reports.values()))
    rows = []
    for key in (key for key in POOLED if key in first.measures):
        for name in first.shown:
            known = [r for r in reports.values() if name in r.shown]
            levels = [r.interval(name, key) for r in known]
            changes = [r.change(name, key, r.baseline(name, key)) for r in known]
            level, change = (
                [x.estimate for x in found if x is not None and not math.isnan(x.estimate)]
                for found in (levels, changes)
            )
            if level:
                over = Interval(math.nan, math.nan, math.nan)
                if change:
                    over = few_rows_interval(torch.tensor(change, dtype=torch.float64)[:, None])
                mean = sum(level) / len(level)
                rows.append(
                    {"condition": name, "measure": key, "biases": len(level), "mean": mean,
                     "change_mean": over.estimate, "change_low": over.low, "change_high": over.high}
                )  # fmt: skip
    return pd.DataFrame(rows)


def _is_of(heads: object, name: str, found: BiasResult) -> bool:
    """Whether a choice is the top of the first seed's map of this name."""
    if not isinstance(heads, Selection):
        return False
    scores = next(iter(found.maps[name].values()))
    return heads.token == scores.token and heads.heads == scores.top(len(heads))
