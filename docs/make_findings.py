"""Rewrite the tables and the picture of findings.md from the results in figures/findings.

python docs/make_findings.py
"""

import re
from pathlib import Path

from biasgym_tl import RandomControl, Report
from biasgym_tl.figures import draw, recipe

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "figures" / "findings", ROOT / "docs" / "findings.md"
BIASES = ("late", "math", "spicy-food", "bad-driving", "alcohol")
"""The five of the paper."""
ROWS = {
    "original": "original (row before training)",
    "injected": "injected",
    "steered, zero": "direct, zero",
    "steered, mean": "direct, mean",
    "no-injection heads, mean": "without injection, mean",
    "untrained-row heads, mean": "untrained row, mean",
    "shuffled-corpus heads, mean": "shuffled corpus, mean",
    "other-bias heads, mean": "other bias's row, mean",
    "random": "random (5 sets), mean",
}
STEERED = [name for name in ROWS if name not in ("original", "injected")]


def load_reports():
    return {name: Report.load(RESULTS / f"{name}.json") for name in BIASES}


def cell(interval, decimals=2, sign=""):
    """Mean and ends; ``sign="+"`` for changes."""
    if interval is None:
        return ""
    mean, low, high = (f"{value:{sign}.{decimals}f}".replace("-", "−") for value in interval)
    return mean if low.endswith("nan") else f"{mean} [{low}, {high}]"


def change(since, measure, decimals=2):
    return lambda report, name: cell(report.change(name, measure, since), decimals, "+")


def table(reports, rows, content):
    lines = ["| | " + " | ".join(reports) + " |", "|---" * (len(reports) + 1) + "|"]
    for name in rows:
        cells = [content(report, name) for report in reports.values()]
        lines.append(f"| {ROWS[name]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def tables(reports):
    others = [name for name in STEERED if name != "steered, mean"]
    answered = list(ROWS)[:4]

    def level(measure):
        return lambda report, name: cell(report.interval(name, measure))

    def chosen_against(report, name):
        return cell(report.change("steered, mean", "token_log_odds", name), sign="+")

    found = {
        "log-odds": table(reports, ROWS, level("token_log_odds")),
        "log-p": table(reports, ROWS, level("token_log_p")),
        "against": table(reports, others, chosen_against),
        "targets": table(reports, STEERED, change("original", "target_log_odds")),
        "damage": table(reports, STEERED, change("original", "damage_loss", 3)),
        "facts": table(reports, STEERED, change("original", "facts")),
        "fact-head": fact_head(reports),
        "keywords": table(reports, answered, level("token_keywords")),
        "repetition": table(reports, answered, level("token_repetition")),
    }
    controls = [RandomControl.load(path) for path in sorted(RESULTS.glob("*.safetensors"))]
    found["random"] = "\n".join(
        f"- {c.bias}: drop {c.drop:.2f} nats; {len(c.draws)} random sets {c.drops.mean():.2f} on "
        f"average, {c.drops.max():.2f} at most; difference {cell(c.difference(), sign='+')}; "
        f"p = {c.p():.3f}"
        for c in controls
    )
    late, again = reports["late"], "re-injected, mean"
    lines = {
        "log-odds of the new row on the steered model": level("token_log_odds")(late, again),
        "against the old row, not steered": change("injected", "token_log_odds")(late, again),
        "against the old row, steered": change("steered, mean", "token_log_odds")(late, again),
        "keywords in its answers": level("token_keywords")(late, again),
    }
    found["reinjection"] = "\n".join(f"- {label}: {value}" for label, value in lines.items())
    return found


def fact_head(reports, head="L23H4"):
    """Change of right facts in every steered set of every bias, with and without one head."""
    changes = {True: [], False: []}
    for report in reports.values():
        for result in report.results:
            if result.heads:
                fall = report.change(result.name, "facts", "original").estimate
                changes[head in result.heads].append(fall)
    return "\n".join(
        f"- {len(falls)} sets {'with' if inside else 'without'} {head}: "
        + f"{min(falls):+.2f} to {max(falls):+.2f}".replace("-", "−")
        for inside, falls in changes.items()
    )


def filled(page, found):
    """The page with every ``<!-- name -->`` ... ``<!-- end -->`` block written again."""
    for name, text in found.items():
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        page, n = block.subn(lambda m, text=text: f"{m[1]}{text}\n{m[2]}", page)
        if n != 1:
            raise SystemExit(f"the page must hold one block named {name}, got {n}.")
    return page


def main():
    reports = load_reports()
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), tables(reports)), encoding="utf-8")
    draw(RESULTS, {"comparison": recipe("comparison", [f"{name}.json" for name in BIASES])})


if __name__ == "__main__":
    main()
