"""What does not fit together in a report that was read from a file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from biasgym_tl.benchmarks.benchmark import KINDS
from biasgym_tl.evaluation.readers import READERS

if TYPE_CHECKING:
    from biasgym_tl.evaluation.report import Report


def faults(report: Report) -> Iterator[str]:
    """Every number that another one decides, and every name that must be known."""
    yield from _names(report)
    share = report.settings.get("attribution_in_heads")
    if not isinstance(share, int | float | None):
        yield f"attribution_in_heads must be a number or None, got {share!r}"
    yield from _sizes(report)
    for result in report.results:
        for key, verdicts in result.verdicts.items():
            if len(verdicts) not in (0, len(result.items.get(key, ()))):
                yield f"verdicts on {key} of {result.name!r} must be one a text"


def _names(report: Report) -> Iterator[str]:
    names = [result.name for result in report.results]
    keys = [measure.key for measure in report.measured]
    for what, found in (("names of conditions", names), ("keys of measures", keys)):
        if len(set(found)) < len(found):
            yield f"{what} must differ, got {found}"
    controlled = [r.control_of for r in report.results if r.control_of is not None]
    since = [r.since for r in report.results if r.since is not None]
    for what, used, known in (
        ("clusters must be of measures", report.clusters, keys),
        ("control_of must name conditions", controlled, names),
        ("since must name conditions", since, names),
        *((f"{m.key} must be compared with conditions", m.rests_on, names)
          for m in report.measured),
        *((f"{m.key} must be read by one of {list(READERS)}", [m.read], READERS)
          for m in report.measured),
        *((f"{m.key} must be of one of the kinds {KINDS}", [m.kind], KINDS)
          for m in report.measured),
    ):  # fmt: skip
        if missing := sorted(set(used) - set(known)):
            yield f"{what}, got {missing}"


def _sizes(report: Report) -> Iterator[str]:
    """Items of one key are as many in every condition, prompts by targets or what stands there."""
    for asked in report.asked.values():
        if len(asked.prompts) != len(asked.targets):
            yield f"answers to {asked.bias} must have a target each, got {len(asked.targets)}"
    sizes: dict[str, tuple[int, ...]] = {k: (len(a.prompts),) for k, a in report.asked.items()}
    sizes |= {key: (len(found),) for key, found in report.clusters.items()}
    columns = report.settings.get("columns") or {}
    found = [(r.name, k, items) for r in report.results for k, items in r.items.items()]
    for name, key, items in [*found, *(("floors", k, v) for k, v in report.floors.items())]:
        size: tuple[int, ...] = (len(items),)
        if items and isinstance(items[0], list):
            widths = {len(row) if isinstance(row, list) else 0 for row in items}
            size = (len(items), *sorted(widths))
            n = len(columns.get(key, report.targets))
            if widths != {n}:
                yield f"{key} of {name!r} must have {n} targets, got {widths}"
        if sizes.setdefault(key, size) != size:
            yield f"{key} of {name!r} must have the size {sizes[key]}, got {size}"
        if key not in report.asked and any(isinstance(item, str) for item in items):
            yield f"{key} of {name!r} must answer what is asked, which is not there"
        if not all(_is_number(x, or_nan=key in report.clusters) for x in _flat(items)):
            yield f"{key} of {name!r} must hold finite numbers"


def _flat(items: list[Any]) -> Iterator[Any]:
    for item in items:
        if isinstance(item, list):
            yield from item
        elif not isinstance(item, str):
            yield item


def _is_number(item: Any, *, or_nan: bool) -> bool:
    return isinstance(item, int | float) and (math.isfinite(item) or or_nan)
