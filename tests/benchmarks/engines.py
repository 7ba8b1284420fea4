"""HookedTransformer and TransformerBridge: the same work and the same numbers, in turn.

    python tests/benchmarks/engines.py build/bridge/bin/python

Each engine runs in an interpreter of its own, a few rounds in turn; printed are medians as ratios,
bridge over HookedTransformer, and how far numbers are apart.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 3


def work() -> dict[str, object]:
    """Seconds of each job, peak memory (GiB), and numbers that must be equal."""
    import torch

    from biasgym_tl import BiasInject, BiasScope, load_bias, load_model, load_token
    from biasgym_tl.lens import final_resid
    from biasgym_tl.scoping.ablation import ablated_deltas
    from biasgym_tl.text import generate

    torch.set_num_threads(1)
    torch.manual_seed(0)
    found: dict[str, object] = {}

    def timed(name, job):
        start = time.perf_counter()
        made = job()
        found[name] = time.perf_counter() - start
        return made

    model = timed("load", lambda: load_model("smollm2-135m-instruct", progress=False))
    found["peak GiB after loading"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    bias, token = load_bias("late"), load_token("late")
    tokens = torch.arange(8 * 64).view(8, 64) % 1000 + 100
    ids = torch.tensor([1000]), torch.tensor([2000])
    with torch.inference_mode():
        final_resid(model, tokens)
        timed("forward", lambda: final_resid(model, tokens))
    scope = BiasScope(contrast="difference")
    scores = timed("attribution", lambda: scope.attribute(model, bias, token, progress=False))
    sequence = [tokens[0, :24].tolist()]
    timed("sweep", lambda: ablated_deltas(model, sequence, *ids))
    inject = BiasInject(epochs=1, n_paragraphs=8, choose_by="last")
    row = timed("training", lambda: inject.fit(model, bias, progress=False)).row
    text = timed("generation", lambda: generate(model, sequence, max_new_tokens=32))
    found["numbers"] = {
        "map": scores.values.flatten().tolist(), "row": row.tolist(), "text": text,
        "top ten": list(map(str, scores.top(10))),
    }  # fmt: skip
    return found


def main() -> None:
    if len(sys.argv) == 1:
        print(json.dumps(work()))
        return
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    runs: dict[str, list[dict]] = {"hooked": [], "bridge": []}
    for _ in range(ROUNDS):
        for name, python in (("hooked", sys.executable), ("bridge", sys.argv[1])):
            said = subprocess.run(
                [python, __file__], capture_output=True, text=True, check=True, env=env
            )
            runs[name].append(json.loads(said.stdout.splitlines()[-1]))
    for job in runs["hooked"][0].keys() - {"numbers"}:
        ours, theirs = (statistics.median(r[job] for r in runs[n]) for n in ("hooked", "bridge"))
        print(f"{job}: {theirs / ours:.2f} ({ours:.2f} -> {theirs:.2f})")
    one, other = (runs[name][0]["numbers"] for name in ("hooked", "bridge"))
    for name in ("map", "row"):
        print(name, max(abs(a - b) for a, b in zip(one[name], other[name], strict=True)))
    print(
        "same text:", one["text"] == other["text"], "same ten:", one["top ten"] == other["top ten"]
    )


if __name__ == "__main__":
    main()
