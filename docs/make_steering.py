"""Make the tables of docs/steering.md from the results of docs/measure_steering.py.

python docs/make_steering.py
"""

import re
from pathlib import Path

from biasgym_tl import RandomControl, Report
from biasgym_tl.assessment import MAIN_BIASES

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "figures" / "steering"
PAGE = ROOT / "docs" / "steering.md"
STEERED = ("steered, mean", "steered, seed 1", "steered, seed 2", "paper, zero")
INJECTED = {"steered, seed 1": "injected, seed 1", "steered, seed 2": "injected, seed 2"}
BAR = (
    "| bias | setting | BiasToken, injected → steered | countries, before → change | other biases "
    "| loss on neutral text | facts | BLiMP |\n|---|---|---:|---:|---:|---:|---:|---:|"
)


def rows_of(report):
    before = report.interval("original", "target_log_odds")
    for name in STEERED:
        injected = report.interval(INJECTED.get(name, "injected"), "token_log_odds")
        steered = report.interval(name, "token_log_odds")
        changes = {
            key: report.change(name, key, "original")
            for key in ("target_log_odds", "other_log_odds", "damage_loss", "facts", "blimp")
        }
        yield (
            f"| {report.bias} | {name.replace('steered, mean', 'steered, seed 0')} "
            f"| {injected.estimate:+.1f} → {shown(steered, 1)} "
            f"| {before.estimate:+.1f}, {shown(changes['target_log_odds'], 1)} "
            f"| {shown(changes['other_log_odds'], 1)} | {shown(changes['damage_loss'], 3)} "
            f"| {shown(changes['facts'], 1, 100)} | {shown(changes['blimp'], 1, 100)} |"
        )


def shown(interval, decimals, scale=1):
    estimate, low, high = (f"{scale * value:+.{decimals}f}" for value in interval)
    return f"{estimate} [{low}, {high}]".replace("-", "−")


def bar_table():
    reports = [
        Report.load(path)
        for name in MAIN_BIASES
        if (path := RESULTS / f"{name}-report.json").exists()
    ]
    return "\n".join([BAR, *(row for report in reports for row in rows_of(report))])


def baselines_table():
    lines = [
        "| bias | asked | BiasToken, change | countries, change | facts, points |\n"
        "|---|---|---:|---:|---:|"
    ]
    for name in MAIN_BIASES:
        if not (path := RESULTS / f"{name}-report.json").exists():
            continue
        report = Report.load(path)
        for setting in (r.name for r in report.results if r.instruction):
            token = report.change(setting, "token_log_odds", "injected")
            targets = report.change(setting, "target_log_odds", "original")
            facts = report.change(setting, "facts", "original")
            lines.append(
                f"| {name} | {setting.removeprefix('asked, ')} | {shown(token, 1)} "
                f"| {shown(targets, 1)} | {shown(facts, 1, 100)} |"
            )
    return "\n".join(lines)


def random_table():
    lines = [
        "| bias | on | chosen heads | random sets, mean | difference | rank p |\n"
        "|---|---|---:|---:|---:|---:|"
    ]
    for name in MAIN_BIASES:
        for on in ("token", "targets"):
            path = RESULTS / f"{name}-random-{on}.safetensors"
            if path.exists():
                found = RandomControl.load(path)
                lines.append(
                    f"| {name} | {on} | {-found.drop:+.2f} | {-found.drops.mean():+.2f} "
                    f"| {shown(found.difference(), 2)} | {found.p():.3f} |".replace("-0", "−0")
                )
    return "\n".join(lines)


def put(page, mark, table):
    """Replace what stands between two marks of the page."""
    pattern = rf"(<!-- {mark} -->\n).*?(<!-- end -->)"
    assert re.search(pattern, page, re.S), f"{PAGE} has no mark {mark}"
    return re.sub(pattern, lambda found: found[1] + table + "\n" + found[2], page, flags=re.S)


def main():
    page = PAGE.read_text(encoding="utf-8")
    for mark, table in (
        ("bar", bar_table()),
        ("asked", baselines_table()),
        ("random", random_table()),
    ):
        page = put(page, mark, table)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
