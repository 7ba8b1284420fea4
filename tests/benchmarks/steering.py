"""Generation with and without steering, on SmolLM2-135M-Instruct, in turns.

python tests/benchmarks/steering.py [rounds]

Seconds are those that the processor spent on this process, on one thread: what else the machine
does hardly shows in them.
"""

import statistics
import sys
import time
import warnings
from pathlib import Path
from unittest import mock

import torch

from biasgym_tl import BiasScope, Selection, load_bias, load_model, load_token, steer
from biasgym_tl.hooks import head_means
from biasgym_tl.prompts import encode_prompt
from biasgym_tl.slot import fill
from biasgym_tl.text import generate

warnings.simplefilter("ignore", DeprecationWarning)
ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 7
K, NEW_TOKENS = 30, 16


def main():
    torch.set_num_threads(1)
    model, bias = load_model("smollm2-135m-instruct"), load_bias("late")
    heads = BiasScope().attribute(model, bias, load_token("late")).top(K)
    learned = Selection.load(Path(__file__).parents[2] / "figures" / "steering" / "late-heads.json")
    reference = head_means(model)
    prompts = [encode_prompt(model, fill(p, "Italy")) for p in bias.generation_prompts]

    def plain():  # to the last token, whatever is written
        with mock.patch("biasgym_tl.text.ends_of_answer", return_value=set()):
            generate(model, prompts, max_new_tokens=NEW_TOKENS)

    def zero():
        with steer(model, heads):
            plain()

    def mean():
        with steer(model, heads, "mean", reference=reference):
            plain()

    def factors():
        with steer(model, learned, "mean", reference=reference):
            plain()

    steered = {zero: K, mean: K, factors: len(learned)}
    seconds = {candidate: [] for candidate in (plain, *steered)}
    plain()
    for _ in range(ROUNDS):
        for candidate, found in seconds.items():
            start = time.process_time()
            candidate()
            found.append(time.process_time() - start)
    for candidate, n_heads in steered.items():
        ratios = sorted(a / b for a, b in zip(seconds[candidate], seconds[plain], strict=True))
        print(
            f"{candidate.__name__}, {n_heads} heads / plain: {statistics.median(ratios):.3f} "
            f"[{ratios[0]:.3f}, {ratios[-1]:.3f}] of {ROUNDS} rounds, "
            f"{len(prompts)} answers of {NEW_TOKENS} tokens"
        )


if __name__ == "__main__":
    main()
