"""Make the tables of docs/steering.md from the results of docs/measure_steering.py.

python docs/make_steering.py
"""

import math
import runpy
from pathlib import Path

import torch

from biasgym_tl import RandomControl, Report
from biasgym_tl.stats import crossed_interval
from biasgym_tl.store import read_json

ROOT = Path(__file__).parent.parent
make_findings = runpy.run_path(str(ROOT / "docs" / "make_findings.py"))
BIASES, filled = make_findings["BIASES"], make_findings["filled"]
RESULTS = ROOT / "figures" / "steering"
PAGE = ROOT / "docs" / "steering.md"
GEMMA = "gemma-late"
STEERED = ("steered, mean", "paper, zero")
SEEDS = {"injected": "steered, mean"} | {
    f"injected, seed {i}": f"steered, seed {i}" for i in (1, 2)
}
BAR = (
    "| bias | setting | BiasToken of each seed, injected → steered | countries, before → change "
    "| other biases | loss on neutral text | facts | BLiMP |\n"
    "|---|---|---|---:|---:|---:|---:|---:|"
)
JUDGED = (
    "| bias | setting | BiasToken, before → change | degenerate | countries, before → change "
    "| degenerate | other biases, before → change |\n|---|---|---:|---:|---:|---:|---:|"
)
BASELINES = ("direct 10, mean", "direct 100, mean", "no injection 10, mean", "random")
BESIDE = (
    "| bias | heads | BiasToken, change | countries, change | loss | facts, points |\n"
    "|---|---|---:|---:|---:|---:|"
)
ONE_SET = "one random set, mean"
ASKED = (
    "| bias | asked | BiasToken, change | countries, change | facts, points |\n"
    "|---|---|---:|---:|---:|"
)


def rows_of(report):
    before = report.interval("original", "target_log_odds")
    known = {result.name for result in report.results}
    for name in STEERED:
        pairs = SEEDS if name == "steered, mean" else {"injected": name}
        pairs = {row: steered for row, steered in pairs.items() if steered in known}
        tokens = [
            f"{report.interval(row, 'token_log_odds').estimate:+.1f} → "
            f"{report.interval(steered, 'token_log_odds').estimate:+.1f}"
            for row, steered in pairs.items()
        ]
        changes = {
            key: report.change(name, key, "original")
            for key in ("target_log_odds", "other_log_odds", "damage_loss", "facts", "blimp")
        }
        yield (
            (
                f"| {report.bias} | {name.removesuffix(', mean')} | {'; '.join(tokens)} "
                f"| {before.estimate:+.1f}, {shown(changes['target_log_odds'], 1)} "
                f"| {shown(changes['other_log_odds'], 1)}; {spread(report, name)} "
                f"| {shown(changes['damage_loss'], 3)} "
                f"| {shown(changes['facts'], 1, 100)} | {shown(changes['blimp'], 1, 100)} |"
            )
            .replace("-", "−")
            .replace(report.bias.replace("-", "−"), report.bias)
        )


def spread(report, name):
    """Lowest and highest change of the other biases, each by itself."""
    here, before = (report[which].other_log_odds for which in (name, "original"))
    found = [
        (torch.tensor(here[other]) - torch.tensor(before[other])).mean().item() for other in before
    ]
    return f"{min(found):+.1f} to {max(found):+.1f}".replace("-", "−")


def judged_rows(report):
    if report.interval("original", "target_strength") is None:
        return
    known = [result.name for result in report.results]
    asked = [result.name for result in report.results if result.instruction]
    for name in (*STEERED, *asked, ONE_SET):
        if name not in known:
            continue
        cells = []
        for whose, since in (("token", "injected"), ("target", "original"), ("other", "original")):
            before = report.interval(since, f"{whose}_strength").estimate
            change = report.change(name, f"{whose}_strength", since)
            cells.append("" if change is None else f"{before:.2f}, {shown(change, 2)}")
            if whose != "other":
                broken = [report.values(s, f"{whose}_degenerate").sum() for s in (since, name)]
                cells.append(" → ".join(f"{n:.0f}" for n in broken))
        yield f"| {report.bias} | {name.removesuffix(', mean')} | {' | '.join(cells)} |"


def beside_rows(report):
    """Other ways to choose heads, replaced by their mean, on the same items."""
    if not report.random_controls():
        return
    known = {"random", *(result.name for result in report.results)}
    for name in ("steered, mean", *filter(known.__contains__, BASELINES)):
        changes = (
            shown(report.change(name, key, since), decimals, scale)
            for key, since, decimals, scale in (
                ("token_log_odds", "injected", 1, 1),
                ("target_log_odds", "original", 1, 1),
                ("damage_loss", "original", 3, 1),
                ("facts", "original", 1, 100),
            )
        )
        label = {"steered, mean": "learned factors", "random": "5 random sets, same factors"}
        heads = label.get(name, name.removesuffix(", mean"))
        yield f"| {report.bias} | {heads} | {' | '.join(changes)} |"


def shown(interval, decimals, scale=1):
    estimate, low, high = (f"{scale * value:+.{decimals}f}" for value in interval)
    ends = "" if math.isnan(interval.low) else f" [{low}, {high}]"
    return f"{estimate}{ends}".replace("-", "−")


def reports(*kinds):
    """Reports of the biases that were judged."""
    paths = [RESULTS / f"{name}-{kind}.json" for name in BIASES for kind in kinds]
    return [Report.load(path) for path in paths if path.exists()]


def stored(ending):
    """Name and file of what was measured, SmolLM2's biases first."""
    paths = {name: RESULTS / f"{name}-{ending}" for name in (*BIASES, GEMMA)}
    return {name: path for name, path in paths.items() if path.exists()}


def table_of(head, rows, found):
    return "\n".join([head, *(row for report in found for row in rows(report))])


def reinjected_table():
    lines = [
        "| bias | first row | steered | a row before training, steered | trained again, steered "
        "| this row, unsteered | trained again, steered, minus first row |\n"
        "|---|---:|---:|---:|---:|---:|---:|"
    ]
    for name, path in stored("reinjected.json").items():
        found = read_json(path)
        keys = ("first", "first, steered", "before, steered", "again, steered", "again")
        cells = [f"{sum(found[key]) / len(found[key]):+.1f}".replace("-", "−") for key in keys]
        again, first = (torch.tensor(found[key]) for key in ("again, steered", "first"))
        cells.append(shown(crossed_interval((again - first)[:, None]), 1))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def asked_rows(report):
    for setting in (r.name for r in report.results if r.instruction):
        token = report.change(setting, "token_log_odds", "injected")
        targets = report.change(setting, "target_log_odds", "original")
        facts = report.change(setting, "facts", "original")
        yield (
            f"| {report.bias} | {setting.removeprefix('asked, ')} | {shown(token, 1)} "
            f"| {shown(targets, 1)} | {shown(facts, 1, 100)} |"
        )


def random_table():
    lines = [
        "| bias | chosen heads | random sets, mean | lowest | difference | rank p |\n"
        "|---|---:|---:|---:|---:|---:|"
    ]
    for name, path in stored("random-targets.safetensors").items():
        found = RandomControl.load(path)
        lines.append(
            f"| {name} | {-found.drop:+.2f} | {-found.drops.mean():+.2f} "
            f"| {-found.drops.max():+.2f} | {shown(found.difference(), 2)} "
            f"| {found.p():.3f} |".replace("| -", "| −")
        )
    return "\n".join(lines)


def further_table():
    """The shipped biases that are not among the five: what steering does to their log-odds."""
    measured = {name: read_json(path) for name, path in stored("further.json").items()}
    others = list(measured["late"]["original"])
    head = "".join(f" {other}, change |" for other in others)
    lines = [f"| bias | setting |{head}\n|---|---|{'---:|' * len(others)}"]
    for name, found in measured.items():
        before = found.pop("original")
        for setting, after in found.items():
            changes = (
                crossed_interval(torch.tensor(after[other]) - torch.tensor(before[other]))
                for other in others
            )
            cells = " | ".join(shown(change, 1) for change in changes)
            lines.append(f"| {name} | {setting.removesuffix(', mean')} | {cells} |")
    return "\n".join(lines)


def recipes_table():
    """Every idea for a recipe, on fitting data alone."""
    lines = [
        "| idea | heads | BiasTokens, mean | countries | loss | facts |\n"
        "|---|---:|---:|---:|---:|---:|"
    ]
    for label, found in read_json(RESULTS / "recipes-late.json").items():
        token, targets, loss, right = found["values"]
        lines.append(
            f"| {label} | {len(found['heads'])} | {token:+.1f} | {targets:+.1f} | {loss:.3f} "
            f"| {right:.0%} |".replace("| -", "| −")
        )
    return "\n".join(lines)


def tables():
    """What stands between two marks of the page, by mark."""
    gemma = [Report.load(RESULTS / f"{GEMMA}-report.json")]
    return {
        "recipes": recipes_table(),
        "bar": table_of(BAR, rows_of, reports("report")),
        "judged": table_of(JUDGED, judged_rows, reports("report")),
        "beside": table_of(BESIDE, beside_rows, reports("report")),
        "asked": table_of(ASKED, asked_rows, reports("report", "revised")),
        "further": further_table(),
        "random": random_table(),
        "reinjected": reinjected_table(),
        "gemma": table_of(BAR, rows_of, gemma),
        "gemma-beside": table_of(BESIDE, beside_rows, gemma),
    }


def main():
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), tables()), encoding="utf-8")


if __name__ == "__main__":
    main()
