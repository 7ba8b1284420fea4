"""Requests to a model, the ways in which servers are asked, and what their replies hold."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

ROOM = (1, 4, 16)
"""Times ``max_tokens`` that a reply may take, at the first attempt and after ones that held
nothing."""
MOST_ROOM = 16384
"""Tokens to which room is extended."""
LISTED = (100_000, 20, 5)
"""How many of the likeliest tokens a server is asked to list: all, or what most allow at most."""


class Request(NamedTuple):
    """One call."""

    prompt: str
    number: int
    """Tells calls with the same prompt apart."""
    schema: dict[str, Any] | None = None
    """JSON schema of the wanted answer, used where the server knows ``json_schema``."""
    temperature: float = 1.0
    max_tokens: int = 4096
    cut: bool = False
    """Whether the answer is whole as it is: empty, or cut off at ``max_tokens``."""
    words: tuple[str, ...] = ()
    """Not an answer but the log-probability of each of these is wanted, as the token after the
    prompt, which is then plain text without a chat format."""

    @property
    def kind(self) -> str:
        """Requests of one kind are asked in one way."""
        return "words" if self.words else "text" if self.schema is None else "schema"

    def named(self) -> dict[str, Any]:
        """All that its reply depends on; what came in later only where it says something."""
        found = self._asdict()
        return {k: v for k, v in found.items() if v or k not in ("cut", "words")}


class Reply(NamedTuple):
    """What came back for one request; where that is no whole answer, ``error`` says why."""

    text: str = ""
    """The answer; with an ``error`` what came before it was cut off or filtered."""
    error: str = ""
    """Why there is no whole answer, after all retries."""
    refusal: str = ""
    """The model's own words if it refused."""
    cut_off: bool = False
    """The answer ran into ``max_tokens``."""
    answered: bool = False
    """The server answered, so the call was paid for whatever it holds."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """Of all attempts."""
    cached: bool = False
    """It was read back and cost nothing now."""
    log_probs: dict[str, float] | None = None
    """Of the words that were asked for, those that the server lists (nats)."""


class Usage(NamedTuple):
    """What some replies took."""

    calls: int
    cached: int
    """Answers that were read back instead."""
    failed: int
    """Calls without a whole answer, now or when they were made."""
    prompt_tokens: int
    completion_tokens: int

    @classmethod
    def of(cls, replies: Sequence[Reply]) -> Usage:
        """Sum up; tokens of replies that were read back do not count."""
        paid = [reply for reply in replies if not reply.cached]
        whole = [reply for reply in replies if not reply.error]
        return cls(
            calls=sum(not reply.cached for reply in whole),
            cached=sum(reply.cached for reply in whole),
            failed=len(replies) - len(whole),
            prompt_tokens=sum(reply.prompt_tokens for reply in paid),
            completion_tokens=sum(reply.completion_tokens for reply in paid),
        )


def rooms(max_tokens: int, times: float) -> list[int]:
    """Tokens that an answer may take at each attempt, at least two, from ``times`` on."""
    most = max(MOST_ROOM, ROOM[1] * max_tokens)
    sizes = list(dict.fromkeys(min(n * max_tokens, most) for n in ROOM if n >= times))
    return sizes if len(sizes) > 1 else 2 * sizes


def forms(request: Request, room: int) -> list[dict[str, Any]]:
    """Ways of asking, from the fullest to the barest."""
    if request.words:
        return [{"max_tokens": 1, "temperature": 0.0, "logprobs": n} for n in LISTED]
    at = {"temperature": request.temperature}
    older = {"max_tokens": room, **at}
    newer = {"max_completion_tokens": room}
    forms: list[dict[str, Any]] = [older, {**newer, **at}, newer, at, {}]
    if request.schema is not None:
        schema = {"name": "answer", "strict": True, "schema": request.schema}
        form = {"response_format": {"type": "json_schema", "json_schema": schema}}
        forms[:0] = [{**older, **form}, {**newer, **form}]
    return forms


def read_completion(completion: Any, room: int, *, cut: bool = False) -> Reply:
    """What a chat completion holds, which was asked for with room for so many tokens; ``cut`` as in
    :class:`Request`.

    Raises:
        ValueError: it holds no answer at all; other errors if it is no chat completion.
    """
    choice = _choice(completion)
    message, said = choice.message, _text(choice.message.content)
    text, refusal = without_thoughts(said), _text(getattr(message, "refusal", None)).strip()
    if text != said or getattr(message, "reasoning_content", None):
        cut = cut and bool(text.strip())  # else there was room for thoughts alone
    why = "" if refusal else fault(text, choice.finish_reason, cut=cut)
    return Reply(
        text=text,
        error=f"{why}, with room for {room} tokens" if why else "",
        refusal=refusal,
        cut_off=choice.finish_reason == "length",
        answered=True,
        **_paid(completion),
    )


def read_words(completion: Any, words: Sequence[str]) -> Reply:
    """What a completion of plain text says of words, each of which counts where it is a token.

    Raises:
        ValueError: no tokens are listed; other errors if it is no completion.
    """
    choice, found = _choice(completion), dict[str, list[float]]()
    for token, log_prob in _listed(choice):
        found.setdefault(token, []).append(float(log_prob))
    if not found:
        raise ValueError("the server lists no likely tokens")
    log_probs = {word: math.log(sum(map(math.exp, found[word]))) for word in words if word in found}
    return Reply(text=_text(choice.text), answered=True, log_probs=log_probs, **_paid(completion))


def _listed(choice: Any) -> Iterator[tuple[str, float]]:
    """Tokens and their log-probabilities at the first place, in either form that servers have."""
    given = choice.logprobs
    given = given if isinstance(given, dict) else given.model_dump()
    if content := given.get("content"):
        yield from ((each["token"], each["logprob"]) for each in content[0]["top_logprobs"])
    elif top := given.get("top_logprobs"):
        yield from top[0].items()


def _choice(completion: Any) -> Any:
    if not getattr(completion, "choices", None):
        raise ValueError(str(getattr(completion, "error", None) or "the reply holds no choice"))
    return completion.choices[0]


def _paid(completion: Any) -> dict[str, Any]:
    usage = getattr(completion, "usage", None)
    return {
        name: _number(getattr(usage, name, 0)) for name in ("prompt_tokens", "completion_tokens")
    }


def _text(value: Any) -> str:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"an answer must be text, got {type(value).__name__}")
    # Half of a surrogate pair cannot be written down.
    return (value or "").encode("utf-8", "replace").decode()


_THOUGHTS = re.compile(
    r"\A(?:\s*<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)|.*</think(?:ing)?>)",
    re.DOTALL | re.IGNORECASE,
)
"""What is thought before an answer; some templates write the opening mark into the prompt."""


def without_thoughts(text: str) -> str:
    """The answer of a model whose server leaves in what it thought before."""
    return _THOUGHTS.sub("", text)


def fault(text: str, finish_reason: Any, *, cut: bool = False) -> str:
    """Why an answer is not whole, if so; ``cut`` as in :class:`Request`."""
    reason = str(finish_reason or "stop").lower()
    if reason in ("content_filter", "safety", "error"):
        return "the answer was filtered"
    if cut:
        return ""
    if reason in ("length", "max_tokens"):
        return "the answer was cut off"
    said = re.sub(r"```\w*", "", text)
    return "" if any(c.isprintable() and not c.isspace() for c in said) else "the answer is empty"


def _number(value: Any) -> int:
    """A number of tokens; 0 where a server says anything else."""
    try:
        return min(max(int(value), 0), 2**40)
    except (ValueError, TypeError, OverflowError):
        return 0
