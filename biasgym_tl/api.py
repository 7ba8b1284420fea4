"""Asking a language model over an OpenAI-compatible API: kept, retried, counted.

Every finished call is a file in the cache folder before the next is looked at, under a key of
model, prompt, parameters and call index: what was paid for once is never asked for again. The key
of the API comes from the environment (``OPENAI_API_KEY``) and goes nowhere but into the request.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

from biasgym_tl.errors import ApiError, SettingError, StoreError
from biasgym_tl.store import cache_dir, digest, read_json, write_json


class Request(NamedTuple):
    """One call."""

    prompt: str
    number: int
    """Tells calls with the same prompt apart."""
    schema: dict[str, Any] | None = None
    """JSON schema of the wanted answer, used where the server knows ``json_schema``."""
    temperature: float = 1.0
    max_tokens: int = 4096


class Reply(NamedTuple):
    """What came back for one request; without a text, ``error`` says why."""

    text: str = ""
    error: str = ""
    """Why there is no text, after all retries."""
    refusal: str = ""
    """The model's own words if it refused."""
    cut_off: bool = False
    """The answer ran into ``max_tokens``."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached: bool = False
    """It was read back and cost nothing now."""


class Price(NamedTuple):
    """US dollars per million tokens."""

    prompt: float
    completion: float

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Cost in US dollars."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


class Usage(NamedTuple):
    """What some replies took."""

    calls: int
    cached: int
    """Calls that were read back instead."""
    failed: int
    prompt_tokens: int
    completion_tokens: int

    @classmethod
    def of(cls, replies: Sequence[Reply]) -> Usage:
        """Sum up; tokens of replies that were read back do not count."""
        paid = [reply for reply in replies if not reply.cached]
        return cls(
            calls=sum(not reply.error for reply in paid),
            cached=len(replies) - len(paid),
            failed=sum(bool(reply.error) for reply in paid),
            prompt_tokens=sum(reply.prompt_tokens for reply in paid),
            completion_tokens=sum(reply.completion_tokens for reply in paid),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatModel:
    """A chat model behind an OpenAI-compatible API.

    Raises:
        SettingError: on construction, if a number is outside its range.
    """

    model: str
    base_url: str | None = None
    """Default: ``OPENAI_BASE_URL``, otherwise OpenAI's own."""
    concurrency: int = 4
    """Calls under way at the same time."""
    max_retries: int = 5
    """Of a call that meets 408, 409, 429, a 5xx, a timeout or a lost connection; waits grow, and
    ``Retry-After`` is obeyed."""
    timeout: float = 120.0
    """Seconds until a call counts as lost."""

    def __post_init__(self) -> None:
        if not self.model:
            raise SettingError(f"model must be the name of a model, got {self.model!r}.")
        for name, least in (("concurrency", 1), ("max_retries", 0)):
            if getattr(self, name) < least:
                raise SettingError(f"{name} must be at least {least}, got {getattr(self, name)!r}.")
        if not self.timeout > 0:
            raise SettingError(f"timeout must be positive, got {self.timeout!r}.")

    def ask(self, requests: Sequence[Request]) -> Iterator[Reply]:
        """Replies in the order of the requests, each as soon as it and all before it are there.

        A call that fails after all retries is a reply with an ``error``; the others go on.

        Raises:
            ApiError: there is no key, or the server rejects the key or the model.
        """
        kept = [self.kept(request) for request in requests]
        if all(kept):
            yield from (reply for reply in kept if reply)
            return
        self.check_key()
        client = self._client(self.server)
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="biasgym-api")
        futures = [pool.submit(self._kept, client, request) for request in requests]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()
            # Calls under way end and are kept; only then are the connections closed.
            pool.submit(lambda: (wait(futures), client.close()))
            pool.shutdown(wait=False)

    @property
    def server(self) -> str | None:
        """Where requests go; None: to OpenAI."""
        return self.base_url or os.environ.get("OPENAI_BASE_URL") or None

    def check_key(self) -> None:
        """Raise an :class:`ApiError` unless there is a key in the environment."""
        if not os.environ.get("OPENAI_API_KEY"):
            raise ApiError(
                "OPENAI_API_KEY must be set in the environment; a server without keys takes any "
                "word. Run: export OPENAI_API_KEY=..."
            )

    def kept(self, request: Request) -> Reply | None:
        """The reply of an earlier run, if there is one: this request would cost nothing."""
        try:
            return Reply(**{**read_json(self._path(request))["reply"], "cached": True})
        except (StoreError, KeyError, TypeError):
            return None

    def _client(self, base_url: str | None) -> Any:
        from openai import OpenAI

        return OpenAI(base_url=base_url, max_retries=self.max_retries, timeout=self.timeout)

    def _kept(self, client: Any, request: Request) -> Reply:
        """The reply of an earlier run, or a new one that is on disk before it is returned."""
        if kept := self.kept(request):
            return kept
        reply = self._call(client, request)
        if not reply.error:
            asked = {"model": self.model, **request._asdict()}
            write_json(self._path(request), {"request": asked, "reply": reply._asdict()})
        return reply

    def _path(self, request: Request) -> Path:
        server = {"server": self.server} if self.server else {}
        key = digest({"model": self.model, **server, **request._asdict()})
        return cache_dir() / "api" / f"{key}.json"

    def _call(self, client: Any, request: Request) -> Reply:
        import openai

        try:
            return _read(self._asked_until_understood(client, request))
        except (
            openai.AuthenticationError,
            openai.PermissionDeniedError,
            openai.NotFoundError,
        ) as error:
            raise ApiError(
                f"the server must accept the key and the model {self.model!r}, but: "
                f"{_without_key(error)}. Finished calls are kept."
            ) from None
        except (openai.OpenAIError, ValueError, TypeError, AttributeError) as error:
            # The last three: a reply that is no chat completion, or no JSON at all.
            return Reply(error=_without_key(error))

    def _asked_until_understood(self, client: Any, request: Request) -> Any:
        """Servers differ: one that says 400 or 422 is asked again with less."""
        import openai

        at = {"temperature": request.temperature}
        older = {"max_tokens": request.max_tokens, **at}
        newer = {"max_completion_tokens": request.max_tokens}
        attempts: list[dict[str, Any]] = [older, {**newer, **at}, newer, at]
        if request.schema is not None:
            schema = {"name": "answer", "strict": True, "schema": request.schema}
            form = {"response_format": {"type": "json_schema", "json_schema": schema}}
            attempts[:0] = [{**older, **form}, {**newer, **form}]
        for wanted in attempts:
            with contextlib.suppress(openai.BadRequestError, openai.UnprocessableEntityError):
                return self._create(client, request, **wanted)
        return self._create(client, request)

    def _create(self, client: Any, request: Request, **wanted: Any) -> Any:
        return client.chat.completions.create(
            model=self.model,
            messages=[{"role": "user", "content": request.prompt}],
            **wanted,
        )


def _read(completion: Any) -> Reply:
    if not getattr(completion, "choices", None):
        reason = getattr(completion, "error", None) or "the reply holds no choice"
        return Reply(error=_without_key(ValueError(str(reason))))
    choice, usage = completion.choices[0], completion.usage
    return Reply(
        # Half of a surrogate pair cannot be written down.
        text=(choice.message.content or "").encode("utf-8", "replace").decode(),
        refusal=getattr(choice.message, "refusal", None) or "",
        cut_off=choice.finish_reason == "length",
        prompt_tokens=(usage and usage.prompt_tokens) or 0,
        completion_tokens=(usage and usage.completion_tokens) or 0,
    )


def _without_key(error: Exception) -> str:
    """The error in one line; some servers repeat the key they were sent."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    key = os.environ.get("OPENAI_API_KEY", "")
    return text.replace(key, "***")[:300] if key else text[:300]
