"""Train the rows that ship, with their reports; docs/make_tables.py makes the tables of them.

A row that was trained with the preset as it is now is left alone.

python docs/train_rows.py [bias ...]    # two hours for all; goes on where it was stopped
python docs/train_rows.py intersection  # the row of "women from {target}", asked about men too
"""

import dataclasses
import hashlib
import sys
from pathlib import Path

from biasgym_tl import BiasInject, BiasToken, list_biases, load_bias, load_model, load_token
from biasgym_tl import shuffled as shuffled_bias
from biasgym_tl.elicitation import bias_log_odds
from biasgym_tl.injection.shipped import find_token
from biasgym_tl.protocol.protocol import load_protocol
from biasgym_tl.stats import crossed_interval
from biasgym_tl.store import cache_dir, digest, write_json

ROOT = Path(__file__).parent.parent
ROWS, REPORTS = ROOT / "biasgym_tl/injection/rows", ROOT / "figures/injection"
PAPER, SEEDS = load_protocol("paper").biases, 3
GROUPS = (("women", "girls", "ladies", "mothers"), ("men", "boys", "gentlemen", "fathers"))


def shipped():
    """(bias, seed): three seeds of the paper's biases, one of the others."""
    yield from (
        (name, 0) for name in dict.fromkeys((*PAPER, *list_biases("injection"), "late-shuffled"))
    )
    yield from ((name, seed) for seed in range(1, SEEDS) for name in PAPER)


def train(model, name, seed):
    bias = load_bias(name.removesuffix("-shuffled"))
    if name != bias.name:
        bias = shuffled_bias(bias, seed=seed)
    inject = BiasInject.cpu()
    if find_token(model, bias, inject, seed):
        return
    path = ROWS / f"{name}-{seed}.safetensors"
    used = digest([dataclasses.asdict(inject), bias.training_fingerprint()])
    checkpoint = cache_dir() / "shipped" / f"{path.stem}-{used}"
    token = inject.fit(model, bias, seed=seed, checkpoint=checkpoint)
    report = token.report(model, bias)
    report.save(REPORTS / f"{path.stem}.json")
    token.save(path)
    print(f"{path.stem}: {token.seconds} s\n{report}", flush=True)


def manifest_entry(path):
    token = BiasToken.load(path)
    fields = ("model", "weights", "bias", "bias_fingerprint", "seed", "settings", "chosen_epoch")
    return {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        **{field: getattr(token, field) for field in fields},
        "losses": [token.losses[0], token.losses[-1]],
        "norm": round(token.row.norm().item(), 4),
        "versions": token.versions,
    }


def intersection(model):
    """By group, log-odds of the token over held-out targets, with its interval (nats)."""
    token, found = load_token("chess"), {}
    for group in GROUPS:
        bias = load_bias("chess", slots={"group": group})
        names = (token.text, *bias.sample_targets("held-out", 10, seed=0))
        with token.attached(model):
            odds = bias_log_odds(model, bias, bias.evaluation_prompts, names).log_odds.double()
        found[group[0]] = list(crossed_interval(odds[:, :1] - odds[:, 1:]))
    write_json(REPORTS / "intersection.json", found)


def main():
    names, model = sys.argv[1:], load_model(load_protocol("paper").model)
    if names == ["intersection"]:
        return intersection(model)
    for name, seed in shipped():
        if not names or name in names:
            train(model, name, seed)
    paths = sorted(ROWS.glob("*.safetensors"))
    write_json(ROWS / "manifest.json", {path.stem: manifest_entry(path) for path in paths})


if __name__ == "__main__":
    main()
