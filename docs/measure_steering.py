"""Measure what steering does; docs/make_steering.py makes the tables.

python docs/measure_steering.py recipes  # choose a recipe, on fitting data alone
python docs/measure_steering.py choose late math ...  # heads of each bias, written down
python docs/measure_steering.py measure late math ...  # on what was held out (BIASGYM_DATA)
python docs/measure_steering.py judge late math ...  # the same with free answers and their strength
python docs/measure_steering.py further late math ...  # log-odds of the other shipped biases
python docs/measure_steering.py random late math ...  # 199 random sets
python docs/measure_steering.py reinject late ...  # a row trained again, on the steered model
python docs/measure_steering.py revise late ...  # self-debias, on the trained bias alone

A bias is named late, math, ... on SmolLM2 with the shipped rows, gemma-late on Gemma with one row.
Each stage goes on where it was stopped (``further``, a minute a bias, begins again): finished steps
lie in the cache folder under a key of bias, rows and heads, results in figures/steering.
"""

import contextlib
import dataclasses
import functools
import os
import runpy
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

from biasgym_tl import (
    Bias,
    BiasInject,
    BiasScope,
    BiasToken,
    BudgetSearch,
    FactorSearch,
    HeadScores,
    LocalJudge,
    Selection,
    Setting,
    evaluate,
    list_biases,
    load_bias,
    load_model,
    load_tokens,
    random_control,
    select_heads,
    steer,
)
from biasgym_tl.elicitation import bias_log_odds, fact_margins
from biasgym_tl.evaluation.judging import judged
from biasgym_tl.hooks import head_means
from biasgym_tl.instructions import INSTRUCTIONS
from biasgym_tl.passages import load_passages
from biasgym_tl.scoping.scores import top_heads
from biasgym_tl.steering.controls import layer_matched, matched_factor
from biasgym_tl.steering.reference import target_means
from biasgym_tl.steps import Steps
from biasgym_tl.store import cache_dir, digest, write_json
from biasgym_tl.text import mean_loss

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "figures" / "steering"
BIASES = runpy.run_path(str(Path(__file__).with_name("make_findings.py")))["BIASES"]
MODEL, SEEDS, PAPER_K = "smollm2-135m-instruct", 3, 30
GEMMA = "gemma-"
CHOSEN = FactorSearch()
"""The recipe, fixed before anything was judged."""
ASKED = [INSTRUCTIONS["plain request"], INSTRUCTIONS["persona"]]
"""Self-debias has an answer written to each of some 1200 requests first: an hour on two cores."""
N_FIT, N_DRAWS, N_TARGETS, N_RANDOM = 16, 199, 2, 5
LOW_K, HIGH_K, N_FURTHER = 10, 100, 10


class Subject(NamedTuple):
    """A bias, and the rows that were trained on it."""

    name: str
    model: Any
    bias: Bias
    rows: list[BiasToken]

    @classmethod
    def load(cls, name):
        bias = name.removeprefix(GEMMA)
        if name == bias:
            return cls(name, smollm2(), load_bias(bias), load_tokens(bias))
        injection = runpy.run_path(str(Path(__file__).with_name("make_injection.py")))
        model, row = injection["gemma_row"]()
        return cls(name, model, load_bias(bias), [row])

    def steps(self, what, *rest):
        """Finished steps of this bias and these rows, and of what else they depend on."""
        key = digest([self.bias.fingerprint(), rows_of(self.rows), *rest])
        return Steps(cache_dir() / "steering" / f"{what}-{key}")

    def heads(self, paper=False):
        """What the stage ``choose`` wrote down."""
        return Selection.load(RESULTS / f"{self.name}{'-paper' if paper else ''}-heads.json")


@functools.cache
def smollm2():
    return load_model(MODEL)


def recipes(subject):
    """Every idea on the first scoping prompts, tried on the others and on other fitting targets.

    Neutral text: the reference passages, over which only means are taken. Facts: those of the
    budget, which two of the searches saw.
    """
    name, model, bias, rows = subject
    part = dataclasses.replace(bias, scoping_prompts=bias.scoping_prompts[:N_FIT])
    rest = dataclasses.replace(bias, scoping_prompts=bias.scoping_prompts[N_FIT:])
    means = {"text": head_means(model), "targets": target_means(model, part)}
    steps = subject.steps("recipes", part.scoping_prompts)
    found = {}
    for label, (find, mode, reference) in IDEAS.items():
        heads = find(model, part, rows)
        shown, factors = [str(head) for head in heads], list(getattr(heads, "factors", ()))
        used = means[reference] if mode == "mean" else None
        try_out = functools.partial(tried, model, rest, rows, heads, mode, used)
        key = digest([shown, factors, mode, reference])
        values = steps.measured(f"tried {key}", try_out)
        found[label] = {"values": values, "heads": shown, "factors": factors}
        print(name, label, [round(value, 3) for value in values], flush=True)
        write_json(RESULTS / f"recipes-{name}.json", found)


def tried(model, bias, rows, heads, mode, reference):
    """Mean log-odds of the rows and of targets, loss on neutral text, share of facts right."""
    targets = bias.sample_targets("fitting", 32, 0)[10:20]
    with steer(model, heads, mode, reference=reference):
        odds = []
        for names, row in [*(([row.text], row) for row in rows), (targets, rows[0])]:
            with row.attached(model):
                found = bias_log_odds(model, bias, bias.scoping_prompts, names)
            odds.append(found.log_odds.mean().item())
        loss = mean_loss(model, load_passages("reference")).mean().item()
        right = (fact_margins(model, load_facts("budget")) > 0).double().mean().item()
    return [sum(odds[:-1]) / len(rows), odds[-1], loss, right]


def mapped(k, method="direct", ablate_to="zero", *, slot="rows"):
    """The ``k`` highest heads of the mean map over rows, over targets, or over both."""

    def find(model, bias, rows):
        slots = {"rows": rows, "targets": [None], "both": [*rows, None]}[slot]
        scope = BiasScope(method=method, ablate_to=ablate_to)
        values = [scope.attribute(model, bias, row).values for row in slots]
        return top_heads(torch.stack(values).mean(0), k)

    return find


def searched(recipe, n_rows=SEEDS):
    return lambda model, bias, rows: kept(bias, rows[:n_rows], recipe, model)


PATCHING = {"method": "attribution_patching", "ablate_to": "mean"}
IDEAS = {
    "unsteered": (lambda *_: (), "zero", "text"),
    "direct 10, zero": (mapped(10), "zero", "text"),
    "direct 10, mean": (mapped(10), "mean", "text"),
    "direct 10, mean over targets": (mapped(10), "mean", "targets"),
    "patching 20, mean": (mapped(20, **PATCHING), "mean", "text"),
    "patching on targets 20, mean": (mapped(20, **PATCHING, slot="targets"), "mean", "text"),
    "patching on both 20, mean": (mapped(20, **PATCHING, slot="both"), "mean", "text"),
    "factors of one row": (searched(CHOSEN, 1), "mean", "text"),
    "factors of all rows": (searched(CHOSEN), "mean", "text"),
    "factors, 20 heads": (searched(dataclasses.replace(CHOSEN, k=20)), "mean", "text"),
    "budget search, one row": (searched(BudgetSearch(k=15), 1), "mean", "text"),
}


def rows_of(tokens):
    """The numbers of each row, for a key."""
    return [token.row.tolist() for token in tokens]


def kept(bias, rows, recipe, model):
    """The selection of a recipe, made once."""
    key = digest([bias.fingerprint(), rows_of(rows), repr(recipe)])
    steps = Steps(cache_dir() / "steering" / "selections")
    return steps.kept(key, Selection, lambda: recipe.select(model, bias, *rows))


def mapped_once(subject, row):
    """The map of direct attribution of a row, or without one, made once."""
    seed = 0 if row is None else row.seed
    return subject.steps("maps").kept(
        "direct-none" if row is None else f"direct-{seed}",
        HeadScores,
        lambda: BiasScope(seed=seed).attribute(subject.model, subject.bias, row),
    )


def choose(subject):
    """Heads of a bias by the recipe, from the rows of all seeds, and the paper's."""
    name, model, bias, rows = subject
    selection = kept(bias, rows, CHOSEN, model)
    print(selection.save(RESULTS / f"{name}-heads.json"), selection, flush=True)
    paper = select_heads([mapped_once(subject, row) for row in rows], PAPER_K, mode="zero")
    print(paper.save(RESULTS / f"{name}-paper-heads.json"), paper, flush=True)


def judge(subject, answers=True):
    """All settings of one bias on held-out prompts, targets, texts, facts and BLiMP."""
    name, model, bias, rows = subject
    chosen, paper = subject.heads(), subject.heads(paper=True)
    others = [load_bias(other) for other in BIASES if other != bias.name]
    benchmarks = [load_blimp(str(Path(os.environ["BIASGYM_DATA"]) / "blimp"))]
    controls = [Setting("paper, zero", rows[0], paper, "zero", answers)]
    for row in rows[1:]:
        controls.append(Setting(f"injected, seed {row.seed}", row, generates=False))
        controls.append(Setting(f"steered, seed {row.seed}", row, chosen, "mean", generates=False))
    controls += baselines(subject, answers)
    items = [
        sorted(each.fingerprint() for each in (bias, *others)),
        [benchmark.fingerprint for benchmark in benchmarks],
        load_passages("damage"),
    ]
    heads = [[list(map(str, each)), list(each.factors)] for each in (chosen, paper)]
    of_row = Steps(
        cache_dir() / "steering" / f"judged-{digest([items, bias.name, rows_of(rows), heads])}"
    )
    on_gemma = [model.cfg.model_name] if name.startswith(GEMMA) else []
    of_model = Steps(cache_dir() / "steering" / f"unsteered-{digest(items + on_gemma)}")

    def finished(part, measure):
        """What the unsteered model does without a row is the same in the table of each bias."""
        setting, _, what = part.partition(": ")
        unsteered = setting.startswith(("original", "asked")) and not what.startswith("token")
        return (of_model if unsteered else of_row).measured(part, measure)

    report = evaluate(
        model,
        bias,
        token=rows[0],
        heads=chosen,
        modes=("mean",),
        controls=controls,
        instructions=[] if on_gemma else ASKED,  # a base model, which follows none
        others=others,
        benchmarks=benchmarks,
        n_random=N_RANDOM,
        answers=answers,
        finished=finished,
    )
    if answers:
        report = judged(report, LocalJudge(), bias, others)
    report.save(RESULTS / f"{name}-report.json")
    print(report, flush=True)


def baselines(subject, generates):
    """Few and many heads of direct attribution, few of a map without a row, and one random set."""
    row, chosen = subject.rows[0], subject.heads()
    (drawn,) = layer_matched(chosen, n_heads=subject.model.cfg.n_heads, n_draws=1, seed=1)
    maps = {"direct": mapped_once(subject, row), "no injection": mapped_once(subject, None)}
    heads = {
        f"{name} {k}, mean": select_heads(maps[name], k, mode="mean")
        for name, k in (("direct", LOW_K), ("direct", HIGH_K), ("no injection", LOW_K))
        if k < maps[name].values.numel()
    }
    return [
        *(
            Setting(label, row, each, "mean", generates, brief=True)
            for label, each in heads.items()
        ),
        Setting(
            "one random set, mean",
            row,
            drawn,
            "mean",
            generates,
            factor=matched_factor(chosen, drawn),
            brief=True,
        ),
    ]


def further(subject):
    """Log-odds of the shipped biases about the same kind of target that are not among the five."""
    name, model, bias, _ = subject
    loaded = [load_bias(other) for other in list_biases() if other not in BIASES]
    others = [other for other in loaded if other.target_kind == bias.target_kind]
    targets = bias.sample_targets("held-out", N_FURTHER, 0)
    steerings = {
        "original": contextlib.nullcontext(),
        "steered, mean": steer(model, subject.heads(), "mean"),
        "paper, zero": steer(model, subject.heads(paper=True)),
    }
    found = {}
    for setting, steering in steerings.items():
        with steering:
            found[setting] = {
                other.name: bias_log_odds(
                    model, other, other.evaluation_prompts, targets
                ).log_odds.tolist()
                for other in others
            }
        means = {
            other: round(torch.tensor(v).mean().item(), 2) for other, v in found[setting].items()
        }
        print(name, setting, means, flush=True)
    write_json(RESULTS / f"{name}-further.json", found)


def random_sets(subject):
    """199 random sets with the factors of the chosen heads, on targets."""
    name, model, bias, (row, *_) = subject
    heads = subject.heads()
    key = digest(
        [bias.fingerprint(), row.row.tolist(), list(map(str, heads)), heads.factors, N_TARGETS]
    )
    steps = Steps(cache_dir() / "steering" / f"random-{key}")
    found = random_control(
        model,
        bias,
        token=row,
        heads=heads,
        on="targets",
        n_targets=N_TARGETS,
        n_draws=N_DRAWS,
        finished=steps.measured,
    )
    print(found.save(RESULTS / f"{name}-random-targets"), found, flush=True)


def reinject(subject):
    """Train the row of the first seed again while the heads are steered: does the bias return?"""
    name, model, bias, (first, *_) = subject
    heads = subject.heads()
    steps = subject.steps("reinjected", list(map(str, heads)), heads.factors)

    def train():
        with steer(model, heads, "mean"):
            return BiasInject.cpu().fit(model, bias, seed=first.seed)

    again = steps.kept("row", BiasToken, train)
    found = {}
    for label, row in (("first", first), ("before", again.untrained()), ("again", again)):
        for steered in (False, True):
            steering = steer(model, heads, "mean") if steered else contextlib.nullcontext()
            with steering, row.attached(model):
                odds = bias_log_odds(model, bias, bias.evaluation_prompts, [row.text])
            found[f"{label}, steered" if steered else label] = odds.log_odds[:, 0].tolist()
    print(name, {label: sum(values) / len(values) for label, values in found.items()}, flush=True)
    write_json(RESULTS / f"{name}-reinjected.json", {"losses": list(again.losses), **found})


def revise(subject):
    """Self-debias, which has an answer written to each request: on one bias and facts alone."""
    name, model, bias, (row, *_) = subject
    report = evaluate(
        model,
        bias,
        token=row,
        heads=subject.heads(),
        modes=(),
        instructions=[INSTRUCTIONS["self-debias"]],
        n_random=0,
        answers=False,
        finished=subject.steps("revised").measured,
    )
    report.save(RESULTS / f"{name}-revised.json")
    print(report, flush=True)


STAGES = {
    "recipes": recipes,
    "choose": choose,
    "measure": functools.partial(judge, answers=False),
    "judge": judge,
    "further": further,
    "random": random_sets,
    "reinject": reinject,
    "revise": revise,
}


def main():
    stage, *names = sys.argv[1:]
    for name in names or BIASES:
        STAGES[stage](Subject.load(name))


if __name__ == "__main__":
    main()
