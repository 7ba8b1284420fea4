"""A language model as judge, over an OpenAI-compatible API."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from biasgym_tl.api import ChatModel, Price
from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.given import GivenBias, as_bias
from biasgym_tl.errors import ApiError
from biasgym_tl.judges.api_prompt import SCHEMA, code_of, judge_prompt, verdict_of
from biasgym_tl.judges.hide import hidden
from biasgym_tl.judges.verdict import Verdict
from biasgym_tl.progress import bar
from biasgym_tl.replies import Reply, Request, Usage
from biasgym_tl.spelling import degenerate
from biasgym_tl.store import digest

ANSWER_TOKENS = 90
"""Expected length of a verdict, for the estimate of the cost."""
MOST_TOKENS = 400


class JudgePlan(NamedTuple):
    """What judging is going to take, estimated before anything is sent."""

    texts: int
    kept: int
    """Different texts that cost nothing: their verdict, or that there was none, is on disk."""
    calls: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    """US dollars; None without a price."""

    @classmethod
    def of_all(cls, plans: Iterable[JudgePlan]) -> JudgePlan:
        """Several plans as one."""
        *counts, costs = zip(cls(0, 0, 0, 0, 0, 0.0), *plans, strict=True)
        return cls._make([*map(sum, counts), None if None in costs else sum(costs)])

    def __str__(self) -> str:
        cost = "no price given" if self.cost is None else f"about {self.cost:.2f} US dollars"
        return (
            f"{self.texts} texts, {self.kept} verdicts kept, {self.calls} calls, about "
            f"{self.prompt_tokens} tokens in and {self.completion_tokens} out, {cost}"
        )


class Judged(NamedTuple):
    """Verdicts of an :class:`ApiJudge`, and what they took."""

    verdicts: list[Verdict]
    usage: Usage
    failures: tuple[str, ...]
    """Calls without a whole answer after all retries; their texts are unscored. They are made again
    next time, those that were answered after a day."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ApiJudge:
    """A chat model that scores texts by the rubric, at temperature 0 if it takes one, one call
    a text.

    Every verdict is on disk before the next is looked at; equal texts are asked for once. An
    answer without a valid verdict leaves its text unscored, with the reason.
    """

    chat: ChatModel
    price: Price | None = None
    """For the estimate of the cost."""
    confirm: Callable[[JudgePlan], bool] | None = None
    """Is shown the plan before anything is sent; judging stops unless it returns True."""
    progress: bool = True

    @property
    def name(self) -> str:
        """The model's name."""
        return f"ApiJudge {self.chat.model}"

    @property
    def settings(self) -> dict[str, Any]:
        """Model, server, and a hash of the prompt, rubric included."""
        prompt = digest([judge_prompt("", "", ""), SCHEMA])
        server = self.chat.server or "OpenAI"
        return {"judge": "api", "model": self.chat.model, "server": server, "prompt": prompt}

    def plan(
        self, bias: GivenBias, texts: Sequence[str], targets: Sequence[str] | None = None
    ) -> JudgePlan:
        """What judging these texts is going to take; sends nothing."""
        requests = _requests(as_bias(bias), texts, hidden(texts, targets))
        new = [request for request in requests.values() if self.chat.kept(request) is None]
        # Four characters a token is the usual rule of thumb for English.
        asked = sum(len(request.prompt) // 4 for request in new)
        answered = ANSWER_TOKENS * len(new)
        cost = self.price.of(asked, answered) if self.price else None
        kept = len(requests) - len(new)
        return JudgePlan(len(texts), kept, len(new), asked, answered, cost)

    def judge(
        self, bias: GivenBias, texts: Sequence[str], targets: Sequence[str] | None = None
    ) -> list[Verdict]:
        """Score texts; see :meth:`grade`, which also tells what it took."""
        return self.grade(bias, texts, targets).verdicts

    def grade(
        self, bias: GivenBias, texts: Sequence[str], targets: Sequence[str] | None = None
    ) -> Judged:
        """Score texts.

        A call that fails after all retries leaves its text unscored. Where a server fails on
        many calls in a row, the rest is not sent, and those texts are unscored.

        Args:
            bias: Says which attribute is looked for.
            texts: What is scored.
            targets: For each text the group's name, which is hidden from the judge.

        Raises:
            ApiError: it was not confirmed, there is no key, or the server rejects key or model.
            SettingError: there are not as many targets as texts.
            StoreError: verdicts cannot be kept in the cache folder.
        """
        without_names = hidden(texts, targets)
        requests = _requests(as_bias(bias), texts, without_names)
        plan = self.plan(bias, texts, targets)
        if plan.calls:
            self.chat.check_usable()
            if self.confirm is not None and not self.confirm(plan):
                raise ApiError(
                    f"judging must be confirmed, and was not ({plan}). Nothing was sent."
                )
        replies: dict[str, Reply] = {}
        with bar(total=len(requests), desc="judge", unit="text", progress=self.progress) as shown:
            asked = self.chat.ask(list(requests.values()))
            for text, reply in zip(requests, asked, strict=False):
                replies[text] = reply
                (shown.found if reply.cached else shown.update)()
        verdicts = [_judged(*pair, replies) for pair in zip(texts, without_names, strict=True)]
        failures = tuple(reply.error for reply in replies.values() if reply.error)
        return Judged(verdicts, Usage.of(list(replies.values())), failures)


def _judged(text: str, without_name: str, replies: Mapping[str, Reply]) -> Verdict:
    flag = degenerate(text)  # hiding a name may make repetitions
    if flag == "empty":
        return Verdict(0.0, "nothing is said", flag)
    reply = replies.get(without_name)
    if reply is None:
        return Verdict(None, degenerate=flag, unscored="not asked, the server was down")
    if reply.refusal:
        return Verdict(None, degenerate=flag, unscored="the judge refused")
    verdict = verdict_of(reply.text, code_of(without_name))
    if reply.error and verdict.strength is None:
        unscored = "the judge gave no answer" if reply.answered else "the call failed"
        return Verdict(None, degenerate=flag, unscored=unscored)
    return verdict._replace(degenerate=flag or verdict.degenerate)


def _requests(bias: Bias, texts: Sequence[str], without_names: Sequence[str]) -> dict[str, Request]:
    """One request for each different text that is not empty."""
    bias.needs("a judge")
    return {
        without_name: Request(
            judge_prompt(bias.attribute, " / ".join(bias.paraphrases[:3]), without_name),
            number=0,
            schema=SCHEMA,
            temperature=0.0,
            max_tokens=MOST_TOKENS,
        )
        for text, without_name in zip(texts, without_names, strict=True)
        if degenerate(text) != "empty"
    }
