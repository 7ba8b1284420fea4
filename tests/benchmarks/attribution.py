"""Direct attribution against a bare forward pass and against TransformerLens's own, on SmolLM2.

32 pairs, scoping prompts of "late" with countries, all of one length: what they begin with is the
same, and ours runs it once. With `random`, tokens that have nothing in common. Time: the candidates
take turns, so that a busy machine slows all of them. Memory: each in a process of its own, the most
that it takes beyond the loaded model; ours with 1,000 pairs too.

    python tests/benchmarks/attribution.py [rounds] [random]
"""

import copy
import statistics
import subprocess
import sys
import time
import warnings
from collections import Counter

import torch
from peak import watched_memory
from transformer_lens import HookedTransformer
from transformer_lens.tools.analysis import direct_logit_attribution

from biasgym_tl import load_bias, load_model
from biasgym_tl.biases.countries import load_countries
from biasgym_tl.prompts import encode_sentence
from biasgym_tl.scoping.direct import direct_attribution
from biasgym_tl.slot import fill

warnings.simplefilter("ignore", DeprecationWarning)
BATCH = 32

model = load_model("smollm2-135m-instruct")
folded = HookedTransformer(copy.deepcopy(model.cfg), model.tokenizer)
folded.load_and_process_state_dict(dict(model.state_dict()), fold_value_biases=False)
folded.requires_grad_(False)

PAIRS = 32
generator = torch.Generator().manual_seed(0)
biased, neutral = torch.randint(5, 49_000, (2, 1000), generator=generator)
if "random" in sys.argv:
    sequences = torch.randint(5, 49_000, (1000, 24), generator=generator).tolist()
else:
    prompts = [fill(p, c.name) for p in load_bias("late").scoping_prompts for c in load_countries()]
    sequences = [encode_sentence(model, prompt) for prompt in prompts][:1000]
length, _ = Counter(map(len, sequences)).most_common(1)[0]
sequences.sort(key=lambda sequence: len(sequence) != length)  # TransformerLens reads at the end
tokens = torch.tensor(sequences[:PAIRS])


@torch.inference_mode()
def bare_forward():
    for part in tokens.split(BATCH):
        mask = torch.ones_like(part)
        model(part, attention_mask=mask, stop_at_layer=model.cfg.n_layers)


def ours(n=PAIRS):
    labels = biased[:n], neutral[:n]
    return direct_attribution(model, sequences[:n], *labels, batch_size=BATCH).heads


def ours_1000():
    return ours(1000)


@torch.inference_mode()
def transformer_lens():
    values = []
    data = (x[:PAIRS].split(BATCH) for x in (tokens, biased, neutral))
    for part, b, n in zip(*data, strict=True):
        _, cache = folded.run_with_cache(part)
        found = direct_logit_attribution(
            folded, cache=cache, answer_tokens=b, incorrect_tokens=n, unit="head"
        )
        heads = [i for i, label in enumerate(found.labels) if label.startswith("L")]
        values.append(found.attribution[heads].T.view(-1, 30, 9))
    return torch.cat(values)


def extra_memory(name):
    """Most memory (MiB) that a candidate takes beyond what is there after a first small call."""
    ours(BATCH)
    with watched_memory() as found:
        {f.__name__: f for f in (bare_forward, ours, ours_1000, transformer_lens)}[name]()
    return (found.most - found.before) / 2**20


def print_memory():
    extra = {}
    for name in ("bare_forward", "ours", "ours_1000", "transformer_lens"):
        command = [sys.executable, __file__, "--memory", name, *sys.argv[2:]]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        extra[name] = float(found.stdout.split()[-1])
        print(f"{name:17} {extra[name]:7.0f} MiB beyond the model")
    print(f"memory, ours / transformer_lens: {extra['ours'] / extra['transformer_lens']:.2f}")
    print(f"memory, 1,000 pairs / {PAIRS} pairs: {extra['ours_1000'] / extra['ours']:.2f}")


def main():
    if sys.argv[1:2] == ["--memory"]:
        print(extra_memory(sys.argv[2]))
        return
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    print_memory()
    print(f"{PAIRS} pairs of {length} tokens")
    candidates = {f.__name__: f for f in (bare_forward, ours, transformer_lens)}
    seconds = {name: [] for name in candidates}
    difference = (ours() - transformer_lens()).abs().max().item()
    for _ in range(rounds):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    for name, times in seconds.items():
        spread = f"{min(times):.2f}..{max(times):.2f}"
        print(f"{name:17} median {statistics.median(times):6.2f} s  {spread}")
    for name, peer in (("ours", "bare_forward"), ("transformer_lens", "ours")):
        ratios = [a / b for a, b in zip(seconds[name], seconds[peer], strict=True)]
        print(
            f"{name} / {peer}: median {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f}..{max(ratios):.2f}, {rounds} pairs)"
        )
    print(f"largest difference of values: {difference:.1e}")


if __name__ == "__main__":
    main()
