"""Measure which heads each method finds and what they do; docs/make_scoping.py makes the tables.

python docs/measure_scoping.py late math spicy-food   # about 30 minutes a bias on two cores
python docs/measure_scoping.py costs                  # k and the cost of each head, late 0
python docs/measure_scoping.py gemma                  # one row on Gemma-3-270m

Goes on where it was stopped: maps are kept in the cache folder under the row that they belong to,
sets of heads in figures/scoping. Delete both after a change of the code or settings that make them.
"""

import dataclasses
import itertools
import random
import re
import runpy
import sys
from pathlib import Path
from unittest import mock

from biasgym_tl import (
    BiasScope,
    HeadScores,
    compare,
    concentration,
    head_damage,
    k_sweep,
    load_bias,
    load_model,
    load_token,
    seed_overlap,
    select_heads,
    steer,
)
from biasgym_tl.elicitation import bias_log_odds
from biasgym_tl.figures import draw, recipe
from biasgym_tl.heads import Head, all_heads
from biasgym_tl.hooks import head_means
from biasgym_tl.passages import load_passages
from biasgym_tl.scoping.compare import rank_correlation, stepped_up
from biasgym_tl.scoping.direct import unchecked_attribution
from biasgym_tl.scoping.pairs import build_pairs
from biasgym_tl.scoping.scores import top_heads
from biasgym_tl.steps import Steps
from biasgym_tl.store import cache_dir, digest, read_json, write_json
from biasgym_tl.text import mean_loss

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "figures" / "scoping"
MODEL, BIASES, SEEDS = "smollm2-135m-instruct", ("late", "math", "spicy-food"), 3
N_PROMPTS, N_TARGETS, N_RANDOM = 16, 6, 3
K, KS, GEMMA_KS = 10, (5, 10, 20), (3, 10)
MAPS = {
    "direct": {},
    "direct, difference": {"contrast": "difference"},
    "patching to zero": {"method": "attribution_patching"},
    "patching to mean": {"method": "attribution_patching", "ablate_to": "mean"},
    "zero ablation": {"method": "zero_ablation"},
    "mean ablation": {"method": "mean_ablation"},
}
NO_INJECTION = {f"{name}, no injection": MAPS[name] for name in ("direct", "mean ablation")}
JUDGED = ("direct", "direct, difference", "patching to mean", "zero ablation", "mean ablation")
SWEPT_BIASES = ("late", "math")
"""Of which seed 0 is judged at all of ``KS``, and everything else at ``K``."""
CONTROLLED = ("direct", "patching to mean")
DRAWN = ("direct", "mean ablation")
NO_FACTOR = "direct, without the norm's factor"
GEMMA_JUDGED = ("direct", NO_FACTOR, "patching to mean", "zero ablation", "mean ablation")


def measure(model, name):
    bias = shortened(load_bias(name))
    rows = [load_token(name, seed=seed) for seed in range(SEEDS)]
    without = maps_of(model, bias, rows[0], NO_INJECTION)
    found = [maps_of(model, bias, row, MAPS) | without for row in rows]
    other = BIASES[(BIASES.index(name) + 1) % len(BIASES)]
    control_rows = {
        "untrained row": [row.untrained() for row in rows],
        "other bias": [load_token(other, seed=seed) for seed in range(SEEDS)],
    }
    controls = {
        label: [maps_of(model, bias, row, {n: MAPS[n] for n in CONTROLLED}) for row in each]
        for label, each in control_rows.items()
    }
    write_json(RESULTS / f"{name}.json", summary(found, controls))
    files = {n: saved(found[0][n], f"{name}-0-{slug(n)}") for n in MAPS}
    drawn(f"{name}-methods", "methods", files)
    drawn(f"{name}-agreement", "agreement", {n: files[n] for n in DRAWN})
    for row, maps in zip(rows, found, strict=True):
        judged = {n: maps[n] for n in (*JUDGED, *NO_INJECTION)}
        ks = KS if row.seed == 0 and name in SWEPT_BIASES else (K,)
        held_out(model, bias, row, judged, ks, RESULTS / f"{name}-{row.seed}-held-out.json")


def costs(model):
    """Benefit and cost of the heads of late, seed 0: over k, and head by head."""
    bias, row = shortened(load_bias("late")), load_token("late")
    maps = maps_of(model, bias, row, {name: MAPS[name] for name in DRAWN})
    sweeps = {name: k_sweep(model, bias, row, scores) for name, scores in maps.items()}
    damage = head_damage(model, progress=True)
    found = {
        "k": {name: sweep.to_df().to_dict("records") for name, sweep in sweeps.items()},
        "saturation": {name: sweep.saturation_in_words() for name, sweep in sweeps.items()},
        "heads": {
            cost: {name: beside(scores.values, of_item) for name, scores in maps.items()}
            for cost, of_item in (("facts", damage.facts), ("loss", damage.loss))
        },
    }
    write_json(RESULTS / "costs.json", found)
    drawn("late-k", "k sweep", [saved(sweeps["mean ablation"], "late-0-k-sweep")])
    files = [saved(maps["mean ablation"], "late-0-mean-ablation"), saved(damage, "damage")]
    drawn("late-damage", "benefit and damage", files)


def beside(benefit, cost):
    """Are heads with a benefit ``[layer, head]`` also those with a cost ``[item, layer, head]``?"""
    flat = cost.flatten(1).double()
    halves = (flat[i::2].mean(0)[None] for i in range(2))
    tops = [set(top_heads(values, K)) for values in (benefit, cost.mean(0))]
    return {
        "rank_correlation": rank_correlation(
            benefit.double().reshape(1, -1), flat.mean(0)[None]
        ).item(),
        "reliability_of_cost": stepped_up(rank_correlation(*halves).item()),
        "in_both_tops": sorted(map(str, tops[0] & tops[1])),
        "n_items": len(cost),
    }


def saved(result, name):
    """The file of a result, as seen from the figures."""
    result.save(RESULTS / "maps" / name)
    return f"maps/{name}.safetensors"


def drawn(name, plot, files):
    print(draw(RESULTS, {name: recipe(plot, files)}) or name, flush=True)


def slug(name):
    return re.sub(r"\W+", "-", name)


def gemma():
    """One row on Gemma-3-270m; direct attribution also without the scale of the norm after it."""
    injection = runpy.run_path(str(ROOT / "docs" / "make_injection.py"))
    model, row = injection["gemma_row"]()
    bias = shortened(load_bias("late"))
    maps = maps_of(model, bias, row, MAPS)
    maps[NO_FACTOR] = without_factor(model, bias, row, maps["direct"])
    write_json(RESULTS / "gemma.json", summary([maps], {}))
    names = ("direct", NO_FACTOR, "mean ablation")
    drawn("gemma-maps", "methods", {n: saved(maps[n], f"gemma-late-0-{slug(n)}") for n in names})
    judged = {name: maps[name] for name in GEMMA_JUDGED}
    held_out(model, bias, row, judged, GEMMA_KS, RESULTS / "gemma-held-out.json")


def shortened(bias):
    """With fewer scoping prompts: an ablation sweep runs every head on each of them."""
    return dataclasses.replace(bias, scoping_prompts=bias.scoping_prompts[:N_PROMPTS])


def maps_of(model, bias, row, settings):
    """A map for every entry of ``settings``, kept in the cache folder."""
    steps = Steps(cache_dir() / "scoping" / key_of(bias, row))
    found = {}
    for name, options in settings.items():
        scope = BiasScope(**options, seed=row.seed)
        token = None if name in NO_INJECTION else row

        def score(scope=scope, token=token):
            return scope.attribute(model, bias, token, progress=True)

        print(bias.name, row.seed, name, flush=True)
        found[name] = steps.kept(slug(name), HeadScores, score)
    return found


def key_of(bias, row):
    return digest([bias.fingerprint(), row.row.tolist(), row.model])


def without_factor(model, bias, row, exact):
    """The map that direct attribution gives when the norm after attention is left out."""
    pairs = build_pairs(model, bias, row, seed=row.seed)
    no_norm = mock.patch("biasgym_tl.scoping.direct.post_norm", return_value=None)
    with row.attached(model), no_norm:
        ids = pairs.biased_ids, pairs.neutral_ids
        parts = unchecked_attribution(model, pairs.biased, *ids)
    return dataclasses.replace(
        exact, pair_values=parts.heads, reconstruction_error=parts.error(), mlps=parts.mlps
    )


def summary(found, controls):
    """What the tables show of the maps of all seeds."""
    of_trained = [{n: maps[n] for n in maps if n not in NO_INJECTION} for maps in found]
    names = list(of_trained[0])
    spread = {name: [concentration(maps[name].values) for maps in found] for name in names}
    result = {
        "agreement": [
            compare(list(maps.values()), names=names, k=K).to_df().to_dict("records")
            for maps in of_trained
        ],
        "top": [{name: list(map(str, s.top(K))) for name, s in maps.items()} for maps in found],
        "effective_heads": {name: [s.effective_heads for s in spread[name]] for name in names},
        "k_for_half": {name: [s.k_for(0.5) for s in spread[name]] for name in names},
        "reconstruction_error": {
            name: [maps[name].reconstruction_error.tolist() for maps in found]
            for name in names
            if found[0][name].reconstruction_error is not None
        },
        "settings": {"n_prompts": len(found[0]["direct"].prompts), "k": K},
        "versions": found[0]["direct"].versions,
    }
    if len(found) > 1:
        result["seeds"] = {
            name: seed_overlap(
                [maps[name] for maps in found],
                controls={
                    label: [maps[name] for maps in each]
                    for label, each in controls.items()
                    if name in CONTROLLED
                },
            )
            .to_df()
            .to_dict("records")
            for name in names
        }
    return result


def held_out(model, bias, row, maps, ks, path):
    """Mean-ablate the top k of every map, and random heads, on what no map has seen."""
    names = bias.sample_targets("held-out", N_TARGETS, seed=0)
    sets = {("whole", 0): []}
    for (name, scores), k in itertools.product(maps.items(), ks):
        sets[name, k] = select_heads(scores, k)
        sets[name, k].check_held_out(
            prompts=bias.evaluation_prompts, targets=names, texts=load_passages("damage")
        )
    rng = random.Random(f"{bias.name}-{row.seed}")
    units = all_heads(model.cfg.n_layers, model.cfg.n_heads)
    for i, k in itertools.product(range(N_RANDOM), ks):
        sets[f"random {i}", k] = rng.sample(units, k)
    key, means = key_of(bias, row), head_means(model)
    record = {"key": key, "sets": [], "targets": names, "seed": row.seed}
    kept = read_json(path) if path.exists() else record
    known = {(one["map"], *one["heads"]): one for one in kept["sets"] if kept["key"] == key}
    wanted = []
    for (name, k), heads in sets.items():
        shown = [str(Head(*head)) for head in heads]
        wanted.append((name, *shown))
        if wanted[-1] not in known:
            slots = (row.text, *names) if k in (0, K) else (row.text,)
            with row.attached(model), steer(model, heads, "mean", reference=means):
                measured = bias_log_odds(model, bias, bias.evaluation_prompts, slots).log_odds
                loss = mean_loss(model, load_passages("damage"))
            known[wanted[-1]] = {
                "map": name,
                "k": k,
                "heads": shown,
                "log_odds": measured[:, 0].tolist(),
                "targets": measured[:, 1:].tolist(),
                "loss": loss.tolist(),
            }
            print(bias.name, row.seed, name, k, f"{measured[:, 0].mean():+.2f}", flush=True)
            write_json(path, record | {"sets": list(known.values())})
    write_json(path, record | {"sets": [known[one] for one in wanted]})


def main():
    asked = sys.argv[1:]
    if "gemma" in asked:
        gemma()
    if set(asked) - {"gemma"}:
        model = load_model(MODEL)
        for name in (name for name in BIASES if name in asked):
            measure(model, name)
        if "costs" in asked:
            costs(model)


if __name__ == "__main__":
    main()
