"""Results as tables and lines for the console, in which no text can do more than be read."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # what prints an error need not import all that can fail
    from biasgym_tl.evaluation.report import Report
    from biasgym_tl.protocol.chain import ProtocolResult
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


def wide_console() -> Console:
    """A console on which the tables fit."""
    return Console(width=max(Console().width, 140))


def show_result(result: ProtocolResult, console: Console) -> None:
    """Print what one run of a protocol found."""
    for found in result.biases.values():
        maps = [scores for by_seed in found.maps.values() for scores in by_seed.values()]
        heads = [each for by_seed in found.choices.values() for each in by_seed.values()]
        for each in (*found.rows.values(), *maps, *heads, *found.sweeps.values()):
            _print(each, console)
        show_report(found.report, console)
    if len(result.biases) > 1:
        from biasgym_tl.protocol.outputs import pooled_table, reports_of

        table = pooled_table(reports_of(result)).round(3)
        _print(f"Means over {len(result.biases)} biases, 95% intervals over biases", console)
        _print(table.to_string(index=False), console)


def show_report(report: Report, console: Console) -> None:
    """Print one report."""
    console.print(summary_table(report))
    for line in [*summary_lines(report), *(f"{warning}." for warning in report.warnings())]:
        _print(line, console)
    if any(result.items.get("token_texts") for result in report.results):
        console.print(text_table(report))


def _print(found: object, console: Console) -> None:
    text = found if isinstance(found, str) else repr(found)
    console.print(visible(text), markup=False, highlight=False)


_COLUMNS = (
    "token_log_odds", "token_log_p", "target_log_odds", "damage_loss", "facts",
    "token_keywords",
)  # fmt: skip


def summary_table(report: Report) -> Table:
    """Conditions by the main measures, with intervals."""
    table = Table(
        title=_text(
            f'"{report.attribute}" on {report.model}: {report.settings["n_prompts"]} held-out '
            f"prompts, {len(report.targets)} held-out targets; means with 95% intervals"
        )
    )
    table.add_column("condition", no_wrap=True)
    extra = [key for key in report.clusters if report.measures[key].kind == "share"]
    keys = (*_COLUMNS, "other_log_odds", *extra)
    measures = [report.measures[key] for key in keys if key in report.measures]
    for measure in measures:
        mark = "" if not report.not_informative(measure.key) else "\n(not informative)"
        label = measure.label.replace(" ", "\n", 1)
        heading = _text(f"{label}\n({measure.unit}){mark}")
        table.add_column(heading, justify="right")
    for name in report.shown:
        cells = []
        for measure in measures:
            found = report.interval(name, measure.key)
            cells.append("" if found is None else _cell(found, measure.decimals))
        table.add_row(_text(name), *cells)
    return table


def _text(text: str) -> Text:
    return Text(visible(text))


def _cell(interval: Interval, decimals: int) -> str:
    mean, low, high = (f"{value:.{decimals}f}" for value in interval)
    return mean if low == "nan" else f"{mean}\n{low} to {high}"


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
        if f"{result.name}: random" in report.controls and "token_log_odds" in report.measures:
            lines.append(f"  {report.beyond_random('token_log_odds', result.name)}.")
    return lines


def text_table(report: Report) -> Table:
    """Free answers with the BiasToken, side by side."""
    shown = [result for result in report.results if result.items.get("token_texts")]
    table = Table(title="Free answers with the BiasToken", show_lines=True)
    for heading in ("request", *(result.name for result in shown)):
        table.add_column(_text(heading), ratio=1, overflow="fold")
    for i, request in enumerate(report.asked["token_texts"].prompts):
        cells = [request, *(result.items["token_texts"][i] for result in shown)]
        table.add_row(*(Text(visible_line(cell)) for cell in cells))
    return table
