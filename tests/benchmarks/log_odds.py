"""Log-odds of one setting: the shared beginning run once, against run with every sequence.

16 evaluation prompts x (BiasToken + 10 countries) on SmolLM2; the candidates take turns, so that a
busy machine slows both. Also one draw of the random control, of which 199 make a p-value.

    python tests/benchmarks/log_odds.py [rounds]
"""

import statistics
import sys
import time
import warnings

import torch

from biasgym_tl import load_bias, load_model, load_token
from biasgym_tl.batches import BATCH_SIZE, answer_batches, common_beginning
from biasgym_tl.biases.countries import sample_countries
from biasgym_tl.elicitation import bias_log_odds
from biasgym_tl.lens import unembed
from biasgym_tl.prompts import encode_sentence
from biasgym_tl.slot import fill

warnings.simplefilter("ignore", DeprecationWarning)
ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 7

model, bias, token = load_model("smollm2-135m-instruct"), load_bias("late"), load_token("late")
prompts = bias.evaluation_prompts[:16]
targets = (token.text, *(c.name for c in sample_countries("held-out", 10, seed=0)))


def shared():
    return bias_log_odds(model, bias, prompts, targets).log_p


@torch.inference_mode()
def not_shared():
    sequences = [encode_sentence(model, fill(p, t)) for p in prompts for t in targets]
    for batch in answer_batches(model, sequences, BATCH_SIZE, shared=0):
        resid = model(**batch.arguments)
        unembed(model, resid[torch.arange(len(batch.last)), batch.last]).log_softmax(-1)


def one_draw():
    return bias_log_odds(model, bias, bias.evaluation_prompts, targets[:1]).log_odds


def main():
    seconds = {f.__name__: [] for f in (shared, not_shared, one_draw)}
    with token.attached(model):
        sequences = [encode_sentence(model, fill(p, t)) for p in prompts for t in targets]
        for _ in range(ROUNDS):
            for name in seconds:
                start = time.perf_counter()
                globals()[name]()
                seconds[name].append(time.perf_counter() - start)
    n, own = len(sequences), sum(map(len, sequences))
    print(f"{n} sequences, {own} tokens, {common_beginning(sequences)} of each shared by all")
    for name, times in seconds.items():
        spread = f"{min(times):.2f}..{max(times):.2f}"
        print(f"{name:12} median {statistics.median(times):6.2f} s  {spread}")
    ratios = [a / b for a, b in zip(seconds["shared"], seconds["not_shared"], strict=True)]
    print(
        f"shared / not_shared: median {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f}..{max(ratios):.2f}, {ROUNDS} pairs)"
    )


if __name__ == "__main__":
    main()
