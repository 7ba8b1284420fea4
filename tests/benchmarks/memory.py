"""Peak memory of each step as a multiple of the weights, in the dtype that they are kept in.

    python tests/benchmarks/memory.py                 # SmolLM2-135M-Instruct
    python tests/benchmarks/memory.py FOLDER

The checkpoint is first written in each dtype, so that none is cast while it is read. Each dtype
runs in a process of its own; counted is what is resident beyond what was before the model.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from peak import watched_memory

DTYPES = ("float32", "bfloat16")


def written(name: str, dtype: str, folder: Path) -> Path:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from biasgym_tl.origin import find_source

    source = find_source(name)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype))
    model.save_pretrained(folder / dtype, max_shard_size="1GB")
    AutoTokenizer.from_pretrained(source).save_pretrained(folder / dtype)
    return folder / dtype


def measured(folder: str, dtype: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from biasgym_tl import (
        BiasInject,
        BiasScope,
        Head,
        bias_log_odds,
        export_steered,
        load_bias,
        load_model,
        steer,
    )  # fmt: skip
    from biasgym_tl.added_row import added_row
    from biasgym_tl.text import generate, mean_loss

    bias = load_bias("late")
    inject = BiasInject(epochs=1, n_paragraphs=16, choose_by="last")

    def step(name: str, job: Callable[[], object]) -> object:
        with watched_memory() as memory:
            made = job()
        peaks.append((name, memory.most - start))
        return made

    peaks: list[tuple[str, int]] = []
    tiny = LlamaConfig(vocab_size=512, hidden_size=64, num_hidden_layers=2, num_attention_heads=2)
    load_model(AutoModelForCausalLM.from_config(tiny), progress=False)  # imports what loading does
    with watched_memory() as memory:
        pass
    start = memory.before
    model = step("load", lambda: load_model(folder, dtype=dtype, progress=False))
    weights = sum(w.numel() * w.element_size() for w in model.parameters())
    with watched_memory() as memory:
        pass
    peaks.append(("at rest", memory.before - start))

    def export(check: bool) -> None:
        with tempfile.TemporaryDirectory() as to:
            heads = [Head(0, 0)]
            export_steered(model, heads, to, source=folder, check=check, progress=False)

    step("export, unchecked", lambda: export(False))
    step("export", lambda: export(True))

    def attach() -> None:
        for _ in range(3):
            with added_row(model, torch.ones(model.cfg.d_model), "<x>"):
                pass

    step("attach", attach)
    token = step("train", lambda: inject.fit(model, bias, progress=False))
    step("attribute", lambda: BiasScope().attribute(model, bias, token, progress=False))

    def steered() -> None:
        with steer(model, [Head(0, 0)]):
            generate(model, [list(range(5, 25))], max_new_tokens=16)
            mean_loss(model, ["People are waiting for the train in the morning."])
            bias_log_odds(model, bias, bias.evaluation_prompts[:2], ["Peru", "Japan"])

    step("steer and measure", steered)
    print(f"{dtype}: weights {weights / 2**20:.0f} MiB, before the model {start / 2**20:.0f} MiB")
    for name, peak in peaks:
        print(f"  {name:18} {peak / weights:.2f}  {(start + peak) / 2**20:.0f} MiB in all")


def main() -> None:
    if len(sys.argv) == 3:
        return measured(*sys.argv[1:])
    name = sys.argv[1] if len(sys.argv) == 2 else "smollm2-135m-instruct"
    with tempfile.TemporaryDirectory() as folder:
        for dtype in DTYPES:
            path = written(name, dtype, Path(folder))
            subprocess.run([sys.executable, __file__, str(path), dtype], check=True)


if __name__ == "__main__":
    main()
