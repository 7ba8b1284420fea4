"""Asking a language model over an OpenAI-compatible API: kept, retried, counted.

Every finished call is a file in the cache folder before the next is looked at, under a key of
model, prompt, parameters and call index: what was paid for once is never asked for again, by any
process. A reply that holds nothing (empty, cut off, filtered) is asked for again with more room,
then kept apart as a failure for a day. The key of the API comes from the environment
(``OPENAI_API_KEY``, or what ``ChatModel.key`` names) and goes nowhere but into the request.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

from biasgym_tl.endpoint import Address, Connection
from biasgym_tl.errors import ApiError, SettingError, StoreError
from biasgym_tl.replies import Reply, Request, forms, read_completion, read_words, rooms
from biasgym_tl.store import cache_dir, digest, read_kind, write_kind

REMEMBERED = 24 * 3600.0
"""Seconds for which a reply that held nothing is not asked for again."""
PATIENCE = (4, 16)
"""Failures in a row after which nothing more is sent, before and after a server's first answer."""


_OF_A_KEY = frozenset(map(chr, range(0x21, 0x7F)))


class Price(NamedTuple):
    """US dollars per million tokens."""

    prompt: float
    completion: float

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Cost in US dollars."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatModel:
    """A chat model behind an OpenAI-compatible API.

    Raises:
        SettingError: on construction, if a number is outside its range or ``base_url`` is no
            address.
    """

    model: str
    base_url: str | None = dataclasses.field(default=None, repr=False)
    """Default: ``OPENAI_BASE_URL``, otherwise OpenAI's own. A user and password in it
    (``https://user:password@host/v1``) are sent, and shown nowhere."""
    concurrency: int = 4
    """Calls under way at the same time."""
    max_retries: int = 5
    """Of a call that meets 408, 409, 429, a 5xx, a timeout or a lost connection; waits grow, and
    ``Retry-After`` is obeyed."""
    timeout: float = 120.0
    """Seconds until an attempt counts as lost, from its start to the last byte of the reply."""
    key: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key."""
    fresh: bool = False
    """Ask again what was answered before this object was made, and keep the new answer."""
    _made: set[str] = dataclasses.field(default_factory=set, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.model:
            raise SettingError(f"model must be the name of a model, got {self.model!r}.")
        for name, least in (("concurrency", 1), ("max_retries", 0)):
            if getattr(self, name) < least:
                raise SettingError(f"{name} must be at least {least}, got {getattr(self, name)!r}.")
        if not self.key.isidentifier() or len(self.key) > 40:
            raise SettingError("key must be the name of an environment variable, not a key itself.")
        if not self.timeout > 0:
            raise SettingError(f"timeout must be positive, got {self.timeout!r}.")
        Address.of("base_url", self.base_url)

    def ask(self, requests: Sequence[Request]) -> Iterator[Reply]:
        """Replies in the order of the requests, each as soon as it and all before it are there.

        A call that fails after all retries is a reply with an ``error``; the others go on. After
        :data:`PATIENCE` failures in a row the rest is not sent, and the replies end early.

        Raises:
            ApiError: there is no key, the server rejects the key or the model, or it sends
                prompts on to another one.
            SettingError: ``OPENAI_BASE_URL`` is no address.
            StoreError: replies cannot be kept in the cache folder.
        """
        kept = [self.kept(request) for request in requests]
        if all(kept):
            yield from (reply for reply in kept if reply)
            return
        self.check_usable()
        calls = _Calls(self, self._connect())
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="biasgym-api")
        futures = [pool.submit(calls.reply, request) for request in requests]
        try:
            for future in futures:
                reply = future.result()
                if reply is None:
                    return
                yield reply
        finally:
            calls.stopped = True
            for future in futures:
                future.cancel()
            # Calls under way end and are kept; only then are the connections closed.
            pool.submit(_close_after, futures, calls.connection)
            pool.shutdown(wait=False)

    @property
    def address(self) -> Address:
        """Where requests go, with the user and password."""
        if self.base_url:
            return Address.of("base_url", self.base_url, self.key)
        return Address.of("OPENAI_BASE_URL", os.environ.get("OPENAI_BASE_URL"), self.key)

    @property
    def server(self) -> str | None:
        """Where requests go, without user and password; None: to OpenAI."""
        return self.address.url

    def check_usable(self) -> None:
        """Find out, before anything is sent or computed, what would make calls useless.

        Raises:
            ApiError: there is no key in the environment, or it cannot be sent.
            SettingError: ``OPENAI_BASE_URL`` is no address.
            StoreError: replies cannot be kept in the cache folder.
        """
        key = os.environ.get(self.key, "")
        if not key or set(key) - _OF_A_KEY:
            raise ApiError(
                f"{self.key} must be set in the environment, to one word of ASCII letters, got "
                f"{'something else (not shown)' if key else 'nothing'}. Run: export "
                f"{self.key}=... (a server without keys takes any word)"
            )
        _ = self.address
        try:
            for folder in (_folder(), _failures()):
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder) as file:
                    file.write(bytes(2**16))  # also finds a full disk
        except OSError as error:
            raise _unkept(error) from None

    def kept(self, request: Request) -> Reply | None:
        """The reply of an earlier run, if there is one: this request would cost nothing.

        That of a call which held nothing has an ``error``, and is forgotten after a day.
        """
        name = self._name(request)
        if self.fresh and name not in self._made:
            return None
        reply, _ = _read_kept(_folder() / name)
        if reply is None:
            reply, at = _read_kept(_failures() / name)
            if abs(time.time() - at) > REMEMBERED:
                return None
        return reply

    def _keep(self, request: Request, reply: Reply) -> None:
        """Write a reply down before it is returned, a failure apart from the answers."""
        asked = {"model": self.model, **request.named()}
        found = {"reply": reply._asdict(), "at": time.time()}
        folder = _failures() if reply.error else _folder()
        self._made.add(self._name(request))
        try:
            write_kind(folder / self._name(request), "Reply", {"request": asked, **found})
        except OSError as error:
            raise _unkept(error) from None

    def _name(self, request: Request) -> str:
        server = {"server": self.server} if self.server else {}
        return f"{digest({'model': self.model, **server, **request.named()})}.json"

    def _connect(self) -> Connection:
        import openai

        address = self.address
        try:
            return Connection(address, self.timeout, self.max_retries)
        except (openai.OpenAIError, ValueError, ImportError) as error:  # such as a proxy's address
            raise ApiError(
                f"a connection must be possible, but: {address.shown(str(error))}."
            ) from None


class _Calls:
    """The calls of one :meth:`ChatModel.ask`, and what they have found out about the server."""

    def __init__(self, chat: ChatModel, connection: Connection) -> None:
        self.chat = chat
        self.connection = connection
        self.stopped = False
        self._address = chat.address
        self._form: dict[str, int] = {}
        """Which way of asking the server understands, by kind of request."""
        self._times = 1.0
        """Room with which there was an answer, times ``max_tokens``."""
        self._failed = 0
        """Calls in a row."""
        self._lock = threading.Lock()

    def reply(self, request: Request) -> Reply | None:
        """The reply of an earlier run or another process, or a new one that is on disk already.

        None: nothing more is sent.
        """
        from filelock import FileLock

        if self.stopped:
            return None
        lock = _folder() / f"{self.chat._name(request)}.lock"
        try:
            with FileLock(lock):
                reply = self.chat.kept(request) or self._new(request)
        except (ApiError, StoreError):
            self.stopped = True
            raise
        except OSError as error:
            self.stopped = True
            raise _unkept(error) from None
        if reply and reply.answered:
            # Whoever waited for it finds the reply, so it does not matter whose lock it was.
            with contextlib.suppress(OSError):
                lock.unlink()
        return reply and self._counted(reply)

    def _counted(self, reply: Reply) -> Reply:
        with self._lock:
            self._failed = self._failed + 1 if reply.error else 0
            self.stopped |= self._failed >= PATIENCE[bool(self._form) or reply.answered]
        return reply

    def _new(self, request: Request) -> Reply | None:
        if self.stopped:
            return None
        reply = self._asked(request)
        if reply.answered:
            self.chat._keep(request, reply)
        return reply

    def _asked(self, request: Request) -> Reply:
        """Ask, and again with more room as long as the reply holds nothing."""
        replies: list[Reply] = []
        for room in rooms(request.max_tokens, self._times):
            reply = self._call(request, room)
            if replies and not reply.answered:
                break  # the server takes no more room; what it answered before counts
            replies.append(reply)
            if reply.answered and not reply.error:
                self._times = max(self._times, room / request.max_tokens)
            if not (reply.answered and reply.error):
                break
        return replies[-1]._replace(
            prompt_tokens=sum(reply.prompt_tokens for reply in replies),
            completion_tokens=sum(reply.completion_tokens for reply in replies),
        )

    def _call(self, request: Request, room: int) -> Reply:
        import openai

        try:
            found = self._understood(request, room)
            if request.words:
                return read_words(found, request.words)
            return read_completion(found, room, cut=request.cut)
        except (
            openai.AuthenticationError,
            openai.PermissionDeniedError,
            openai.NotFoundError,
        ) as error:
            raise ApiError(
                f"the server must accept the key and the model {self.chat.model!r}, but: "
                f"{self._said(error)}. Finished calls are kept."
            ) from None
        except openai.OpenAIError as error:
            if isinstance(error.__cause__, ApiError):  # as older versions of openai raise it
                raise error.__cause__ from None
            return Reply(error=self._said(error))
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            # A reply that is no chat completion, no JSON, or too deep or too long to be read.
            return Reply(error=self._said(error))

    def _understood(self, request: Request, room: int) -> Any:
        """Servers differ: until one way of asking is found, 400 and 422 are met with less."""
        import openai

        ways = forms(request, room)
        known = self._form.get(request.kind)
        asked: dict[str, Any] = {"messages": [{"role": "user", "content": request.prompt}]}
        if request.words:
            asked = {"prompt": request.prompt}
        for i in range(len(ways)) if known is None else [known]:
            try:
                found = self.connection.complete(model=self.chat.model, **asked, **ways[i])
            except (openai.BadRequestError, openai.UnprocessableEntityError):
                if known is not None or i == len(ways) - 1 or self.stopped:
                    raise
            else:
                self._form[request.kind] = i
                return found
        raise AssertionError("there is a last form")

    def _said(self, error: Exception) -> str:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        return self._address.shown(f"{type(error).__name__}: {error}{cause}")


def _close_after(calls: Sequence[Future[Any]], connection: Connection) -> None:
    wait(calls)
    connection.close()


def _folder() -> Path:
    return cache_dir() / "api"


def _failures() -> Path:
    return _folder() / "failed"


def _read_kept(path: Path) -> tuple[Reply | None, float]:
    """What is kept and when it was asked for; nothing where a file is not as it was written."""

    def build(file: dict[str, Any]) -> tuple[Reply, float]:
        return Reply(**{**file["reply"], "cached": True}), file["at"]

    try:
        return read_kind(path, "Reply", build, digested=True)
    except StoreError:
        return None, 0.0


def _unkept(error: OSError) -> StoreError:
    return StoreError(
        f"cache folder must be one in which replies can be kept, got {str(cache_dir())!r} "
        f"({error.strerror or error}). Make room there, or set BIASGYM_CACHE to another folder. "
        "Nothing more was sent."
    )
