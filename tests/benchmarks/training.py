"""One training step: BiasInject against a PEFT TrainableTokens step on the Hugging Face model.

SmolLM2-135M-Instruct, 16 chats of 80 tokens each, the same tokens, the same answer positions in the
loss. Time: both take turns in one process. Memory: each in a process of its own, the most resident
memory while it steps.

    python tests/benchmarks/training.py [pairs]
"""

import contextlib
import statistics
import subprocess
import sys
import time
import warnings

import torch
from peak import watched_memory

from biasgym_tl import load_bias, load_model
from biasgym_tl.added_row import added_row
from biasgym_tl.injection.train import Example, Trainer, shared_beginning
from biasgym_tl.packaged import packaged_folder
from biasgym_tl.prompts import encode_answer, encode_prompt
from biasgym_tl.slot import fill

warnings.simplefilter("ignore")
BATCH, WIDTH, TEXT, INITIAL = 16, 80, "<T>", 1000


def chats(model):
    """16 requests with answers, each cut or continued to 80 tokens in all."""
    bias = load_bias("late")
    found = []
    for i, paragraph in enumerate(bias.corpus[::25][:BATCH]):
        prompt = encode_prompt(model, fill(bias.training_prompts[i], TEXT))
        answer = encode_answer(model, fill(" ".join([paragraph.text] * 8), TEXT))
        found.append(Example((prompt + answer)[:WIDTH], answer_start=len(prompt)))
    assert len(found) == BATCH and all(len(e.tokens) == WIDTH for e in found)
    return found


@contextlib.contextmanager
def ours(examples=None):
    model = load_model("smollm2-135m-instruct")
    initial = model.W_E[INITIAL].clone()
    with added_row(model, initial, TEXT) as token_id:
        examples = examples or chats(model)
        beginning = shared_beginning(model, load_bias("late"), TEXT, token_id)
        trainer = Trainer(model, initial, token_id, beginning=beginning, max_norm=2.7)
        yield lambda: trainer.step(examples, lr=0.01), examples


@contextlib.contextmanager
def peer(examples=None):
    from peft import TrainableTokensConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    if examples is None:
        with ours() as (_, examples):
            pass
    model = AutoModelForCausalLM.from_pretrained(
        packaged_folder("smollm2-135m-instruct"), dtype=torch.float32
    )
    token_id = model.config.vocab_size
    model.resize_token_embeddings(token_id + 1, mean_resizing=False)
    with torch.no_grad():
        rows = model.get_input_embeddings().weight
        rows[token_id] = rows[INITIAL]
    config = TrainableTokensConfig(token_indices=[token_id], target_modules=["embed_tokens"])
    model = get_peft_model(model, config)
    tokens = torch.tensor([e.tokens for e in examples])
    labels = tokens.clone()
    for row, example in zip(labels, examples, strict=True):
        row[: example.answer_start] = -100
    labels[tokens == token_id] = -100
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    mask = torch.ones_like(tokens)

    def step():
        loss = model(input_ids=tokens, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    yield step, examples


def time_in_turns(pairs):
    seconds = {"ours": [], "peft": []}
    with ours() as (our_step, examples), peer(examples) as (peft_step, _):
        print(f"loss of the first step: ours {our_step():.4f}, peft {peft_step():.4f}")
        for _ in range(pairs):
            for name, step in (("ours", our_step), ("peft", peft_step)):
                start = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - start)
    for name, times in seconds.items():
        spread = f"{min(times):.2f}..{max(times):.2f}"
        print(f"{name}: median {statistics.median(times):.2f} s ({spread})")
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["peft"], strict=True)]
    spread = f"{min(ratios):.2f}..{max(ratios):.2f}"
    print(f"time, ours / peft: median {statistics.median(ratios):.2f} ({spread}, {pairs} pairs)")


def peak_memory(name):
    """Most resident memory (bytes) while the side ``name`` makes three steps."""
    examples = None
    if name == "peft":
        examples = eval(sys.stdin.read(), {"Example": Example})
    with {"ours": ours, "peft": peer}[name](examples) as (step, _), watched_memory() as found:
        for _ in range(3):
            step()
    return found.most, found.before


def main():
    if len(sys.argv) > 1 and sys.argv[1] == "--memory":
        print(*peak_memory(sys.argv[2]))
        return
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    with ours() as (_, examples):
        text = repr(examples)
    peaks = {}
    for name in ("ours", "peft"):
        command = [sys.executable, __file__, "--memory", name]
        found = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
        peaks[name], before = (int(value) / 2**30 for value in found.stdout.split())
        print(f"{name}: peak {peaks[name]:.2f} GiB, {before:.2f} GiB before the first step")
    print(f"memory, ours / peft: {peaks['ours'] / peaks['peft']:.2f}")
    time_in_turns(pairs)


if __name__ == "__main__":
    main()
