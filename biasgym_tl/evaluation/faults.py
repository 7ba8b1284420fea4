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
    names = [result.name for result in report.results]
    if len(set(names)) < len(names):
        yield f"names of conditions must differ, got {names}"
    for measure in report.measured:
        if missing := sorted(measure.rests_on - set(names)):
            yield f"{measure.key} must be compared with conditions of the report, got {missing}"
        if measure.read not in READERS:
            yield f"{measure.key} must be read by one of {list(READERS)}, got {measure.read!r}"
        if measure.kind not in KINDS:
            yield f"{measure.key} must be of one of the kinds {KINDS}, got {measure.kind!r}"
    if len(report.measures) < len(report.measured):
        yield f"keys of measures must differ, got {[m.key for m in report.measured]}"
    for what, found in (
        ("clusters must be of measures", set(report.clusters) - set(report.measures)),
        (
            "control_of must name conditions",
            {r.control_of for r in report.results} - {*names, None},
        ),
    ):
        if found:
            yield f"{what}, got {sorted(map(str, found))}"
    share = report.settings.get("attribution_in_heads")
    if not isinstance(share, int | float | None):
        yield f"attribution_in_heads must be a number or None, got {share!r}"
    yield from _sizes(report)
    for result in report.results:
        for key, verdicts in result.verdicts.items():
            if len(verdicts) not in (0, len(result.items.get(key, ()))):
                yield f"verdicts on {key} of {result.name!r} must be one a text"


def _sizes(report: Report) -> Iterator[str]:
    """Items of one key are as many in every condition, prompts by the report's targets."""
    for asked in report.asked.values():
        if len(asked.prompts) != len(asked.targets):
            yield f"answers to {asked.bias} must have a target each, got {len(asked.targets)}"
    sizes: dict[str, tuple[int, ...]] = {k: (len(a.prompts),) for k, a in report.asked.items()}
    sizes |= {key: (len(found),) for key, found in report.clusters.items()}
    found = [(r.name, k, items) for r in report.results for k, items in r.items.items()]
    for name, key, items in [*found, *(("floors", k, v) for k, v in report.floors.items())]:
        size: tuple[int, ...] = (len(items),)
        if items and isinstance(items[0], list):
            widths = {len(row) if isinstance(row, list) else 0 for row in items}
            size = (len(items), *sorted(widths))
            if widths != {len(report.targets)}:
                yield f"{key} of {name!r} must have {len(report.targets)} targets, got {widths}"
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
