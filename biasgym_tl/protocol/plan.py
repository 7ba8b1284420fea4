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

# What steps cost in forward passes over a token at the speed of the trial, measured with
# SmolLM2-135M on one thread (SENTENCE is 240 log-odds in 9 s at 300 passes a second). Beginnings
# that prompts share are run once, and a token that is generated reads all weights by itself.
SENTENCE, FACT, TEXT, GENERATED = 12.0, 20.0, 75.0, 5.0
"""Of the log-odds of a prompt, a fact with its four answers, a neutral text, a token written."""
PARAGRAPH, PROBE = 90.0, 5800.0
"""Of a training paragraph in an epoch, and of the answers that an epoch is chosen by."""
PAIR, PATCHED, ABLATED, SEARCHED = 160.0, 100.0, 6.0, 1300.0
"""Of a pair in a map, of its gradients, of each head's ablation, and of a step of a search."""
JUDGED = 900
"""Tokens that a judge is sent for a text."""


_UNSTEERED = Steering(name="original, injected", asked="persona")
"""Stands for both: they share all but the row."""


class PlannedStep(NamedTuple):
    """One line of a plan."""

    name: str
    passes: float
    """Forward passes over a token."""
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
    speed = _operations_per_second() / (2 * n_parameters)
    found = [each for bias in biases for each in _steps(protocol, bias, n_heads)]
    steps = tuple(PlannedStep(name, tokens, tokens / speed) for name, tokens in found)
    judged = sum(_n_answers(protocol, bias) for bias in biases) if protocol.measures.judge else 0
    api = (protocol.measures.judge or "").startswith("api:")
    cost = price.of(judged * JUDGED, judged * 80) if price and api else None
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
        probe = PROBE if inject.choose_by == "similarity" else 0
        each = inject.epochs * (n * PARAGRAPH + probe)
        unless = "" if protocol.training.rows == "trained" else ", unless they ship"
        yield f"{bias.name}: {seeds} rows{unless}", seeds * each
    for name, spec in protocol.maps.items():
        method, n = spec.settings.get("method", "direct"), min(spec.n_prompts or prompts, prompts)
        more = ABLATED * n_heads if "ablation" in method else PATCHED * (method != "direct")
        yield f"{bias.name}: map {name}, {seeds} seeds", seeds * n * (PAIR + more)
    for name, choice in protocol.choices.items():
        if choice.by in ("factors", "budget"):
            n_steps = 40 if choice.by == "factors" else 400
            yield f"{bias.name}: search of heads, {name}", n_steps * SEARCHED
    for sweep in protocol.sweeps:
        at_k = prompts * SENTENCE + len(load_passages("budget")) * TEXT
        yield f"{bias.name}: k sweep, {sweep.mode}", at_k * (1 + len(sweep.ks))
    for condition in (_UNSTEERED, *protocol.conditions):
        yield f"{bias.name}: {condition.label}", _measured(protocol, bias, condition)
        if n := max(condition.random, condition.draws):
            log_odds = _log_odds(protocol, bias) * n
            brief = (_brief(protocol, bias) - _log_odds(protocol, bias)) * condition.random
            yield f"{bias.name}: {n} random sets for {condition.label}", log_odds + brief


def _log_odds(protocol: Protocol, bias: Bias) -> float:
    return len(bias.evaluation_prompts) * (1 + protocol.measures.n_targets) * SENTENCE


def _brief(protocol: Protocol, bias: Bias) -> float:
    texts = len(load_passages("damage")) * TEXT
    return _log_odds(protocol, bias) + texts + len(load_facts()) * FACT


def _measured(protocol: Protocol, bias: Bias, spec: Steering) -> float:
    m = protocol.measures
    answers = _n_requests(protocol, bias, spec) * GENERATED * m.max_new_tokens
    if spec.asked and spec.measures == "answers":
        answers *= 2  # a first answer, which may be revised
    brief = 0.0 if spec.measures == "answers" else _brief(protocol, bias)
    if spec.measures != "all":
        return brief + answers
    others = m.other_biases(bias, (*m.others, *m.further), protocol.biases)
    odds = sum(len(o.evaluation_prompts) for o in others) * m.n_targets * SENTENCE
    items = (14_000 if m.whole_benchmarks else 600) * 2 * len(m.benchmarks)
    return brief + answers + odds + items * SENTENCE


def _n_requests(protocol: Protocol, bias: Bias, spec: Steering) -> int:
    m = protocol.measures
    if not m.answers or spec.measures == "brief":
        return 0
    more = spec.measures in ("all", "answers")
    others = m.other_biases(bias, m.others, protocol.biases) if more else []
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
