"""Results as tables and lines for the console, in which no text can do more than be read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from biasgym_tl.slot import SLOT, fill

if TYPE_CHECKING:  # what prints an error need not import all that can fail
    from biasgym_tl.benchmarks.benchmark import Measure
    from biasgym_tl.evaluation.report import Report
    from biasgym_tl.protocol.result import ProtocolResult
    from biasgym_tl.stats import Interval

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and newline
    "\u2028-\u202e\u2066-\u2069"  # breaks of lines, changes of direction
    "\ud800-\udfff]"  # halves of pairs, which cannot be written
)


def visible(text: object) -> str:
    """A text as it may be sent to a terminal: what would steer it is shown, as ``\\x1b``."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def visible_line(text: object) -> str:
    """The same in one line."""
    return " ".join(visible(text).split())


def as_json(values: Any) -> Any:
    """Values as JSON can hold them: a table as a list of rows, null for what is no number."""
    if hasattr(values, "to_json"):
        return json.loads(values.to_json(orient="records", double_precision=15))
    if isinstance(values, Mapping):
        return {str(key): as_json(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [as_json(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def result_values(result: ProtocolResult) -> dict[str, Any]:
    """What one run of a protocol found, under the names that its files have."""
    from biasgym_tl.protocol.outputs import pooled_table, reports_of

    biases = {}
    for name, found in result.biases.items():
        biases[name] = {
            "heads": {
                f"{choice}-{seed}": list(map(str, heads))
                for choice, by_seed in found.choices.items()
                for seed, heads in by_seed.items()
            },
            **report_values(found.report),
        }
    pooled = pooled_table(reports_of(result)) if len(biases) > 1 else None
    return {"biases": biases, "table": pooled}


def report_values(report: Report) -> dict[str, Any]:
    """The numbers of one report."""
    from biasgym_tl.evaluation.specificity import off_target_table

    return {
        "table": report.intervals(),
        "off_target": off_target_table(report),
        "warnings": report.warnings(),
    }


def show_result(result: ProtocolResult, console: Console) -> None:
    """Print what one run of a protocol found."""
    for found in result.biases.values():
        maps = [scores for by_seed in found.maps.values() for scores in by_seed.values()]
        heads = [each for by_seed in found.choices.values() for each in by_seed.values()]
        for each in (*found.rows.values(), *maps, *heads, *found.sweeps.values()):
            _print(each, console)
        show_report(found.report, console)
    if len(result.biases) > 1:
        console.print(_pooled(result))


def _pooled(result: ProtocolResult) -> Table:
    """Means over biases of what a report's own table shows."""
    from biasgym_tl.protocol.outputs import pooled_table, reports_of
    from biasgym_tl.stats import Interval

    reports = reports_of(result)
    table = _table(f"Means over {len(reports)} biases, 95% intervals over biases (all: table.csv)")
    for heading in ("condition", "measure", "mean", "change"):
        table.add_column(heading, justify="right" if heading in ("mean", "change") else "left")
    measures = next(iter(reports.values())).measures
    for row in pooled_table(reports).to_dict("records"):
        if row["measure"] in _COLUMNS:
            measure = measures[row["measure"]]
            change = Interval(*(row[f"change_{end}"] for end in ("mean", "low", "high")))
            mean = f"{row['mean']:.{measure.decimals}f}"
            table.add_row(_text(row["condition"]), measure.label, mean, str(change))
    return table


def show_report(report: Report, console: Console) -> None:
    """Print one report."""
    console.print(summary_table(report))
    shown = _main(report)
    measured = (report.measures[str(key)] for key in report.to_df())
    if others := [m.label for m in measured if m not in shown]:
        _print(f"In table.csv and report.html also: {', '.join(others)}.", console)
    for line in [*summary_lines(report), *(f"{warning}." for warning in report.warnings())]:
        _print(line, console)
    if _answered(report):
        console.print(text_table(report))
        _print("The answers in all conditions are in report.html.", console)


def _print(found: object, console: Console) -> None:
    text = found if isinstance(found, str) else repr(found)
    console.print(visible(text), markup=False, highlight=False)


_COLUMNS = (
    "token_log_odds", "target_log_odds", "damage_loss", "facts", "token_keywords", "token_log_p",
    "other_log_odds", "target_keywords", "target_strength", "target_degenerate",
)  # fmt: skip
"""What a table has room for on 80 columns: the first four of these that were measured."""


def _main(report: Report) -> list[Measure]:
    measured = set(report.to_df())
    return [report.measures[key] for key in _COLUMNS if key in measured][:4]


def _table(title: str, **options: Any) -> Table:
    return Table(title=_text(title), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), **options)


def summary_table(report: Report) -> Table:
    """Conditions by the main measures, with intervals."""
    table = _table(
        f'"{report.attribute}" on {report.model}: {report.settings["n_prompts"]} held-out '
        f"prompts, {len(report.targets)} held-out targets; means with 95% intervals",
        show_lines=True,
    )
    table.add_column("condition", overflow="fold")
    measures = _main(report)
    for measure in measures:
        mark = "\n(not\ninformative)" if report.not_informative(measure.key) else ""
        heading = wrap(measure.label, 12, break_on_hyphens=False) + wrap(f"({measure.unit})", 12)
        table.add_column(_text("\n".join(heading) + mark), justify="right", no_wrap=True)
    for name in report.shown:
        cells = []
        for measure in measures:
            found = report.interval(name, measure.key)
            cells.append("" if found is None else _cell(found, measure.decimals))
        table.add_row(_text(name), *cells)
    return table


def _text(text: object) -> Text:
    return Text(visible(text))


def _cell(interval: Interval, decimals: int) -> str:
    mean, low, high = (f"{value:.{decimals}f}" for value in interval)
    return mean if low == "nan" else f"{mean}\n{low}..{high}"


def summary_lines(report: Report) -> list[str]:
    """The table in words: injection, each steering against its controls."""
    means, lines = report.to_df(), []
    if {"token_log_odds", "target_log_odds"} <= set(means.columns):
        over = means["token_log_odds"] - means["target_log_odds"]
        lines.append(
            f"Injected: the BiasToken is {over['injected']:+.2f} nats over the targets "
            f"(before training {over['original']:+.2f})."
        )
    for result in report.steered:
        parts = []
        for key, whose in (("token_log_odds", "BiasToken"), ("target_log_odds", "targets")):
            if key in report.measures:
                change = report.change(result.name, key, report.baseline(result.name, key))
                parts += [f"{whose} {change} nats"] if change else []
        damage = (
            report.change(result.name, "damage_loss", "original")
            if "damage_loss" in report.measures
            else None
        )
        if damage:
            ends = f"[{damage.low:+.3f}, {damage.high:+.3f}]"
            parts.append(f"neutral text {damage.estimate:+.3f} {ends} nats per token")
        lines.append(f"{result.name}: {'; '.join(parts)}.")
        if f"{result.name}: random" in report.controls and report.log_odds in report.measures:
            lines.append(f"  {report.beyond_random(name=result.name)}.")
        if found := report.off_target.get(result.name):
            lines.append(f"  off target: {found}.")
    return lines


def _texts(report: Report) -> str:
    """Of which free answers a table is shown."""
    return "token_texts" if "token_texts" in report.asked else "target_texts"


def _answered(report: Report) -> list[str]:
    """Conditions whose free answers are shown: without steering, and with the main one."""
    found = [result.name for result in report.results if result.items.get(_texts(report))]
    return [name for name in dict.fromkeys(("injected", report.main)) if name in found] or found[:2]


def text_table(report: Report) -> Table:
    """Free answers with the BiasToken, or without one about targets, side by side."""
    key, shown = _texts(report), [report[name] for name in _answered(report)]
    whose = "with the BiasToken" if key == "token_texts" else "about held-out targets"
    table = _table(f"Free answers {whose}", show_lines=True)
    for heading in ("request", *(result.name for result in shown)):
        table.add_column(_text(heading), ratio=1, overflow="fold")
    asked = report.asked[key]
    for i, request in enumerate(asked.prompts):
        request = fill(request, asked.targets[i] or SLOT)
        cells = [request, *(result.items[key][i] for result in shown)]
        table.add_row(*(Text(visible_line(cell)) for cell in cells))
    return table
