"""The ablation sweep against one run for each head, on SmolLM2-135M-Instruct, 16 prompts.

Layer by layer they take turns; the values must be equal.

    python tests/benchmarks/ablation.py [every]   # the naive run on every so many layers; default 1
"""

import itertools
import sys
import time
import warnings

import torch

from biasgym_tl import load_bias, load_model, steer
from biasgym_tl.lens import logit_difference
from biasgym_tl.prompts import encode_answer, encode_sentence
from biasgym_tl.scoping.ablation import ablated
from biasgym_tl.slot import fill
from biasgym_tl.text import answer_differences

warnings.simplefilter("ignore")
EVERY = int(sys.argv[1]) if len(sys.argv) > 1 else 1
N_PROMPTS, N_HEADS = 16, 9


def timed(iterator):
    """Each item with the seconds that it took to come."""
    start = time.perf_counter()
    for item in iterator:
        yield time.perf_counter() - start, item
        start = time.perf_counter()


def main():
    model, bias = load_model("smollm2-135m-instruct"), load_bias("late")
    prompts = bias.scoping_prompts[:N_PROMPTS]
    sequences = [encode_sentence(model, fill(prompt, "Italy")) for prompt in prompts]
    labels = torch.tensor([encode_answer(model, word) for word in (" late", " on")])
    biased, neutral = labels.expand(2, N_PROMPTS)
    sweep, naive, compared, difference = 0.0, 0.0, 0.0, 0.0
    for layer, found in itertools.groupby(timed(ablated(model, sequences)), lambda x: x[1].layer):
        values, seconds = torch.zeros(N_HEADS, N_PROMPTS), 0.0
        for waited, (_, indices, last, resid) in found:
            for head, rows in enumerate(resid[:, torch.arange(len(last)), last]):
                values[head, indices] = logit_difference(
                    model, rows, biased[indices], neutral[indices]
                )
            seconds += waited
        sweep += seconds
        if layer % EVERY:
            continue
        compared += seconds
        start = time.perf_counter()
        one_by_one = []
        for head in range(N_HEADS):
            with steer(model, [(layer, head)]):
                one_by_one.append(answer_differences(model, sequences, biased, neutral))
        naive += time.perf_counter() - start
        difference = max(difference, (torch.stack(one_by_one) - values).abs().max().item())
    print(f"whole sweep {sweep:.1f} s")
    print(f"sweep / one run a head: {compared:.1f} / {naive:.1f} s = {compared / naive:.2f}")
    print(f"largest difference of values: {difference:.1e}")


if __name__ == "__main__":
    main()
