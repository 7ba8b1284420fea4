"""Secrets stay in requests, prompts go to one server, and no call is longer than its timeout."""

import base64
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from test_api import chat, completion, error, n_calls, serve  # noqa: F401 - chat is a fixture
from werkzeug import Response

from biasgym_tl.api import ChatModel
from biasgym_tl.endpoint import MOST_BYTES, Address
from biasgym_tl.errors import ApiError, SettingError, printable
from biasgym_tl.judges.api_judge import ApiJudge
from biasgym_tl.replies import Request
from biasgym_tl.store import cache_dir

PASSWORD = "s3cr/t p@ss"
WRITTEN = "s3cr%2Ft%20p%40ss"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        (None, Address(None)),
        ("", Address(None)),
        ("https://host/v1", Address("https://host/v1")),
        (f"https://me:{WRITTEN}@host:8/v1", Address("https://host:8/v1", "me", PASSWORD)),
        ("http://me:p@ss@[::1]:8/v1/", Address("http://[::1]:8/v1/", "me", "p@ss")),
        ("http://token@host", Address("http://host", "token")),
        ("http://host:host@host/host", Address("http://host/host", "host", "host")),
    ],
)
def test_an_address_and_its_secrets_stand_apart(url, address):
    assert Address.of("base_url", url) == address


@pytest.mark.parametrize(
    "url",
    ["host/v1", "ftp://me:s3cret@host", "http://me:s3cret@", "http://me:s3cret@host:port",
     "http://me:1/s3cret@host", "http://me:1?s3cret@host", "http://me:1#s3cret@host",
     "https://host/v1?key=s3cret", "https://host/v1#s3cret", "http://me:s3 cret@host",
     "http://me:s3cret@host\n", "http://me:s3cret@host:99999", "http://[s3cret", "\x1bs3cret"],
)  # fmt: skip
def test_what_is_no_address_is_refused_and_not_shown(url, chat, monkeypatch):  # noqa: F811
    with pytest.raises(SettingError, match="base_url must be the address of a server") as raised:
        ChatModel(model="m", base_url=url)
    assert "s3" not in str(raised.value)
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    with pytest.raises(SettingError, match="OPENAI_BASE_URL must be the address of") as raised:
        list(chat.ask([Request("p", 0)]))
    assert "s3" not in str(raised.value)


def test_a_password_is_sent_and_nowhere_shown(chat, httpserver, monkeypatch, caplog):  # noqa: F811
    caplog.set_level(logging.DEBUG)
    secret = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
    url = httpserver.url_for("/v1").replace("http://", f"http://me:{WRITTEN}@")

    def echo(request):
        assert request.headers["Authorization"] == f"Basic {secret}"
        said = f"no: {url}?api_key=abc&x=1 {PASSWORD} Basic {secret} //other:pw@host"
        return error(400, said)(request) if "1" in request.get_data(as_text=True) else answer

    answer = completion("yes")
    serve(httpserver, echo)
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    mine = ChatModel(model="m", base_url=url, max_retries=0)
    found = [*chat.ask([Request("p1", 0), Request("p", 0)]), *mine.ask([Request("q1", 0)])]
    settings = ApiJudge(chat=mine).settings
    assert settings["server"] == chat.server == httpserver.url_for("/v1")
    assert found[0].error and found[1].text == "yes" and found[2].error
    files = "".join(p.read_text() for p in cache_dir().rglob("*") if p.is_file())
    shown = f"{found} {mine!r} {settings} {files} {caplog.text}"
    for hidden in (PASSWORD, WRITTEN, secret, "api_key=abc", "other:pw"):
        assert hidden not in shown
    assert "api_key=***&x=1" in found[0].error


def test_a_user_without_a_password_is_a_secret():
    token = Address.of("base_url", "https://s3cr%2Ft@host/v1")
    said = f"no: s3cr/t s3cr%2Ft {base64.b64encode(b's3cr/t:').decode()} late"
    assert token.shown(said) == "no: *** *** *** late"
    assert Address.of("base_url", "https://host").shown("late") == "late"


def test_another_password_is_the_same_server(chat, httpserver):  # noqa: F811
    serve(httpserver, completion("yes"))
    for user in ("", "me:one@", "me:two@"):
        url = httpserver.url_for("/v1").replace("http://", f"http://{user}")
        list(ChatModel(model="m", base_url=url).ask([Request("p", 0)]))
    assert n_calls(httpserver) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_prompts_go_to_no_other_server(chat, httpserver, status):  # noqa: F811
    with socket.create_server(("127.0.0.1", 0)) as other:
        where = f"http://127.0.0.1:{other.getsockname()[1]}/v1/chat/completions"
        serve(httpserver, lambda r: Response("", status, {"Location": where}))
        with pytest.raises(ApiError, match="server must answer itself, but sends prompts on to "):
            list(chat.ask([Request(str(i), i) for i in range(20)]))
        other.settimeout(0.1)
        with pytest.raises(TimeoutError):
            other.accept()
    assert n_calls(httpserver) <= chat.concurrency


def test_another_path_of_the_same_server_is_followed(chat, httpserver):  # noqa: F811
    here = httpserver.url_for("/elsewhere")
    serve(httpserver, lambda r: Response("", 307, {"Location": here}))
    httpserver.expect_request("/elsewhere").respond_with_json(completion("yes"))
    assert [r.text for r in chat.ask([Request("p", 0)])] == ["yes"]


def test_what_a_server_says_holds_no_control_characters(chat, httpserver):  # noqa: F811
    said = "\x1b]0;title\x07 \x9b31m \u202e \ud83d \x00 ümlaut 时"
    for status in (400, 401):
        serve(httpserver, error(status, said))
        try:
            (reply,) = chat.ask([Request("p", status)])
            shown = reply.error
        except ApiError as raised:
            shown = str(raised)
        assert shown.isprintable() and "\\x1b]0;title\\x07" in shown and "ümlaut 时" in shown
        httpserver.clear_all_handlers()
    assert printable("late \t\ud83d") == "late \\t\\ud83d"


@pytest.fixture
def raw_server():
    """A server that answers with whatever a function sends, and its address."""
    servers = []

    def start(send):
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                try:
                    send(self.wfile)
                except OSError:
                    self.close_connection = True

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/v1"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "start", [b"", b"HTTP/1.1 200 OK\r\n", HEAD + b"\r\n", b"HTTP/1.1 500 X\r\n\r\n"]
)
def test_a_server_that_drips_is_left_in_time(chat, raw_server, start):  # noqa: F811
    def drip(file):
        file.write(start)
        for _ in range(100):
            file.write(b" " if start.endswith(b"\r\n\r\n") else b"x")
            file.flush()
            time.sleep(0.1)

    slow = ChatModel(model="m", base_url=raw_server(drip), timeout=0.5, max_retries=0)
    began = time.monotonic()
    (reply,) = slow.ask([Request("p", 0)])
    assert time.monotonic() - began < 3 and "APITimeoutError" in reply.error


def test_an_endless_reply_is_one_failed_call(chat, raw_server):  # noqa: F811
    def pour(file):
        file.write(HEAD + b"\r\n")
        for _ in range(MOST_BYTES // 2**16 * 4):
            file.write(b"[" * 2**16)

    model = ChatModel(model="m", base_url=raw_server(pour), max_retries=0)
    (reply,) = model.ask([Request("p", 0)])
    assert f"longer than {MOST_BYTES} bytes" in reply.error


def test_a_proxy_that_cannot_be_used_is_named_without_its_password(chat, monkeypatch):  # noqa: F811
    monkeypatch.setenv("ALL_PROXY", "socks9://me:s3cret@host:1")
    with pytest.raises(ApiError, match="connection must be possible, but: ") as raised:
        list(chat.ask([Request("p", 0)]))
    assert "s3cret" not in str(raised.value)


def test_two_processes_pay_once(chat, httpserver, tmp_path):  # noqa: F811
    serve(httpserver, lambda r: time.sleep(0.2) or completion("yes"))
    code = (
        "from biasgym_tl.api import *; "
        "replies = list(ChatModel(model='m').ask([Request(str(i), i) for i in range(8)])); "
        "assert [r.text for r in replies] == ['yes'] * 8"
    )
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait(60) for process in running] == [0, 0]
    assert n_calls(httpserver) == 8
    assert not list((cache_dir() / "api").glob("*.lock")), "locks are cleared away"


def test_equal_requests_are_paid_for_once(chat, httpserver):  # noqa: F811
    serve(httpserver, lambda r: time.sleep(0.1) or completion(json.dumps(r.get_json()["model"])))
    replies = list(chat.ask([Request("p", 0)] * 4))
    assert [r.text for r in replies] == ['"m"'] * 4 and n_calls(httpserver) == 1
