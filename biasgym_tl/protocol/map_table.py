"""What the maps of a bias say of one another, as a long table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from biasgym_tl.protocol.parts import Map
from biasgym_tl.scoping.agreement import seed_overlap
from biasgym_tl.scoping.compare import compare, concentration
from biasgym_tl.scoping.scores import HeadScores

K, K_PER_SEED = 10, 30
"""Heads whose overlap between maps is counted, and between seeds (the paper's)."""
Maps = Mapping[str, Mapping[int, HeadScores]]


def map_table(maps: Maps, specs: Mapping[str, Map]) -> pd.DataFrame:
    """Columns ``statistic, map, other, seed, value, low, high, heads``; ``other`` is the second map
    of a pair, or a control."""
    rows = [*_alone(maps), *_pairs(maps, specs), *_over_seeds(maps, specs)]
    columns = ["statistic", "map", "other", "seed", "value", "low", "high", "heads"]
    return pd.DataFrame(rows, columns=columns)


def _alone(maps: Maps) -> Iterator[dict[str, Any]]:
    for name, by_seed in maps.items():
        for seed, scores in by_seed.items():
            at = {"map": name, "seed": seed}
            top = ", ".join(map(str, scores.top(min(K, scores.values.numel()))))
            yield {**at, "statistic": f"top {K}", "heads": top}
            if bool((scores.values > 0).any()):
                spread = concentration(scores.values)
                yield {**at, "statistic": "effective heads", "value": spread.effective_heads}
                yield {**at, "statistic": "heads for half", "value": spread.k_for(0.5)}
            error = scores.reconstruction_error
            if error is not None:
                mean, most = error.mean().item(), error.max().item()
                yield {**at, "statistic": "reconstruction error", "value": mean, "high": most}


def _pairs(maps: Maps, specs: Mapping[str, Map]) -> Iterator[dict[str, Any]]:
    """Maps of the trained row on the same prompts."""
    names = [name for name in maps if specs[name].slot == "row"]
    for n_prompts in dict.fromkeys(specs[name].n_prompts for name in names):
        alike = [name for name in names if specs[name].n_prompts == n_prompts]
        for seed in maps[alike[0]] if len(alike) > 1 else ():
            found = compare([maps[name][seed] for name in alike], names=alike, k=K)
            for (one, other), (value, low, high) in found.rank_correlation.items():
                yield {"statistic": "rank correlation", "map": one, "other": other, "seed": seed,
                       "value": value, "low": low, "high": high}  # fmt: skip
                yield {"statistic": "rank correlation without noise", "map": one, "other": other,
                       "seed": seed, "value": found.without_noise[one, other]}  # fmt: skip
            for (one, other), (value, low, high) in found.overlap.items():
                yield {"statistic": f"overlap of top {K}", "map": one, "other": other,
                       "seed": seed, "value": value, "low": low, "high": high}  # fmt: skip
            for name, value in found.reliability.items():
                yield {"statistic": "reliability", "map": name, "seed": seed, "value": value}


def _over_seeds(maps: Maps, specs: Mapping[str, Map]) -> Iterator[dict[str, Any]]:
    """Heads that all seeds agree on, beside chance and the same map of other rows."""
    for name, by_seed in maps.items():
        n_units = next(iter(by_seed.values())).values.numel()
        if specs[name].slot != "row" or len(by_seed) < 2 or n_units < K_PER_SEED:
            continue
        controls: dict[str, Sequence[HeadScores]] = {
            spec.slot: list(maps[other].values())
            for other, spec in specs.items()
            if spec.slot in ("untrained row", "other bias")
            and (spec.settings, spec.n_prompts) == (specs[name].settings, specs[name].n_prompts)
        }
        found = seed_overlap(list(by_seed.values()), k_per_seed=K_PER_SEED, controls=controls)
        last, what = found.agreements[-1], f"in the top {K_PER_SEED} of all seeds"
        yield {"statistic": what, "map": name, "value": last.n_heads}
        yield {"statistic": what, "map": name, "other": "chance", "value": last.by_chance}
        yield {"statistic": f"{what}, p", "map": name, "value": last.p}
        for control, n in last.controls.items():
            yield {"statistic": what, "map": name, "other": control, "value": n}
