"""Direct attribution against a bare forward pass and against TransformerLens's own, on SmolLM2.

64 pairs of 24 tokens; the candidates take turns, so that a busy machine slows all of them.

    python tests/benchmarks/attribution.py [rounds]
"""

import copy
import statistics
import sys
import time
import warnings

import torch
from transformer_lens import HookedTransformer
from transformer_lens.tools.analysis import direct_logit_attribution

from biasgym_tl import load_model
from biasgym_tl.packaged import packaged_folder
from biasgym_tl.scoping.direct import direct_attribution

warnings.simplefilter("ignore", DeprecationWarning)
ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 7
BATCH = 32

model = load_model("smollm2-135m-instruct")
folder = packaged_folder("smollm2-135m-instruct")
folded = HookedTransformer(copy.deepcopy(model.cfg), model.tokenizer)
folded.load_and_process_state_dict(dict(model.state_dict()), fold_value_biases=False)
folded.requires_grad_(False)

generator = torch.Generator().manual_seed(0)
tokens = torch.randint(5, 49_000, (64, 24), generator=generator)
biased, neutral = torch.randint(5, 49_000, (2, 64), generator=generator)


@torch.inference_mode()
def bare_forward():
    for part in tokens.split(BATCH):
        mask = torch.ones_like(part)
        model(part, attention_mask=mask, stop_at_layer=model.cfg.n_layers)


def ours():
    return direct_attribution(model, tokens.tolist(), biased, neutral, batch_size=BATCH).heads


@torch.inference_mode()
def transformer_lens():
    values = []
    for part, b, n in zip(*(x.split(BATCH) for x in (tokens, biased, neutral)), strict=True):
        _, cache = folded.run_with_cache(part)
        found = direct_logit_attribution(
            folded, cache=cache, answer_tokens=b, incorrect_tokens=n, unit="head"
        )
        heads = [i for i, label in enumerate(found.labels) if label.startswith("L")]
        values.append(found.attribution[heads].T.view(-1, 30, 9))
    return torch.cat(values)


def main():
    candidates = {f.__name__: f for f in (bare_forward, ours, transformer_lens)}
    seconds = {name: [] for name in candidates}
    difference = (ours() - transformer_lens()).abs().max().item()
    for _ in range(ROUNDS):
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
            f"({min(ratios):.2f}..{max(ratios):.2f}, {ROUNDS} pairs)"
        )
    print(f"largest difference of values: {difference:.1e}")


if __name__ == "__main__":
    main()
