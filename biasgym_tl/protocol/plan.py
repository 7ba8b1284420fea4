"""What a protocol would take: its steps with time, memory and cost, without running any.

The model is not loaded: its size is read from its configuration. The time is that of as many
multiplications as the steps need, at the speed that this machine shows in a moment's trial.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import torch

from biasgym_tl.api import Price
from biasgym_tl.biases.bias import Bias, load_bias
from biasgym_tl.biases.facts import load_facts
from biasgym_tl.errors import ModelError, first_line
from biasgym_tl.packaged import PACKAGED, packaged_folder
from biasgym_tl.passages import load_passages
from biasgym_tl.protocol.parts import Steering
from biasgym_tl.protocol.protocol import Protocol

SENTENCE, REQUEST, TEXT, PARAGRAPH, VERDICT = 40.0, 60.0, 160.0, 110.0, 900
"""Tokens of a prompt, of a request with its answer's beginning, of a neutral text, of a training
paragraph in chat format, and of what a judge is sent for a text: rounded means of what ships."""
EFFICIENCY = 0.35
"""Share of the trial's speed that a model of 135M reaches on prompts (measured: 0.3 to 0.4)."""
SLOWER = 4.0
"""How much more a token costs that is generated: one at a time, weights are read for each."""


_UNSTEERED = Steering(name="original, injected", asked="persona")
"""Stands for both: they share all but the row."""


class PlannedStep(NamedTuple):
    """One line of a plan."""

    name: str
    tokens: float
    """That pass through the model, forward; a backward pass counts twice."""
    seconds: float


class Estimate(NamedTuple):
    """What a run would take."""

    steps: tuple[PlannedStep, ...]
    memory: float
    """Bytes, at most."""
    judged: int
    """Texts that a judge is sent."""
    cost: float | None
    """US dollars of an API judge; None without one, or without its price."""

    def __str__(self) -> str:
        lines = [f"{_span(step.seconds):>9}  {step.name}" for step in self.steps]
        total = sum(step.seconds for step in self.steps)
        lines.append(f"{_span(total):>9}  in all, on this machine, if nothing was done before")
        lines.append(f"{self.memory / 2**30:6.1f} GB  memory")
        if self.judged:
            cost = "" if self.cost is None else f", about {self.cost:.2f} US dollars"
            lines.append(f"{self.judged:9}  texts for the judge{cost}")
        return "\n".join(lines)


def plan(protocol: Protocol, price: Price | None = None) -> Estimate:
    """Estimate the steps of a protocol.

    Args:
        protocol: What would be done.
        price: Of an API judge.
    """
    biases = [load_bias(name) for name in protocol.biases]
    n_parameters, n_heads = model_size(protocol.model)
    speed = EFFICIENCY * _operations_per_second() / (2 * n_parameters)
    found = [each for bias in biases for each in _steps(protocol, bias, n_heads)]
    steps = tuple(PlannedStep(name, tokens, tokens / speed) for name, tokens in found)
    judged = sum(_n_answers(protocol, bias) for bias in biases) if protocol.measures.judge else 0
    api = (protocol.measures.judge or "").startswith("api:")
    cost = price.of(judged * VERDICT, judged * 80) if price and api else None
    return Estimate(steps, 4 * n_parameters * 1.6 + 2**30, judged if api else 0, cost)


def model_size(name: str) -> tuple[int, int]:
    """Parameters and heads of a model, from its configuration.

    Raises:
        ModelError: there is no configuration of a language model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = packaged_folder(name) if name in PACKAGED else None
    try:
        config = AutoConfig.from_pretrained(folder or name)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model must be a name or folder with the configuration of a language model, got "
            f"{name!r}: {first_line(error)}"
        ) from error
    heads = config.num_hidden_layers * config.num_attention_heads
    return sum(p.numel() for p in model.parameters()), heads


def _steps(protocol: Protocol, bias: Bias, n_heads: int) -> Iterator[tuple[str, float]]:
    inject = protocol.training.inject
    seeds, prompts = len(protocol.seeds), len(bias.scoping_prompts)
    if not protocol.rows:
        n = min(inject.n_paragraphs, len(bias.corpus))
        probes = SLOWER * 16 * 48 if inject.choose_by == "similarity" else 0
        each = inject.epochs * (n * PARAGRAPH * 3 + probes)
        yield f"{bias.name}: {seeds} rows, unless they ship", seeds * each
    for name, spec in protocol.maps.items():
        runs = {"zero_ablation": n_heads, "mean_ablation": n_heads, "attribution_patching": 3}
        per_pair = 2 + runs.get(spec.settings.get("method", "direct"), 0)
        n = min(spec.n_prompts or prompts, prompts)
        yield f"{bias.name}: map {name}, {seeds} seeds", seeds * n * SENTENCE * per_pair
    for name, choice in protocol.choices.items():
        if choice.by in ("factors", "budget"):
            steps = (
                40 * (12 * SENTENCE + 2 * 48 + 6 * SENTENCE) * 3 * (1 + 9 * (choice.by == "budget"))
            )
            yield f"{bias.name}: search of heads, {name}", steps
    for sweep in protocol.sweeps:
        at_k = prompts * SENTENCE + len(load_passages("budget")) * TEXT
        yield f"{bias.name}: k sweep, {sweep.mode}", at_k * len(sweep.ks)
    for condition in (_UNSTEERED, *protocol.conditions):
        yield f"{bias.name}: {condition.label}", _measured(protocol, bias, condition)
        if n := max(condition.random, condition.draws):
            brief = _brief(protocol, bias, facts=False) * (n - condition.random)
            brief += _brief(protocol, bias) * condition.random
            yield f"{bias.name}: {n} random sets for {condition.label}", brief


def _brief(protocol: Protocol, bias: Bias, *, facts: bool = True) -> float:
    sentences = len(bias.evaluation_prompts) * (1 + protocol.measures.n_targets) * SENTENCE
    if not facts:
        return sentences
    return sentences + len(load_passages("damage")) * TEXT + len(load_facts()) * 4 * SENTENCE


def _measured(protocol: Protocol, bias: Bias, spec: Steering) -> float:
    m, brief = protocol.measures, _brief(protocol, bias)
    if spec.measures == "brief":
        return brief
    answers = _n_requests(protocol, bias, spec) * (REQUEST + SLOWER * m.max_new_tokens)
    if spec.measures == "own answers":
        return brief + answers
    others = m.other_biases(bias, (*m.others, *m.further), protocol.biases)
    odds = sum(len(o.evaluation_prompts) for o in others) * m.n_targets * SENTENCE
    return brief + answers + odds + len(m.benchmarks) * 1200 * SENTENCE


def _n_requests(protocol: Protocol, bias: Bias, spec: Steering) -> int:
    m = protocol.measures
    if not m.answers or spec.measures == "brief":
        return 0
    others = m.other_biases(bias, m.others, protocol.biases) if spec.measures == "all" else []
    return 2 * len(bias.generation_prompts) + sum(len(o.generation_prompts) for o in others)


def _n_answers(protocol: Protocol, bias: Bias) -> int:
    every = (_UNSTEERED, _UNSTEERED, *protocol.conditions)
    return sum(_n_requests(protocol, bias, spec) for spec in every)


def _operations_per_second(size: int = 1024) -> float:
    """Of a product of matrices, measured for a moment."""
    a, b = torch.rand(size, size), torch.rand(size, size)
    a @ b
    start, n = time.perf_counter(), 0
    while time.perf_counter() - start < 0.2:
        a @ b
        n += 1
    return 2 * size**3 * n / (time.perf_counter() - start)


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
