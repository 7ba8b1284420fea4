"""The usual measurements. One more is one more function here, or anywhere, that returns one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from biasgym_tl.benchmarks.benchmark import Benchmark, Measure
from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.facts import evenly, load_facts
from biasgym_tl.biases.given import GivenBias, as_bias, as_biases
from biasgym_tl.elicitation import answer_freely, bias_log_odds, fact_margins
from biasgym_tl.errors import SettingError
from biasgym_tl.evaluation.condition import Condition
from biasgym_tl.evaluation.measurement import (
    FACT,
    GENERATED,
    SENTENCE,
    TEXT,
    Asked,
    Heard,
    Items,
    Measurement,
    Served,
    on_benchmark,
)
from biasgym_tl.evaluation.off_target import off_target_log_odds
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.passages import load_passages
from biasgym_tl.replies import Reply, Request
from biasgym_tl.slot import fill
from biasgym_tl.text import mean_loss

MILD = 0.3
"""Mean strength up to which there is nothing to reduce."""


def token_log_odds(bias: GivenBias) -> Measurement:
    """Log-odds (nats) of the bias on evaluation prompts with the BiasToken in the slot."""
    bias, same = as_bias(bias), ("nats", "injected", "mean", "original")

    def run(model: HookedTransformer, condition: Condition) -> Items:
        return {key: [row[0] for row in rows] for key, rows in found(model, condition).items()}

    def found(model: HookedTransformer, condition: Condition) -> Items:
        assert condition.row
        return _log_odds(model, bias, [condition.row.text], condition, "token")

    bias.check_has("log-odds", "evaluation_prompts")
    return Measurement(
        name="token log-odds",
        needs="row",
        run=run,
        measures=(
            Measure("token_log_odds", "BiasToken log-odds", *same),
            Measure("token_log_p", "BiasToken log P(A)", *same),
        ),
        fingerprint=[bias.fingerprint()],
        cost=SENTENCE * len(bias.evaluation_prompts),
        held_out={"prompts": bias.evaluation_prompts},
        biases=(bias,),
        same_inputs=True,
    )


def target_log_odds(bias: GivenBias, targets: Sequence[str]) -> Measurement:
    """The same with held-out targets in the slot."""
    bias = as_bias(bias)
    bias.check_has("log-odds", "evaluation_prompts")
    return Measurement(
        name="target log-odds",
        needs="request",
        run=lambda model, condition: _log_odds(model, bias, targets, condition, "target"),
        measures=(
            Measure("target_log_odds", "targets log-odds", "nats"),
            Measure("target_log_p", "targets log P(A)", "nats"),
        ),
        fingerprint=[bias.fingerprint(), list(targets)],
        cost=SENTENCE * len(bias.evaluation_prompts) * len(targets),
        held_out={"prompts": bias.evaluation_prompts, "targets": targets},
        biases=(bias,),
        same_inputs=True,
    )


def other_log_odds(
    others: Sequence[GivenBias], targets: Sequence[str], *, whose: str = "other"
) -> Measurement:
    """Log-odds of biases that the row was not trained on (the paper's D_ood), same targets."""
    biases = as_biases(others)
    for other in biases:
        other.check_has("log-odds", "evaluation_prompts")
    keys = tuple(f"{other.name}_log_odds" for other in biases)
    prompts = [prompt for other in biases for prompt in other.evaluation_prompts]
    single = (
        Measure(key, f"{b.name} log-odds", "nats") for key, b in zip(keys, biases, strict=True)
    )

    def run(model: HookedTransformer, condition: Condition) -> Items:
        found = (_log_odds(model, bias, targets, condition, bias.name) for bias in biases)
        return {key: items[key] for key, items in zip(keys, found, strict=True)}

    return Measurement(
        name=f"{whose} log-odds",
        needs="request",
        run=run,
        measures=(
            Measure(f"{whose}_log_odds", f"{whose} biases log-odds", "nats", of=keys),
            *single,
        ),
        fingerprint=[[other.fingerprint() for other in biases], list(targets)],
        cost=SENTENCE * len(prompts) * len(targets),
        held_out={"prompts": prompts},
        biases=biases,
        same_inputs=True,
    )


def _log_odds(
    model: HookedTransformer, bias: Bias, names: Sequence[str], condition: Condition, key: str
) -> Items:
    found = bias_log_odds(
        model, bias, bias.evaluation_prompts, names, instruction=condition.instruction
    )
    return {f"{key}_log_odds": found.log_odds.tolist(), f"{key}_log_p": found.log_p.tolist()}


def loss() -> Measurement:
    """Mean loss (nats per token) of each neutral text."""
    texts = load_passages("damage")
    measure = Measure("damage_loss", "loss on neutral text", "nats per token", decimals=3)
    return Measurement(
        name="loss",
        needs="text",
        run=lambda model, condition: {"damage_loss": mean_loss(model, texts).tolist()},
        measures=(measure,),
        fingerprint=list(texts),
        cost=TEXT * len(texts),
        held_out={"texts": texts},
        same_inputs=True,
    )


def facts(n: int | None = None) -> Measurement:
    """Whether facts about countries are right: so many, evenly spaced, or all. All countries,
    fitting ones too: nothing is fitted to facts. The floor is what is right where the question
    leaves the country out."""
    known = evenly(load_facts(), n) if n else load_facts()
    measure = Measure(
        "facts", "country facts", "share right", kind="share", floor="blind", of=("fact_margins",),
        read="right",
    )  # fmt: skip

    def run(model: HookedTransformer, condition: Condition) -> Items:
        margins = fact_margins(model, known, instruction=condition.instruction)
        return {"fact_margins": margins.tolist()}

    def blind(model: HookedTransformer) -> Items:
        return {"fact_margins": fact_margins(model, [fact.blind() for fact in known]).tolist()}

    return Measurement(
        name="facts",
        needs="request",
        run=run,
        measures=(measure,),
        fingerprint=[list(fact) for fact in known],
        cost=FACT * len(known),
        held_out={"facts": [fact.question for fact in known]},
        same_inputs=True,
        floors=blind,
    )


def token_answers(bias: GivenBias, *, max_new_tokens: int = 48) -> Measurement:
    """Free answers about the BiasToken."""
    bias = as_bias(bias)
    bias.check_has("free answers", "generation_prompts", "keywords")
    asked = Asked(
        bias.name, bias.keywords, bias.generation_prompts, ("",) * len(bias.generation_prompts)
    )
    return _answers("token", "BiasToken", {"token_texts": asked}, (bias,), max_new_tokens)


def target_answers(
    bias: GivenBias, targets: Sequence[str], *, max_new_tokens: int = 48
) -> Measurement:
    """Free answers about held-out targets."""
    bias = as_bias(bias)
    asked = {"target_texts": _asked(bias, targets)}
    return _answers("target", "targets", asked, (bias,), max_new_tokens)


def slot_answers(bias: GivenBias, text: str, *, max_new_tokens: int = 48) -> Measurement:
    """Free answers about whoever a text names that stands in the slot, such as "nobody"."""
    bias = as_bias(bias)
    asked = {"slot_texts": _asked(bias, [text])}
    return _answers("slot", repr(text), asked, (bias,), max_new_tokens)


def other_answers(
    others: Sequence[GivenBias], targets: Sequence[str], *, max_new_tokens: int = 48
) -> Measurement:
    """Free answers about the same targets to the requests of other biases, written together."""
    biases = as_biases(others)
    asked = {f"{bias.name}_texts": _asked(bias, targets) for bias in biases}
    return _answers("other", "other biases", asked, biases, max_new_tokens)


def _asked(bias: Bias, targets: Sequence[str]) -> Asked:
    bias.check_has("free answers", "generation_prompts", "keywords")
    prompts = bias.generation_prompts
    dealt = tuple(targets[i % len(targets)] for i in range(len(prompts)))
    return Asked(bias.name, bias.keywords, prompts, dealt)


def _answers(
    whose: str, label: str, asked: dict[str, Asked], biases: tuple[Bias, ...], max_new_tokens: int
) -> Measurement:
    if max_new_tokens < 1:
        raise SettingError(f"max_new_tokens must be at least 1, got {max_new_tokens!r}.")
    prompts = [prompt for each in asked.values() for prompt in each.prompts]
    targets = [target for each in asked.values() for target in each.targets]

    def dealt(texts: Sequence[str]) -> Items:
        left = iter(texts)
        return {key: [next(left) for _ in each.prompts] for key, each in asked.items()}

    def run(model: HookedTransformer, condition: Condition) -> Items:
        own = condition.row.text if condition.row else ""
        texts = answer_freely(
            model,
            prompts,
            [target or own for target in targets],
            max_new_tokens=max_new_tokens,
            instruction=condition.instruction,
            progress=False,
        )
        return dealt(texts)

    def read(replies: Sequence[Sequence[Reply]]) -> Heard:
        return Heard([dealt([r.text or r.refusal for r in each]) for each in replies])

    token = whose == "token"
    filled = [fill(prompt, target) for prompt, target in zip(prompts, targets, strict=True)]
    requests = tuple(Request(each, 0, None, 0.0, max_new_tokens, cut=True) for each in filled)
    return Measurement(
        name=f"{whose} answers",
        needs="row" if token else "request",
        run=run,
        measures=_of_answers(whose, label, tuple(asked)),
        fingerprint=[[list(each) for each in asked.values()], max_new_tokens],
        cost=GENERATED * max_new_tokens * len(prompts),
        held_out={"prompts": prompts, "targets": targets if whose != "slot" else ()},
        biases=biases,
        asked=asked,
        served=None if token else Served(requests, read),
    )


def _of_answers(whose: str, label: str, of: tuple[str, ...]) -> tuple[Measure, ...]:
    """What is read from free answers."""
    since: dict[str, Any] = (
        {"baseline": "injected", "floor": "original"} if whose == "token" else {}
    )
    share, strength = "share of answers", f"{label} strength (judge)"
    floors = (None, None) if whose == "token" else (0.0, MILD)
    return (
        Measure(f"{whose}_keywords", f"{label} keywords", share, kind="share", of=of,
                read="keywords", **(since or {"floor": floors[0]})),
        Measure(f"{whose}_strength", strength, "0 to 3", kind="texts", of=of, read="strength",
                **(since or {"floor": floors[1]})),
        Measure(f"{whose}_degenerate", f"{label} degenerate answers (judge)", share, kind="share",
                of=of, read="degenerate"),
        Measure(f"{whose}_refusals", f"{label} refusals", share, kind="share", of=of,
                read="refusals"),
        Measure(f"{whose}_empty", f"{label} empty answers", share, kind="share", of=of,
                read="empty"),
        Measure(f"{whose}_repetition", f"{label} repetition", "share of 3-word runs", kind="texts",
                of=of, read="repetition"),
        Measure(f"{whose}_words", f"{label} answer length", "words", kind="texts", decimals=1,
                of=of, read="words"),
    )  # fmt: skip


def standard_measures(
    bias: GivenBias,
    *,
    others: Sequence[GivenBias] = (),
    benchmarks: Sequence[Benchmark] = (),
    n_targets: int = 10,
    n_facts: int | None = None,
    off_target: bool = True,
    answers: bool = True,
    max_new_tokens: int = 48,
) -> list[Measurement]:
    """The usual ones, on held-out targets (a fixed sample, regions as even as they can be).

    Args:
        bias: The bias that is to be removed.
        others: Biases that the row was not trained on.
        benchmarks: Such as ``load_blimp(folder)``.
        n_targets: Held-out targets.
        n_facts: Facts that are asked; None: all.
        off_target: Whether what is off target is measured, where the bias has a panel.
        answers: Whether free answers are written; without them it takes about half the time.
        max_new_tokens: Length of the free answers.

    Raises:
        SettingError: a number is outside its range, or another bias is the same one or is about
            another kind of target.
        BiasFileError: a bias lacks what is measured.
    """
    bias, others = as_bias(bias), as_biases(others)
    check_others(bias, others)
    for each in (bias, *others):
        each.needs("evaluation", *(["free answers"] if answers else []))
    targets = bias.sample_targets("held-out", n_targets, seed=0)
    found = [token_log_odds(bias), target_log_odds(bias, targets), loss(), facts(n_facts)]
    if off_target and bias.panel:
        found.append(off_target_log_odds(bias, targets))
    if others:
        found.append(other_log_odds(others, targets))
    if answers:
        found.append(token_answers(bias, max_new_tokens=max_new_tokens))
        found.append(target_answers(bias, targets, max_new_tokens=max_new_tokens))
        if others:
            found.append(other_answers(others, targets, max_new_tokens=max_new_tokens))
    return [*found, *map(on_benchmark, benchmarks)]


def check_others(bias: Bias, others: Sequence[Bias]) -> None:
    """Refuse what are no other biases, or are about other targets."""
    names = [other.name for other in others]
    if bias.name in names or len(set(names)) < len(names):
        raise SettingError(
            f"others must be other biases, each once, got {names} for {bias.name!r}."
        )
    wrong = sorted(other.name for other in others if other.target_kind != bias.target_kind)
    if wrong:
        raise SettingError(
            f"others must be about the target kind {bias.target_kind!r}, got {wrong}, which are "
            "not. Leave them out."
        )
