"""The server of an OpenAI-compatible API: its address without secrets, and calls that end in time.

A password in the address and the key go into requests and nowhere else: not into a record, an
error, or the log of the HTTP library. Prompts go to this server and to no other.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from biasgym_tl.errors import ApiError, SettingError, printable

MOST_BYTES = 2**24
"""Of one reply."""

_USERINFO = re.compile(r"//\S*@")
_SECRET_IN_QUERY = re.compile(
    r"(?i)([?&][\w.-]*(?:key|token|secret|passw|pwd|sig)[\w.-]*=)[^&\s\"']+"
)


class Address(NamedTuple):
    """Where requests go; the user and password of the address stand apart from it."""

    url: str | None
    """None: the address of OpenAI."""
    user: str = ""
    password: str = ""
    key: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key."""

    @classmethod
    def of(cls, name: str, url: str | None, key: str = "OPENAI_API_KEY") -> Address:
        """Take an address apart; an error about it does not show it, as it may hold a password.

        Raises:
            SettingError: it is no ``http`` or ``https`` address of a server, or it has a query.
        """
        if not url:
            return cls(None, key=key)
        try:
            parts = urlsplit(url)
            sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            sound = False
        # What follows the host can be a part of a password with "/", "?" or "#" in it.
        if not sound or set("@?#") & set(url.partition(parts.netloc)[2]) or not _clean(url):
            raise SettingError(
                f"{name} must be the address of a server, such as 'https://host/v1', without a "
                "query, got something else (not shown, it may hold a password). In a user name or "
                "password write %2F for / , %3F for ? , %23 for # and %40 for @."
            )
        userinfo, _, host = parts.netloc.rpartition("@")
        user, _, password = userinfo.partition(":")
        return cls(url.replace(parts.netloc, host, 1), unquote(user), unquote(password), key)

    def secrets(self) -> list[str]:
        """What must not be shown, in every form in which a server may repeat it."""
        secret = self.password or self.user  # a user without a password is a token
        both = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        forms = [secret, quote(secret, safe=""), both] if secret else []
        keys = map(os.environ.get, ("OPENAI_API_KEY", self.key))
        return [*filter(None, keys), *forms]

    def shown(self, text: str) -> str:
        """Text of a server or an error in one line, without secrets and control characters."""
        for secret in sorted(self.secrets(), key=len, reverse=True):
            text = text.replace(secret, "***")
        text = _SECRET_IN_QUERY.sub(r"\1***", _USERINFO.sub("//***@", text))
        return printable(" ".join(text.split()))[:300]


def _clean(url: str) -> bool:
    return url.isprintable() and " " not in url


class Connection:
    """Completions from one server, each attempt with a limit on the whole of it.

    Calls run on an event loop in a thread of its own: there, and only there, a call can be ended
    while its server lets bytes drip.
    """

    def __init__(self, address: Address, timeout: float, max_retries: int) -> None:
        """Connect to nothing yet; ``timeout`` is in seconds and of one attempt."""
        import openai

        self._http = _http_client(address, timeout)
        self._client = openai.AsyncOpenAI(
            api_key=os.environ.get(address.key),
            base_url=address.url,
            timeout=timeout,
            max_retries=max_retries,
            http_client=self._http,
        )
        self._http.event_hooks = {"request": [_only(self._client.base_url)]}
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._run, name="biasgym-api-loop", daemon=True).start()

    def complete(self, **asked: Any) -> Any:
        """One chat completion, or with a ``prompt`` one of plain text; waits for it."""
        of = self._client if "prompt" in asked else self._client.chat
        return self._done(of.completions.create(**asked))

    def is_closed(self) -> bool:
        """Whether :meth:`close` has ended."""
        return self._loop.is_closed()

    def close(self) -> None:
        """Close all connections and end the thread."""
        self._done(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _done(self, call: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


def _http_client(address: Address, timeout: float) -> Any:
    """The HTTP client of ``openai``, in which a timeout is not one of each byte."""
    import openai

    class Client(openai.DefaultAsyncHttpxClient):
        async def send(self, request: Any, **options: Any) -> Any:
            try:
                return await asyncio.wait_for(self._whole(request, options), timeout)
            except asyncio.TimeoutError:
                library = _library(request)
                raise library.ReadTimeout("the call took too long", request=request) from None

        async def _whole(self, request: Any, options: dict[str, Any]) -> Any:
            response = await super().send(request, **{**options, "stream": True})
            body = bytearray()
            try:
                async for part in response.aiter_bytes():
                    body += part
                    if len(body) > MOST_BYTES:
                        raise ValueError(f"the reply is longer than {MOST_BYTES} bytes")
            finally:
                await response.aclose()
            unpacked = ("content-encoding", "content-length", "transfer-encoding")
            headers = [(k, v) for k, v in response.headers.multi_items() if k not in unpacked]
            return _library(request).Response(
                response.status_code, headers=headers, content=bytes(body), request=request
            )

    auth = (address.user, address.password) if address.user or address.password else None
    return Client(timeout=timeout, auth=auth)


def _library(request: Any) -> Any:
    """The HTTP library of a request: httpx, or httpx2 since version 3 of ``openai``."""
    return sys.modules[type(request).__module__.partition(".")[0]]


def _only(own: Any) -> Callable[[Any], Awaitable[None]]:
    """Refuses requests to any server but this one, to which a redirect would send the prompt."""
    allowed = {(own.scheme, own.host, own.port)}
    if (own.scheme, own.port) == ("http", None):
        allowed.add(("https", own.host, None))

    async def check(request: Any) -> None:
        url = request.url
        if (url.scheme, url.host, url.port) not in allowed:
            other = printable(f"{url.scheme}://{url.host}" + (f":{url.port}" if url.port else ""))
            raise ApiError(
                f"the server must answer itself, but sends prompts on to {other!r}. Nothing was "
                "sent there. Use the address of a server that you trust."
            )

    return check
