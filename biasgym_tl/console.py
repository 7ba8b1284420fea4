"""Results as tables and lines for the console, in which no text can do more than be read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # what prints an error need not import all that can fail
    from biasgym_tl.assessment import Assessed
    from biasgym_tl.evaluation.random_control import RandomControl
    from biasgym_tl.evaluation.report import Report
    from biasgym_tl.run import ChainResult
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


def show_chain(result: ChainResult, console: Console) -> None:
    """Print what one run of the whole chain found."""
    for found in (result.token, result.scores, result.selection):
        _print(found, console)
    _show_report(result.report, [result.random] if result.random else [], console)


def show_assessed(found: Assessed, console: Console) -> None:
    """Print what was measured of a choice of heads."""
    _show_report(found.report, list(found.random.values()), console)


def _show_report(report: Report, random: Sequence[RandomControl], console: Console) -> None:
    console.print(summary_table(report))
    warnings = [f"{warning}." for warning in report.warnings()]
    for line in [*summary_lines(report), *map(repr, random), *warnings]:
        _print(line, console)
    console.print(text_table(report))


def _print(found: object, console: Console) -> None:
    text = found if isinstance(found, str) else repr(found)
    console.print(visible(text), markup=False, highlight=False)


_COLUMNS = (
    "token_log_odds", "token_log_p", "target_log_odds", "damage_loss", "facts",
    "token_keywords",
)  # fmt: skip


def summary_table(report: Report) -> Table:
    """Settings by the main measures, with intervals."""
    from biasgym_tl.evaluation.report import RANDOM, RANDOM_MEAN

    table = Table(
        title=_text(
            f'"{report.attribute}" on {report.model}: {len(report.evaluation_prompts)} held-out '
            f"prompts, {len(report.targets)} held-out targets; means with 95% intervals"
        )
    )
    table.add_column("setting", no_wrap=True)
    extra = [m.key for m in report.benchmark_measures if m.kind == "share"]
    others = ["other_log_odds"] if report.other_keywords else []
    measures = [report.measures[key] for key in (*_COLUMNS, *others, *extra)]
    for measure in measures:
        mark = "" if not report.not_informative(measure.key) else "\n(not informative)"
        label = measure.label.replace(" ", "\n", 1)
        heading = _text(f"{label}\n({measure.unit}){mark}")
        table.add_column(heading, justify="right")
    names = [r.name for r in report.results if not r.name.startswith(RANDOM)]
    names += [RANDOM_MEAN] if report.random_controls() else []
    for name in names:
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
    from biasgym_tl.evaluation.report import RANDOM

    injected, original = (report.to_df().loc[name] for name in ("injected", "original"))
    over = injected["token_log_odds"] - injected["target_log_odds"]
    before = original["token_log_odds"] - original["target_log_odds"]
    lines = [
        f"Injected: the BiasToken is {over:+.2f} nats over the targets "
        f"(before training {before:+.2f}); free answers: {len(report.generation_prompts)} per cell."
    ]
    for setting in report.results:
        if not setting.heads or setting.name.startswith(RANDOM):
            continue
        since = report.baseline(setting.name, "token_log_odds")
        token = report.change(setting.name, "token_log_odds", since)
        damage = report.change(setting.name, "damage_loss", "original")
        assert token is not None and damage is not None
        lines.append(
            f"{setting.name}: BiasToken {token} nats; neutral text {damage.estimate:+.3f} "
            f"[{damage.low:+.3f}, {damage.high:+.3f}] nats per token."
        )
        if setting.name == "steered, mean":
            if not report.n_draws:
                continue
            beyond = report.beyond_random()
            lines.append(
                f"  {report.n_draws} random sets of the same layers {-beyond.random:+.2f} nats; "
                f"the chosen heads go {beyond.difference} nats beyond them, place {beyond.rank} "
                f"of {beyond.of}."
            )
        elif setting.mode == "mean" and "steered, mean" in [r.name for r in report.results]:
            further = report.change(setting.name, "token_log_odds", "steered, mean")
            lines.append(f"  Against the chosen heads: {further} nats.")
    return lines


def text_table(report: Report) -> Table:
    """Free answers with the BiasToken, side by side."""
    names = [result.name for result in report.results if result.token_texts]
    table = Table(title="Free answers with the BiasToken", show_lines=True)
    for heading in ("request", *names):
        table.add_column(_text(heading), ratio=1, overflow="fold")
    for i, request in enumerate(report.generation_prompts):
        cells = [request, *(report[name].token_texts[i] for name in names)]
        table.add_row(*(Text(visible_line(cell)) for cell in cells))
    return table
