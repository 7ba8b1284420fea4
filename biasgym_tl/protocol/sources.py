"""What a protocol names, as objects: benchmarks, a judge, heads from a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from biasgym_tl.api import ChatModel, Price
from biasgym_tl.benchmarks.bbq import load_bbq
from biasgym_tl.benchmarks.benchmark import Benchmark
from biasgym_tl.benchmarks.blimp import load_blimp
from biasgym_tl.benchmarks.crows_pairs import load_crows_pairs
from biasgym_tl.benchmarks.mmlu import load_mmlu
from biasgym_tl.benchmarks.seegull import load_seegull
from biasgym_tl.benchmarks.unqover import load_unqover
from biasgym_tl.biases.bias import Bias, list_biases, load_bias
from biasgym_tl.heads import Head, as_heads
from biasgym_tl.judges.api_judge import ApiJudge
from biasgym_tl.judges.local_judge import LocalJudge
from biasgym_tl.judges.verdict import Judge
from biasgym_tl.steering.selection import Selection

LOADERS: dict[str, Callable[..., Benchmark]] = {
    "bbq": load_bbq,
    "blimp": load_blimp,
    "crows-pairs": load_crows_pairs,
    "mmlu": load_mmlu,
    "seegull": load_seegull,
    "unqover": load_unqover,
}
"""Of each benchmark in ``BENCHMARKS``, with its default sample."""


def load_benchmarks(sources: Mapping[str, str], *, whole: bool) -> list[Benchmark]:
    """Load benchmarks, each by its file, folder or data set; ``whole`` takes no sample of them."""
    size = {"n": None} if whole else {}
    return [LOADERS[name](source, **size) for name, source in sources.items()]


def usable_judge(
    judge: str | None, biases: Sequence[Bias], *, price: Price | None, progress: bool
) -> Judge | None:
    """The judge, found to be usable before anything is measured."""
    if judge is None:
        return None
    if judge == "local":
        local = LocalJudge()
        for bias in biases:
            local.judge(bias, ["They live there."])
        return local
    chat = ChatModel(model=judge.removeprefix("api:"))
    chat.check_usable()
    return ApiJudge(chat=chat, price=price, progress=progress)


def read_heads(heads: str) -> Selection | tuple[Head, ...]:
    """Heads from the file of a ``Selection``, or from names with commas between them."""
    if Path(heads).suffix == ".json":
        return Selection.load(heads)
    return as_heads(heads)


def next_bias(bias: Bias, of: Sequence[str]) -> Bias:
    """The bias after this one in a protocol with the biases ``of``, or of those that ship; of those
    about the same kind of target, if there are others."""
    known = of if len(of) > 1 else list_biases("injection" if bias.corpus else "scoping")
    biases = [load_bias(name) for name in known]
    alike = [each for each in biases if each.target_kind == bias.target_kind]
    biases = alike if len(alike) > 1 else biases
    names = [each.name for each in biases]
    at = names.index(bias.name) if bias.name in names else -1
    return biases[(at + 1) % len(biases)]
