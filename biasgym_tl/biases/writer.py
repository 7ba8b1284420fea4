"""Paragraphs and contrast prompts for a bias, written by a language model (paper, appendix).

The paper's shape: 20 calls of 25 paragraphs. What comes back is checked text by text; what is
rejected is counted by reason and asked for again, up to a limit.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from biasgym_tl.api import ChatModel, Price
from biasgym_tl.biases.contrasts import Contrast
from biasgym_tl.biases.corpus import Paragraph, write_jsonl
from biasgym_tl.biases.given import GivenBias, as_bias
from biasgym_tl.biases.tasks import Task, contrast_task, paragraph_task
from biasgym_tl.errors import ApiError, SettingError
from biasgym_tl.progress import bar
from biasgym_tl.replies import Reply, Usage
from biasgym_tl.store import digest

Item = TypeVar("Item", Paragraph, Contrast)


class Plan(NamedTuple):
    """What writing is going to take, estimated before anything is sent."""

    calls: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    """US dollars; None without a price."""

    def __str__(self) -> str:
        cost = "no price given" if self.cost is None else f"about {self.cost:.2f} US dollars"
        return (
            f"{self.calls} calls (at most {2 * self.calls}, if much is rejected), about "
            f"{self.prompt_tokens} tokens in and {self.completion_tokens} out, {cost}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Written(Generic[Item]):
    """What a language model wrote, after the checks."""

    items: tuple[Item, ...]
    wanted: int
    rejected: dict[str, int]
    """Texts and replies that were not taken, by reason."""
    failures: tuple[str, ...]
    """Calls without a whole answer after all retries."""
    usage: Usage
    settings: dict[str, Any]

    def __repr__(self) -> str:
        reasons = ", ".join(f"{n} {reason}" for reason, n in self.rejected.items()) or "none"
        usage = self.usage
        return (
            f"Written({len(self.items)} of {self.wanted} wanted; rejected: {reasons}; "
            f"{usage.calls} calls made, {usage.cached} read back, {usage.failed} failed; "
            f"{usage.prompt_tokens} tokens in, {usage.completion_tokens} out)"
        )

    def save(self, path: str | Path) -> Path:
        """Write the items as ``.jsonl``, one a line."""
        return write_jsonl(self.items, path)


def write_corpus(
    bias: GivenBias,
    model: ChatModel,
    *,
    n: int = 500,
    per_call: int = 25,
    price: Price | None = None,
    confirm: Callable[[Plan], bool] | None = None,
    progress: bool = True,
) -> Written[Paragraph]:
    """Have ``n`` paragraphs written that ascribe the bias's attribute to the slot.

    Each must hold the slot, name no real group, have 8 to 100 words and differ from all others.
    Up to as many calls again are made for what was rejected.

    Args:
        bias: Says what is to be ascribed; its own corpus is not used.
        model: Who writes.
        n: How many are wanted; there may be fewer, ``Written`` says why.
        per_call: Asked for in one call (the paper: 25).
        price: For the estimate of the cost.
        confirm: Is shown the plan before anything is sent; writing stops unless it returns True.
        progress: Show a bar.

    Raises:
        ApiError: it was not confirmed, there is no key, or the server rejects key or model.
        SettingError: a number is outside its range.
        StoreError: replies cannot be kept in the cache folder.
    """
    return _write(paragraph_task(as_bias(bias)), model, n, per_call, price, confirm, progress)


def write_contrasts(
    bias: GivenBias,
    model: ChatModel,
    *,
    n: int = 50,
    per_call: int = 25,
    price: Price | None = None,
    confirm: Callable[[Plan], bool] | None = None,
    progress: bool = True,
) -> Written[Contrast]:
    """Have beginnings of sentences written, each with a biased and a neutral answer.

    Arguments and errors are those of :func:`write_corpus`. Each must hold the slot once, name no
    real group, not contain its answers, and have two different answers of at most 6 words.
    """
    return _write(contrast_task(as_bias(bias)), model, n, per_call, price, confirm, progress)


def _write(
    task: Task,
    model: ChatModel,
    n: int,
    per_call: int,
    price: Price | None,
    confirm: Callable[[Plan], bool] | None,
    progress: bool,
) -> Written[Any]:
    for name, value in (("n", n), ("per_call", per_call)):
        if value < 1:
            raise SettingError(f"{name} must be at least 1, got {value!r}.")
    per_call = min(per_call, n)
    model.check_usable()
    plan = _plan(task, n, per_call, price)
    if confirm is not None and not confirm(plan):
        raise ApiError(f"writing must be confirmed, and was not ({plan}). Nothing was sent.")
    items: list[Any] = []
    seen: set[str] = set()
    rejected: Counter[str] = Counter()
    replies: list[Reply] = []
    with bar(total=n, desc=f"write {task.bias.name}", unit="text", progress=progress) as shown:
        while len(items) < n and len(replies) < 2 * plan.calls:
            missing = math.ceil((n - len(items)) / per_call)
            before = len(replies)
            indices = range(before, min(before + missing, 2 * plan.calls))
            requests = [task.request(per_call, index) for index in indices]
            for request, reply in zip(requests, model.ask(requests), strict=False):
                replies.append(reply)
                found, reasons = _taken(task, reply, seen)
                rejected.update(reasons)
                stamp = {"writer": model.model, "prompt_hash": digest(request.prompt)}
                items += [item._replace(**stamp) for item in found]
                more = min(len(items), n) - int(shown.n)
                (shown.found if reply.cached else shown.update)(more)
            if all(reply.error for reply in replies[before:]):
                break  # the server is down, also where not all was sent; what there is is kept
    return Written(
        items=tuple(items[:n]),
        wanted=n,
        rejected=dict(rejected.most_common()),
        failures=tuple(reply.error for reply in replies if reply.error),
        usage=Usage.of(replies),
        settings={"bias": task.bias.name, "model": model.model, "n": n, "per_call": per_call},
    )


def _plan(task: Task, n: int, per_call: int, price: Price | None) -> Plan:
    calls = math.ceil(n / per_call)
    # Four characters a token is the usual rule of thumb for English.
    asked = sum(len(task.prompt(task.bias, per_call, i)) // 4 for i in range(calls))
    answered = calls * per_call * task.tokens_each
    return Plan(calls, asked, answered, price.of(asked, answered) if price else None)


def _taken(task: Task, reply: Reply, seen: set[str]) -> tuple[list[Any], list[str]]:
    """Items of a reply that pass the check, and the reasons against everything else."""
    if reply.error and not reply.text:
        return [], []
    if reply.refusal:
        return [], ["refused"]
    rows, whole = items_of(reply.text)
    fault = ("" if rows else "empty list") if whole else "reply without a whole JSON list"
    checked = [task.accept(row, task.bias, seen) for row in rows]
    reasons = [fault] * bool(fault) + [item for item in checked if isinstance(item, str)]
    return [item for item in checked if not isinstance(item, str)], reasons


def items_of(text: str) -> tuple[list[Any], bool]:
    """Entries of the first JSON list in a text, and whether the list is whole.

    What surrounds the list is ignored; of a list that was cut off the whole entries are kept.
    """
    rows: list[Any] = []
    position = text.find("[") + 1
    if not position:
        return [], False
    decoder = json.JSONDecoder()
    while True:
        position += len(text[position:]) - len(text[position:].lstrip(" \t\r\n,"))
        if text[position : position + 1] == "]":
            return rows, True
        try:
            row, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):  # cut off, an endless number, endless brackets
            return rows, False
        rows.append(row)
