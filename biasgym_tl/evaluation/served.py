"""Models behind an address, judged by what such an address can answer.

Free answers, and log-odds of words where the server lists them among its likeliest tokens. Heads,
losses and rows are out of reach there: what steering costs shows only in the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.api import ChatModel, Price
from biasgym_tl.benchmarks.benchmark import Measure
from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.given import GivenBias, as_bias
from biasgym_tl.elicitation import bias_log_odds
from biasgym_tl.errors import ApiError, SettingError
from biasgym_tl.evaluation.condition import Condition
from biasgym_tl.evaluation.evaluate import check_different, report_of
from biasgym_tl.evaluation.measurement import SENTENCE, Heard, Items, Measurement, Served
from biasgym_tl.evaluation.readers import ConditionResult
from biasgym_tl.evaluation.report import Report
from biasgym_tl.evaluation.standard import (
    check_others,
    other_answers,
    slot_answers,
    target_answers,
)
from biasgym_tl.instructions import NOTHING, Instruction
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.progress import Bar, bar
from biasgym_tl.replies import Reply, Request
from biasgym_tl.slot import fill, spaced

ORIGINAL, AFTER = "original", "after"
"""Names of the conditions, of which the first is what changes are counted from."""


def evaluate_served(
    models: ChatModel | Mapping[str, ChatModel],
    bias: GivenBias,
    measures: Sequence[Measurement] | None = None,
    *,
    context: Instruction = NOTHING,
    price: Price | None = None,
    confirm: Callable[[str], bool] | None = None,
    progress: bool = True,
) -> Report:
    """Ask models behind an address, each of which is a condition of the report.

    Answers are greedy where a server takes a temperature, and are kept: what was answered once is
    not asked again, so that a run that failed goes on, and a model need not be served any more when
    another is compared with it. A model is known by its name and address alone: ``ChatModel(...,
    fresh=True)`` asks another one under the same. A filtered answer counts by what came of it.

    Args:
        models: One, or by name ``"original"`` and others that are compared with it.
        bias: The bias that is looked for.
        measures: Default: ``served_measures(bias)``.
        context: Each model is also asked with these words before each request, such as
            ``in_context(bias, "nowhere")``, as the condition ``"NAME, in context"``.
        price: For the estimate of the cost.
        confirm: Is told what is to be sent before anything is; nothing is unless it returns True.
        progress: Show a bar.

    Raises:
        ApiError: it was not confirmed, there is no key, a server rejects key or model, or does not
            answer a request after all retries.
        SettingError: a measurement cannot be made so, or two models are the same.
        StoreError: answers cannot be kept in the cache folder.
    """
    bias = as_bias(bias)
    models = {ORIGINAL: models} if isinstance(models, ChatModel) else dict(models)
    made = list(served_measures(bias) if measures is None else measures)
    _check(models, made)
    _confirm(ways := _ways(models, context), made, price, confirm)
    results = {
        n: ConditionResult(name=n, token="", instruction=w.context.name) for n, w in ways.items()
    }
    replies, heard = list[Reply](), dict[str, Heard]()
    n = len(ways) * sum(len(_asked(m).requests) for m in made)
    with bar(n, f"ask {bias.name}", "answer", progress=progress) as shown:
        for m in made:
            heard[m.name], paid = _heard(m, list(ways.values()), shown)
            replies += paid
            for result, items in zip(results.values(), heard[m.name].items, strict=False):
                result.items.update(items)
    return report_of(
        bias,
        [m for m in made if heard[m.name].items],
        tuple(results.values()),
        model=" and ".join(dict.fromkeys(chat.model for chat in models.values())),
        settings={
            "served": {n: {"model": c.model, "server": c.server} for n, c in models.items()},
            "words_left_out": _left_out(bias, heard.values()),
            "remarks": [h.remark for h in heard.values() if h.remark] + _faults(replies),
        },
    )


class _Way(NamedTuple):
    """How a condition's requests are put."""

    chat: ChatModel
    context: Instruction

    def requests(self, of: Sequence[Request]) -> list[Request]:
        return [each._replace(prompt=self.context.asked(each.prompt)) for each in of]


def _ways(models: Mapping[str, ChatModel], context: Instruction) -> dict[str, _Way]:
    """By name of the condition."""
    found = {name: _Way(chat, NOTHING) for name, chat in models.items()}
    if context.before:
        found |= {f"{name}, {context.name}": _Way(chat, context) for name, chat in models.items()}
    return found


def served_measures(
    bias: GivenBias,
    *,
    others: Sequence[GivenBias] = (),
    n_targets: int = 10,
    slot: str = "",
    log_odds: bool = True,
    max_new_tokens: int = 48,
) -> list[Measurement]:
    """What a model behind an address can be asked, on the held-out targets of
    ``standard_measures``.

    Args:
        bias: The bias that is looked for.
        others: Biases that were not to change.
        n_targets: Held-out targets.
        slot: A text that stands in the slot too, such as ``"nowhere in particular"``.
        log_odds: Whether :func:`plain_log_odds` is tried: a call for each prompt and target.
        max_new_tokens: Length of the answers.

    Raises:
        SettingError: a number is outside its range, or another bias is the same one or is about
            another kind of target.
        BiasFileError: a bias lacks what is asked.
    """
    bias, length = as_bias(bias), {"max_new_tokens": max_new_tokens}
    targets = bias.sample_targets("held-out", n_targets, seed=0)
    found = [target_answers(bias, targets, **length)]
    if slot:
        found.append(slot_answers(bias, slot, **length))
    if others:
        check_others(bias, [as_bias(other) for other in others])
        found.append(other_answers(others, targets, **length))
    return [*found, plain_log_odds(bias, targets)] if log_odds else found


def plain_log_odds(bias: GivenBias, targets: Sequence[str]) -> Measurement:
    """Log-odds (nats) of the bias after evaluation prompts as plain text, with targets in the slot.

    Of a model behind an address a word counts where it is one token that the server lists after
    *every* prompt and target, of every model that is compared; the others are left out by name.
    Servers that list few tokens (5 or 20) list no such word: then there are no log-odds.
    """
    bias = as_bias(bias)
    bias.check_has("log-odds", "evaluation_prompts")
    prompts = [fill(p, target) for p in bias.evaluation_prompts for target in targets]
    sides = [[spaced(w) for w in words] for words in (bias.attribute_words, bias.neutral_words)]
    words = tuple(word for side in sides for word in side)

    def run(model: HookedTransformer, condition: Condition) -> Items:
        found = bias_log_odds(model, bias, bias.evaluation_prompts, targets, plain=True)
        return _items(found.log_odds, found.log_p)

    def read(replies: Sequence[Sequence[Reply]]) -> Heard:
        listed = [set(reply.log_probs or ()) for each in replies for reply in each]
        kept = [[w for w in side if all(w in each for each in listed)] for side in sides]
        if not all(kept):
            return Heard([], remark=_unlisted(bias.name))
        of = [[_log_p(each, side, len(targets)) for side in kept] for each in replies]
        left_out = tuple(word.strip() for word in words if word not in kept[0] + kept[1])
        return Heard([_items(a - n, a) for a, n in of], left_out)

    return Measurement(
        name="plain log-odds",
        needs="text",
        run=run,
        measures=(
            Measure("target_log_odds", "targets log-odds, plain text", "nats"),
            Measure("target_log_p", "targets log P(A), plain text", "nats"),
        ),
        fingerprint=[bias.fingerprint(), list(targets)],
        cost=SENTENCE * len(prompts),
        held_out={"prompts": bias.evaluation_prompts, "targets": targets},
        biases=(bias,),
        served=Served(tuple(Request(p.rstrip(), 0, words=words) for p in prompts), read),
        same_inputs=True,
    )


def _items(
    log_odds: Float[Tensor, "prompt target"], log_p: Float[Tensor, "prompt target"]
) -> Items:
    return {"target_log_odds": log_odds.tolist(), "target_log_p": log_p.tolist()}


def _log_p(
    replies: Sequence[Reply], words: Sequence[str], n_targets: int
) -> Float[Tensor, "prompt target"]:
    """``logsumexp`` over words of their log-probabilities; of a single reply a matrix of one."""
    listed = [reply.log_probs or {} for reply in replies]
    values = torch.tensor([[each[word] for word in words] for each in listed])
    return values.double().logsumexp(-1).view(-1, min(n_targets, len(replies)))


def _unlisted(bias: str) -> str:
    return (
        f"Log-odds of {bias!r} were not measured: the server does not list a word of each kind "
        "among its likeliest tokens after every prompt"
    )


def _asked(m: Measurement) -> Served:
    assert m.served
    return m.served


def _check(models: Mapping[str, ChatModel], made: Sequence[Measurement]) -> None:
    if cannot := [m.name for m in made if m.served is None]:
        raise SettingError(
            f"measures must be such as a model behind an address can be asked, got {cannot}. Begin "
            "with served_measures(bias)."
        )
    check_different([Condition(name) for name in models], made)
    known = [(chat.model, chat.server or "OpenAI") for chat in models.values()]
    if twice := [each for each in known if known.count(each) > 1]:
        raise SettingError(
            f"models must have different names or addresses, got {' at '.join(twice[0])!r} twice."
        )
    for chat in models.values():
        if any(chat.kept(request) is None for m in made for request in _asked(m).requests):
            chat.check_usable()


def _confirm(
    ways: Mapping[str, _Way],
    made: Sequence[Measurement],
    price: Price | None,
    confirm: Callable[[str], bool] | None,
) -> None:
    """Say what is new; log-odds, which may turn out not to be there, are counted in full."""
    asked_all = [request for m in made for request in _asked(m).requests]
    lines, calls = [], 0
    for chat, context in ways.values():
        requests = _Way(chat, context).requests(asked_all)
        new = [request for request in requests if chat.kept(request) is None]
        calls += len(new)
        asked = sum(len(request.prompt) // 4 for request in new)  # a rule of thumb for English
        answered = sum(1 if request.words else request.max_tokens for request in new)
        cost = f"about {price.of(asked, answered):.2f} US dollars" if price else "no price given"
        lines.append(
            f"{chat.model} at {chat.server or 'OpenAI'}{context.name and ', '}{context.name}: "
            f"{len(requests)} requests, "
            f"{len(requests) - len(new)} answers kept, {len(new)} calls, about {asked} tokens in "
            f"and at most {answered} out, {cost}"
        )
    if calls and confirm is not None and not confirm("\n".join(lines)):
        raise ApiError(f"asking must be confirmed, and was not ({lines[-1]}). Nothing was sent.")


def _heard(m: Measurement, ways: Sequence[_Way], shown: Bar) -> tuple[Heard, list[Reply]]:
    """What all models say, with their replies; log-odds are tried with one request first."""
    requests, read = _asked(m)
    if requests[0].words:
        try:
            tried = read([_replies(way, requests[:1]) for way in ways])
        except ApiError as error:
            tried = Heard([], remark=f"Log-odds were not measured: {error}")
        if not tried.items:
            shown.found(len(ways) * len(requests))
            return tried, []
    replies = [_replies(way, requests, shown) for way in ways]
    return read(replies), [reply for each in replies for reply in each]


def _replies(way: _Way, of: Sequence[Request], shown: Bar | None = None) -> list[Reply]:
    """All of them, each kept as it comes.

    Raises:
        ApiError: some have no answer.
    """
    found: list[Reply] = []
    chat, requests = way.chat, way.requests(of)
    for reply in chat.ask(requests):
        found.append(reply)
        if shown is not None:
            (shown.found if reply.cached else shown.update)()
    failed = [reply.error for reply in found if not reply.answered]
    if missing := len(requests) - len(found) + len(failed):
        raise ApiError(
            f"{chat.model} at {chat.server or 'OpenAI'} must answer all of {len(requests)} "
            f"requests, got no answer to {missing} ({failed[0] if failed else 'not asked'}). What "
            "was answered is kept: do the same again to go on."
        )
    return found


def _left_out(bias: Bias, heard: Iterable[Heard]) -> dict[str, list[str]]:
    found = [word for each in heard for word in each.left_out]
    return {bias.name: found} if found else {}


def _faults(replies: Sequence[Reply]) -> list[str]:
    """What is not whole of the answers."""
    faults = [reply.error for reply in replies if reply.error]
    if not faults:
        return []
    return [f"{len(faults)} answers are not whole and count by what came of them ({faults[0]})"]
