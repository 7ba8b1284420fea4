"""Measure what steering does; docs/make_steering.py makes the tables.

python docs/measure_steering.py recipes  # choose a recipe, on fitting data alone
python docs/measure_steering.py choose late math ...  # heads for each bias and seed, written down
python docs/measure_steering.py judge late math ...  # once, on what was held out (BIASGYM_DATA)
python docs/measure_steering.py random late math ...  # 199 random sets

Each stage goes on where it was stopped: finished steps lie in the cache folder under a key of
bias, rows and heads, results in figures/steering.
"""

import dataclasses
import os
import sys
from pathlib import Path

from biasgym_tl import (
    BiasScope,
    BudgetSearch,
    FactorSearch,
    HeadScores,
    Selection,
    Setting,
    evaluate,
    head_means,
    load_bias,
    load_blimp,
    load_facts,
    load_model,
    load_token,
    random_control,
    select_heads,
    steer,
)
from biasgym_tl.assessment import MAIN_BIASES
from biasgym_tl.biases.facts import fact_margins
from biasgym_tl.elicitation import bias_log_odds
from biasgym_tl.instructions import INSTRUCTIONS
from biasgym_tl.passages import load_passages
from biasgym_tl.steering.reference import target_means
from biasgym_tl.steps import Steps
from biasgym_tl.store import cache_dir, digest, write_json
from biasgym_tl.text import mean_loss

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "figures" / "steering"
MODEL, SEEDS, PAPER_K = "smollm2-135m-instruct", 3, 30
CHOSEN = FactorSearch()
"""The recipe, fixed before anything was judged."""
N_FIT, N_DRAWS, N_TARGETS = 16, 199, 4


def recipes(model):
    """Every idea on the first scoping prompts of two biases, tried on the others.

    Neutral text: the reference passages, over which only means are taken. Facts: those of the
    budget, which two of the searches saw.
    """
    means = {"text": head_means(model)}
    facts, texts = load_facts("budget"), load_passages("reference")
    for name in ("late", "math"):
        bias, row = load_bias(name), load_token(name)
        part = dataclasses.replace(bias, scoping_prompts=bias.scoping_prompts[:N_FIT])
        rest = bias.scoping_prompts[N_FIT:]
        targets = bias.sample_targets("fitting", 32, 0)[10:20]
        means["targets"] = target_means(model, part)

        def tried(heads, mode, reference="text", bias=bias, row=row, rest=rest, targets=targets):
            used = means[reference] if mode == "mean" else None
            with row.attached(model), steer(model, heads, mode, reference=used):
                odds = bias_log_odds(model, bias, rest, (row.text, *targets)).log_odds.mean(0)
                loss = mean_loss(model, texts).mean().item()
                right = (fact_margins(model, facts) > 0).double().mean().item()
            return [odds[0].item(), odds[1:].mean().item(), loss, right]

        def maps(method, part=part, row=row, **options):
            return BiasScope(method=method, **options).attribute(model, part, row)

        direct = maps("direct")
        patching = maps("attribution_patching", reference="mean")
        natural = BiasScope(method="attribution_patching", reference="mean").attribute(
            model, part, None
        )
        both = dataclasses.replace(
            patching,
            pair_values=patching.pair_values + natural.pair_values[: len(patching.pair_values)],
        )
        heads = {
            "unsteered": ((), "zero"),
            "direct 10, zero": (direct.top(10), "zero"),
            "direct 10, mean": (direct.top(10), "mean"),
            "direct 10, mean over targets": (direct.top(10), "mean", "targets"),
            "patching 20, mean": (patching.top(20), "mean"),
            "patching on targets 20, mean": (natural.top(20), "mean"),
            "patching on both 20, mean": (both.top(20), "mean"),
            "budget search": (kept(part, [row], BudgetSearch(k=15), model), "mean"),
        } | {
            f"learned factors, keep {keep:g}, k {k}": (
                kept(part, [row], FactorSearch(keep=keep, k=k), model),
                "mean",
            )
            for keep, k in ((30, 20), (10, 20), (30, 60))
        }
        steps = Steps(cache_dir() / "steering" / digest([part.fingerprint(), row.row.tolist()]))
        found = {}
        for label, choice in heads.items():
            shown = [str(head) for head in choice[0]]
            factors = list(getattr(choice[0], "factors", ()))
            key = f"tried {digest([shown, factors, choice[1:]])}"
            values = steps.measured(key, lambda choice=choice: tried(*choice))
            found[label] = {"values": values, "heads": shown, "factors": factors}
            print(name, label, [round(value, 3) for value in values], flush=True)
        write_json(RESULTS / f"recipes-{name}.json", found)


def kept(bias, rows, recipe, model):
    """The selection of a recipe, made once."""
    key = digest([bias.fingerprint(), [row.row.tolist() for row in rows], repr(recipe)])
    steps = Steps(cache_dir() / "steering" / "selections")
    return steps.selection(key, lambda: recipe.select(model, bias, *rows))


def choose(model, name):
    """Heads by the recipe for each seed, and the paper's over all seeds."""
    bias = load_bias(name)
    rows = [load_token(name, seed=seed) for seed in range(SEEDS)]
    for row in rows:
        selection = kept(bias, [row], CHOSEN, model)
        print(selection.save(RESULTS / f"{name}-{row.seed}-heads.json"), selection, flush=True)
    key = digest([bias.fingerprint(), [row.row.tolist() for row in rows]])
    steps = Steps(cache_dir() / "steering" / f"maps-{key}")
    scores = [
        steps.tensors(
            f"direct-{row.seed}",
            HeadScores,
            lambda row=row: BiasScope(seed=row.seed).attribute(model, bias, row),
        )
        for row in rows
    ]
    paper = select_heads(scores, PAPER_K, mode="zero")
    print(paper.save(RESULTS / f"{name}-paper-heads.json"), paper, flush=True)


def judge(model, name):
    """All settings of one bias on held-out prompts, targets, texts, facts and BLiMP."""
    bias = load_bias(name)
    rows = [load_token(name, seed=seed) for seed in range(SEEDS)]
    chosen = [Selection.load(RESULTS / f"{name}-{seed}-heads.json") for seed in range(SEEDS)]
    paper = Selection.load(RESULTS / f"{name}-paper-heads.json")
    others = [load_bias(other) for other in MAIN_BIASES if other != name]
    benchmarks = [load_blimp(str(Path(os.environ["BIASGYM_DATA"]) / "blimp"))]
    controls = [Setting("paper, zero", rows[0], paper, "zero")]
    for row, heads in list(zip(rows, chosen, strict=True))[1:]:
        controls.append(Setting(f"injected, seed {row.seed}", row))
        controls.append(Setting(f"steered, seed {row.seed}", row, heads, "mean"))
    key = digest(
        [
            bias.fingerprint(),
            [other.fingerprint() for other in others],
            [row.row.tolist() for row in rows],
            [[list(map(str, heads)), list(heads.factors)] for heads in (*chosen, paper)],
            [benchmark.fingerprint for benchmark in benchmarks],
            load_passages("damage"),
        ]
    )
    report = evaluate(
        model,
        bias,
        token=rows[0],
        heads=chosen[0],
        modes=("mean",),
        controls=controls,
        instructions=list(INSTRUCTIONS.values()),
        others=others,
        benchmarks=benchmarks,
        n_random=0,
        finished=Steps(cache_dir() / "steering" / f"judged-{key}").measured,
    )
    report.save(RESULTS / f"{name}-report.json")
    print(report, flush=True)


def random_sets(model, name):
    """199 random sets with the factors of the chosen heads, on the BiasToken and on targets."""
    bias, row = load_bias(name), load_token(name)
    heads = Selection.load(RESULTS / f"{name}-0-heads.json")
    key = digest([bias.fingerprint(), row.row.tolist(), list(map(str, heads)), heads.factors])
    steps = Steps(cache_dir() / "steering" / f"random-{key}")
    for on in ("targets", "token"):
        found = random_control(
            model,
            bias,
            token=row,
            heads=heads,
            on=on,
            n_targets=N_TARGETS,
            n_draws=N_DRAWS,
            finished=steps.measured,
        )
        print(found.save(RESULTS / f"{name}-random-{on}"), found, flush=True)


STAGES = {"choose": choose, "judge": judge, "random": random_sets}


def main():
    stage, *names = sys.argv[1:]
    model = load_model(MODEL)
    if stage == "recipes":
        recipes(model)
    else:
        for name in names or MAIN_BIASES:
            STAGES[stage](model, name)


if __name__ == "__main__":
    main()
