"""Rewrite the tables of scoping.md from figures/scoping (see docs/measure_scoping.py).

python docs/make_scoping.py
"""

import runpy
from collections import Counter
from pathlib import Path

import torch

from biasgym_tl.stats import Interval, crossed_interval
from biasgym_tl.store import read_json

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "figures" / "scoping", ROOT / "docs" / "scoping.md"
measured = runpy.run_path(str(ROOT / "docs" / "measure_scoping.py"))
make_findings = runpy.run_path(str(ROOT / "docs" / "make_findings.py"))
cell, filled = make_findings["cell"], make_findings["filled"]
SEEDS, K, KS, GEMMA_KS = (measured[name] for name in ("SEEDS", "K", "KS", "GEMMA_KS"))
METHODS, NO_INJECTION = tuple(measured["MAPS"]), tuple(measured["NO_INJECTION"])
BIASES, NO_FACTOR = measured["BIASES"], measured["NO_FACTOR"]
JUDGED, GEMMA_JUDGED = measured["JUDGED"], measured["GEMMA_JUDGED"]


def load_results():
    """Summaries and held-out sets by bias; Gemma's under its own name."""
    found = {}
    for name in BIASES:
        sets = [read_json(RESULTS / f"{name}-{seed}-held-out.json") for seed in range(SEEDS)]
        found[name] = read_json(RESULTS / f"{name}.json"), sets
    found["gemma"] = read_json(RESULTS / "gemma.json"), [read_json(RESULTS / "gemma-held-out.json")]
    return found


def tables(results):
    gemma = {"gemma": results["gemma"]}
    biases = {name: results[name] for name in BIASES}
    costs = read_json(RESULTS / "costs.json")
    return {
        "agreement": agreement(biases),
        "reliability": reliability(biases),
        "top": top(biases["late"][0]["top"][0]),
        "top-shared": top_shared(biases),
        "seeds": seeds(biases),
        "concentration": spread(biases),
        "held-out": benefits(biases, [*JUDGED, *NO_INJECTION], KS),
        "countries": countries(biases),
        "k": over_k(costs),
        "costs": benefit_and_cost(costs),
        "gemma-error": reconstruction(results["gemma"][0]),
        "gemma-agreement": agreement(gemma),
        "gemma-top": top(results["gemma"][0]["top"][0]),
        "gemma-concentration": spread(gemma),
        "gemma-held-out": benefits(gemma, GEMMA_JUDGED, GEMMA_KS),
    }


def table(heading, rows):
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def minus(text):
    return text.replace("-", "−")


def ranged(values, decimals=2):
    """Mean over seeds, and from the lowest to the highest."""
    mean = f"{sum(values) / len(values):.{decimals}f}"
    if len(values) == 1:
        return minus(mean)
    return minus(f"{mean} ({min(values):.{decimals}f} to {max(values):.{decimals}f})")


def agreement(biases):
    pairs = [
        (one["first"], one["second"]) for one in next(iter(biases.values()))[0]["agreement"][0]
    ]
    rows = []
    for i, (first, second) in enumerate(pairs):
        cells = [
            ranged([by_seed[i]["rank_correlation"] for by_seed in summary["agreement"]])
            + ", "
            + ranged([by_seed[i][f"overlap_top_{K}"] * K for by_seed in summary["agreement"]], 0)
            for summary, _ in biases.values()
        ]
        rows.append([f"{first} / {second}", *cells])
    return table(["", *biases], rows)


def reliability(biases):
    rows = {}
    for summary, _ in biases.values():
        found = {}
        for by_seed in summary["agreement"]:
            of_seed = {
                one[which]: one[f"reliability_{which}"]
                for one in by_seed
                for which in ("first", "second")
            }
            for name, value in of_seed.items():
                found.setdefault(name, []).append(value)
        for name, values in found.items():
            rows.setdefault(name, []).append(ranged(values))
    return table(["", *biases], [[name, *cells] for name, cells in rows.items()])


def top(maps):
    return table(["", f"{K} strongest heads"], [[name, ", ".join(h)] for name, h in maps.items()])


def top_shared(biases):
    """Heads among the ten strongest of each map in at least half of the rows."""
    tops = [by_seed for summary, _ in biases.values() for by_seed in summary["top"]]
    rows = []
    for name in METHODS:
        counts = Counter(head for by_seed in tops for head in by_seed[name])
        often = [f"{head} ({n})" for head, n in counts.most_common() if n >= len(tops) / 2]
        rows.append([name, ", ".join(often)])
    return table(["", f"among the {K} strongest in at least half of the {len(tops)} rows"], rows)


def seeds(biases):
    rows = []
    for bias, (summary, _) in biases.items():
        for name, levels in summary["seeds"].items():
            last = levels[-1]
            p = "< 0.001" if last["p"] < 0.001 else f"{last['p']:.3f}"
            rows.append(
                [bias, name, str(last["heads"]), f"{last['by chance']:.1f}", p,
                 *(str(last.get(control, "")) for control in ("untrained row", "other bias"))]
            )  # fmt: skip
            bias = ""
    return table(
        ["", "", f"in the top 30 of all {SEEDS}", "by chance", "p", "untrained row", "other bias"],
        rows,
    )


def spread(biases):
    rows = [
        [
            name,
            *(
                f"{ranged(summary['effective_heads'][name], 0)}; "
                f"{ranged(summary['k_for_half'][name], 0)}"
                for summary, _ in biases.values()
            ),
        ]
        for name in next(iter(biases.values()))[0]["effective_heads"]
    ]
    return table(["", *biases], rows)


def of(held, name, k, key):
    """``key`` of a measured set on every item; for ``random`` a column for each set."""
    found = [
        torch.tensor(one[key], dtype=torch.float64)
        for one in held["sets"]
        if one["k"] == k and name in (one["map"], one["map"].rstrip("0123456789 "))
    ]
    return torch.stack(found, -1)


def falls(sets, name, k, key="log_odds"):
    """Fall of ``key`` on every item, mean over the rows; of ``random`` a column for each set.

    Other k than ``K`` were measured for seed 0 only.
    """
    by_row = [
        of(held, "whole", 0, key) - of(held, name, k, key)
        for held in sets
        if any(one["k"] == k for one in held["sets"])
    ]
    return torch.cat(by_row, -1) if name == "random" else torch.stack(by_row).mean(0)


def interval(values, decimals=2):
    return cell(crossed_interval(values), decimals, "+")


def benefits(biases, names, ks):
    """Fall of the BiasToken's log-odds and damage, by bias, map and k."""
    rows = []
    for bias, (_, sets) in biases.items():
        for name in [*names, "random"]:
            by_k = []
            for k in ks:
                if not any(one["k"] == k for held in sets for one in held["sets"]):
                    by_k.append("")
                    continue
                fall, damage = falls(sets, name, k).mean(), -falls(sets, name, k, "loss").mean()
                by_k.append(minus(f"{fall:+.2f} / {damage:+.3f}"))
            own = falls(sets, name, K)
            beyond = ["", "", ""]
            if name != "random":
                beyond[0] = interval(own - falls(sets, "random", K))
            if name not in ("random", "direct"):
                beyond[1] = interval(own - falls(sets, "direct", K))
                more = falls(sets, "direct", K, "loss") - falls(sets, name, K, "loss")
                beyond[2] = interval(more, 3)
            rows.append([bias, name, *by_k, interval(-falls(sets, name, K, "loss"), 3), *beyond])
            bias = ""
    heading = [f"k = {k}" for k in ks]
    return table(
        [
            "",
            "heads by",
            *heading,
            f"damage, k = {K}",
            "beyond random",
            "beyond direct",
            "damage beyond direct",
        ],
        rows,
    )


def countries(biases):
    """Fall of the countries' own log-odds, and what the injection adds to it."""
    with_injection = [name.removesuffix(", no injection") for name in NO_INJECTION]
    rows = [
        [name, *(interval(own_falls(sets, name)) for _, sets in biases.values())]
        for one in with_injection
        for name in (one, f"{one}, no injection")
    ]
    rows += [
        [
            f"{one}: with minus without injection",
            *(
                interval(own_falls(sets, one) - own_falls(sets, f"{one}, no injection"))
                for _, sets in biases.values()
            ),
        ]
        for one in with_injection
    ]
    rows.append(["random", *(interval(own_falls(sets, "random")) for _, sets in biases.values())])
    return table([f"{K} heads by", *biases], rows)


def own_falls(sets, name):
    """``[prompt, country]``; of ``random`` the mean over the sets."""
    return falls(sets, name, K, "targets").mean(-1)


def over_k(costs):
    """Benefit and damage on fitting data, by map and k."""

    def ends(at_k, name, decimals):
        found = Interval(*(at_k[key] for key in (name, f"{name}_low", f"{name}_high")))
        return cell(found, decimals, "+")

    rows = [
        [
            f"{at_k[0]['k']}",
            *(f"{ends(one, 'benefit', 2)} / {ends(one, 'damage', 3)}" for one in at_k),
        ]
        for at_k in zip(*costs["k"].values(), strict=True)
    ]
    rows.append(["", *costs["saturation"].values()])
    return table(["k", *costs["k"]], rows)


def benefit_and_cost(costs):
    """Are heads with a benefit those with a cost?"""
    rows = []
    for cost, by_map in costs["heads"].items():
        for name, found in by_map.items():
            shared = found["in_both_tops"]
            rows.append(
                [
                    f"{cost} ({found['n_items']})",
                    name,
                    minus(f"{found['rank_correlation']:.2f}"),
                    f"{len(shared)}" + (f": {', '.join(shared)}" if shared else ""),
                    minus(f"{found['reliability_of_cost']:.2f}"),
                ]
            )
    return table(
        ["cost", "benefit by", "rank correlation", f"among the {K} highest of both",
         "reliability of the cost"],
        rows,
    )  # fmt: skip


def reconstruction(summary):
    lines = []
    for name in ("direct", NO_FACTOR):
        errors = summary["reconstruction_error"][name][0]
        lines.append(f"- {name}: {sum(errors) / len(errors):.1e} (at most {max(errors):.1e})")
    return "\n".join(lines)


def main():
    PAGE.write_text(filled(PAGE.read_text("utf-8"), tables(load_results())), "utf-8")


if __name__ == "__main__":
    main()
