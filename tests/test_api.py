"""A call is paid for once, survives every fault of a server, and never shows the key."""

import json
import logging
import shutil
import threading
import time
from pathlib import Path

import pytest
from werkzeug import Response

from biasgym_tl.api import PATIENCE, REMEMBERED, ChatModel, Price
from biasgym_tl.errors import ApiError, SettingError, StoreError
from biasgym_tl.replies import Reply, Request, Usage, fault, without_thoughts
from biasgym_tl.store import cache_dir

KEY = "sk-a-very-secret-key"
PATH = "/v1/chat/completions"


def completion(text, *, finish="stop", refusal=None, usage=(10, 20)):
    message = {"role": "assistant", "content": text, "refusal": refusal}
    tokens = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return {
        "id": "1", "object": "chat.completion", "created": 0, "model": "m", "usage": tokens,
        "choices": [{"index": 0, "finish_reason": finish, "message": message}],
    }  # fmt: skip


@pytest.fixture
def chat(httpserver, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", httpserver.url_for("/v1"))
    monkeypatch.setenv("BIASGYM_CACHE", str(tmp_path))
    return ChatModel(model="m", max_retries=2, timeout=5.0)


def serve(httpserver, *responses):
    """Answer the first call with the first response, and so on; the last one answers the rest."""
    left = list(responses)
    lock = threading.Lock()

    def handler(request):
        with lock:
            found = left.pop(0) if len(left) > 1 else left[0]
        found = found(request) if callable(found) else found
        return found if isinstance(found, Response) else Response(json.dumps(found), 200)

    httpserver.expect_request(PATH).respond_with_handler(handler)


def error(status, message="no", **headers):
    return lambda request: Response(json.dumps({"error": {"message": message}}), status, headers)


def n_calls(httpserver):
    """Calls so far, when those that were under way as ``ask`` ended have ended as well."""
    for thread in threading.enumerate():
        if thread.name.startswith("biasgym-api"):
            thread.join(10)
    return len(httpserver.log)


def test_replies_come_in_order_and_are_kept(chat, httpserver):
    serve(httpserver, lambda r: completion(r.get_json()["messages"][0]["content"].upper()))
    requests = [Request(f"prompt {i}", i) for i in range(6)]
    replies = list(chat.ask(requests))
    assert [r.text for r in replies] == [f"PROMPT {i}" for i in range(6)]
    assert not any(r.cached for r in replies) and n_calls(httpserver) == 6
    again = list(chat.ask(requests))
    assert [r.text for r in again] == [r.text for r in replies] and all(r.cached for r in again)
    assert n_calls(httpserver) == 6, "nothing is paid for twice"
    assert Usage.of(replies) == Usage(6, 0, 0, 60, 120) and Usage.of(again) == Usage(0, 6, 0, 0, 0)


def test_what_makes_a_call_another_call(chat, httpserver):
    serve(httpserver, completion("yes"))
    for request in (Request("p", 0), Request("p", 1), Request("q", 0), Request("p", 0, None, 0.5)):
        list(chat.ask([request]))
    list(ChatModel(model="other").ask([Request("p", 0)]))
    assert n_calls(httpserver) == 5


def test_every_finished_call_is_on_disk_before_the_next_is_awaited(chat, httpserver):
    serve(httpserver, completion("yes"))
    for done, _ in enumerate(chat.ask([Request("p", i) for i in range(3)]), start=1):
        assert len(list((cache_dir() / "api").glob("*.json"))) >= done


def test_a_stopped_run_goes_on_where_it_was(chat, httpserver):
    serve(httpserver, completion("yes"))
    replies = ChatModel(model="m", concurrency=1).ask([Request("p", i) for i in range(5)])
    next(replies)
    next(replies)
    replies.close()
    time.sleep(0.3)
    before = n_calls(httpserver)
    assert before < 5
    list(chat.ask([Request("p", i) for i in range(5)]))
    assert n_calls(httpserver) == 5


@pytest.mark.parametrize("wanted", [1, 4])
def test_connections_are_closed_after_the_last_call_under_way(
    chat, httpserver, monkeypatch, wanted
):
    """One left open is a ResourceWarning at some later time, in somebody else's code."""
    made = []
    build = ChatModel._connect
    monkeypatch.setattr(ChatModel, "_connect", lambda *args: made.append(build(*args)) or made[-1])
    serve(httpserver, lambda r: time.sleep(0.1) or completion("yes"))
    replies = ChatModel(model="m", concurrency=2).ask([Request("p", i) for i in range(4)])
    for _ in range(wanted):
        next(replies)
    replies.close()
    deadline = time.monotonic() + 5
    while not made[0].is_closed() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert made[0].is_closed()
    kept = len(list((cache_dir() / "api").glob("*.json")))
    assert kept == n_calls(httpserver), "calls under way are kept"


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_a_passing_fault_is_tried_again(chat, httpserver, status):
    serve(httpserver, error(status), completion("yes"))
    assert [r.text for r in chat.ask([Request("p", 0)])] == ["yes"]
    assert n_calls(httpserver) == 2


def test_retry_after_is_obeyed(chat, httpserver):
    serve(httpserver, error(429, **{"Retry-After": "2"}), completion("yes"))
    start = time.monotonic()
    assert [r.text for r in chat.ask([Request("p", 0)])] == ["yes"]
    assert time.monotonic() - start >= 2  # without it the first wait is at most half a second


def test_a_timeout_is_tried_again(chat, httpserver):
    def slow(request):
        time.sleep(1.5)
        return completion("late")

    serve(httpserver, slow, completion("yes"))
    quick = ChatModel(model="m", timeout=0.5, max_retries=2)
    assert [r.text for r in quick.ask([Request("p", 0)])] == ["yes"]


def test_a_call_that_keeps_failing_is_reported_and_the_rest_is_kept(chat, httpserver):
    def some(request):
        prompt = request.get_json()["messages"][0]["content"]
        return error(500, "out of order")(request) if prompt == "1" else completion(prompt)

    serve(httpserver, some)
    once = ChatModel(model="m", max_retries=0)
    replies = list(once.ask([Request(str(i), i) for i in range(3)]))
    assert [r.text for r in replies] == ["0", "", "2"]
    assert "InternalServerError" in replies[1].error and "out of order" in replies[1].error
    assert len(list((cache_dir() / "api").glob("*.json"))) == 2, "a failure is not kept"


def test_no_connection(chat, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    (reply,) = ChatModel(model="m", max_retries=0).ask([Request("p", 0)])
    assert "Connection" in reply.error and not reply.text


def test_a_server_that_takes_no_temperature_is_still_asked_for_structure(chat, httpserver):
    def newer_server(request):
        body = request.get_json()
        if "max_tokens" in body or "temperature" in body:
            return error(400, "unsupported")(request)
        return completion(json.dumps(sorted(body)))

    serve(httpserver, newer_server)
    request = Request("p", 0, {"type": "object"}, temperature=0.0, max_tokens=9)
    (reply,) = chat.ask([request])
    assert json.loads(reply.text) == [
        "max_completion_tokens", "messages", "model", "response_format",
    ]  # fmt: skip


def test_structured_output_where_the_server_knows_it_and_plain_json_otherwise(chat, httpserver):
    seen = []

    def old_server(request):
        seen.append("response_format" in request.get_json())
        refused = error(400, "response_format is not supported")
        return refused(request) if seen[-1] else completion("[]")

    serve(httpserver, old_server)
    schema = {"type": "object"}
    assert [r.text for r in chat.ask([Request("p", 0, schema)])] == ["[]"]
    assert seen == [True, True, False]


def test_a_server_that_wants_the_newer_name_of_the_limit(chat, httpserver):
    def new_server(request):
        if "max_tokens" in request.get_json():
            return error(400, "use max_completion_tokens")(request)
        return completion("[]")

    serve(httpserver, new_server)
    assert [r.text for r in chat.ask([Request("p", 0, {"type": "object"})])] == ["[]"]
    assert "max_completion_tokens" in httpserver.log[-1][0].get_json()


@pytest.mark.parametrize(
    ("body", "reason"),
    [('{"choices": [', "JSONDecodeError"), ('{"choices": []}', "holds no choice"),
     ('{"error": {"message": "no credit"}}', "no credit"), ("[]", "Error"),
     ('{"choices": [{"message": null, "finish_reason": "stop"}]}', "AttributeError")],
)  # fmt: skip
def test_a_body_that_is_no_completion_is_reported(chat, httpserver, body, reason):
    serve(httpserver, lambda request: Response(body, 200, content_type="application/json"))
    (reply,) = chat.ask([Request("p", 0)])
    assert reason in reply.error and not reply.text
    assert not list(cache_dir().glob("api/*.json"))


def test_half_of_a_surrogate_pair_can_be_kept(chat, httpserver):
    bodies = [
        json.dumps(completion("late \ud83d", refusal=refusal)) for refusal in (None, "\ud83d")
    ]
    for i, body in enumerate(bodies):
        serve(httpserver, lambda r, b=body: Response(b, 200, content_type="application/json"))
        for cached in (False, True):
            (reply,) = chat.ask([Request("p", i)])
            assert (reply.text, reply.refusal, reply.cached) == ("late ?", "?" * i, cached)
        httpserver.clear_all_handlers()


def odd(**changed):
    """A completion of which some parts are of another type."""
    found = completion("fine")
    choice = {**found["choices"][0], **changed.pop("choice", {})}
    choice["message"] = changed.pop("message", choice["message"])
    return {**found, "choices": [choice], **changed}


HOSTILE = {
    "brackets": "[" * 100_000, "braces": '{"a":' * 100_000, "a long number": "1" * 100_000,
    "choices as text": json.dumps(odd(choices="late")), "choices as a number": '{"choices": 5}',
    "choices by name": '{"choices": {"0": 1}}', "no object": '{"choices": [null]}',
    "message as text": json.dumps(odd(message="late")),
    "message as a list": json.dumps(odd(message=["late"])),
    "content as a list": json.dumps(odd(message={"content": [{"text": "late"}]})),
    "content as a number": json.dumps(odd(message={"content": 5})),
    "refusal as an object": json.dumps(odd(message={"content": "x", "refusal": {"a": 1}})),
    "a page": "<html>log in</html>", "nothing": "", "null": "null", "a text": '"late"',
    "no UTF-8": b'{"choices": [\xff]}', "an error as a list": '{"error": [[["\\ud83d"]]]}',
}  # fmt: skip


@pytest.mark.parametrize("content_type", ["application/json", "text/html"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_reply_of_another_shape_is_one_failed_call(chat, httpserver, name, content_type):
    serve(
        httpserver,
        lambda request: Response(HOSTILE[name], 200, content_type=content_type),
        completion("fine"),
    )
    one = ChatModel(model="m", max_retries=0, concurrency=1)
    bad, good = one.ask([Request("p", 0), Request("p", 1)])
    assert bad.error and not bad.text and not bad.answered and bad.error.isprintable()
    assert good.text == "fine" and Usage.of([bad, good]) == Usage(1, 0, 1, 10, 20)


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [({"prompt_tokens": "10", "completion_tokens": "5"}, (10, 5)), ("many", (0, 0)),
     ({"prompt_tokens": None, "completion_tokens": [5]}, (0, 0)), (None, (0, 0)),
     ({"prompt_tokens": -3, "completion_tokens": 1e300}, (0, 2**40)), ([1, 2], (0, 0)),
     ({"prompt_tokens": float("inf"), "completion_tokens": float("nan")}, (0, 0))],
)  # fmt: skip
def test_odd_numbers_of_tokens_do_not_lose_an_answer(chat, httpserver, usage, tokens):
    serve(httpserver, odd(usage=usage))
    (reply,) = chat.ask([Request("p", 0)])
    assert reply.text == "fine" and (reply.prompt_tokens, reply.completion_tokens) == tokens


def needs(room, **more):
    """A server that thinks first: its answer is cut off in less than ``room`` tokens."""

    def answer(request):
        given = request.get_json().get("max_tokens", 0)
        if given >= room:
            return completion("late", **more)
        return completion(None, finish="length", usage=(10, given))

    return answer


def test_a_reply_that_holds_nothing_is_asked_for_with_more_room(chat, httpserver):
    serve(httpserver, needs(1000))
    one = ChatModel(model="m", concurrency=1)
    replies = list(one.ask([Request("p", i, max_tokens=400) for i in range(3)]))
    assert [(r.text, r.error) for r in replies] == [("late", "")] * 3
    rooms = [request.get_json()["max_tokens"] for request, _ in httpserver.log]
    assert rooms == [400, 1600, 1600, 1600], "what is known to be too little is not paid for again"
    assert (replies[0].prompt_tokens, replies[0].completion_tokens) == (20, 420)
    assert all(r.cached for r in one.ask([Request("p", i, max_tokens=400) for i in range(3)]))
    assert n_calls(httpserver) == 4


NOTHING = {
    "empty": (completion(""), "the answer is empty"),
    "null": (completion(None), "the answer is empty"),
    "blank": (completion(" \n\t "), "the answer is empty"),
    "only thoughts": (completion("<think>They are late.</think>\n"), "the answer is empty"),
    "thoughts without an end": (completion("<think>They", finish="length"), "was cut off"),
    "cut off": (completion("They are la", finish="length"), "the answer was cut off"),
    "filtered": (completion(None, finish="content_filter"), "the answer was filtered"),
    "half filtered": (completion("They", finish="content_filter"), "the answer was filtered"),
}


@pytest.mark.parametrize("name", NOTHING)
def test_what_holds_nothing_is_a_failure_that_is_not_paid_for_in_each_run(
    chat, httpserver, name, monkeypatch
):
    body, fault = NOTHING[name]
    serve(httpserver, body)
    request = Request("p", 0, max_tokens=400)
    (reply,) = chat.ask([request])
    assert fault in reply.error and reply.answered and n_calls(httpserver) == 3
    assert Usage.of([reply]) == Usage(0, 0, 1, 30, 60)
    assert not list((cache_dir() / "api").glob("*.json")), "it is no answer"
    (again,) = chat.ask([request])
    assert again == reply._replace(cached=True) and n_calls(httpserver) == 3
    assert Usage.of([again]) == Usage(0, 0, 1, 0, 0)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + REMEMBERED + 1)
    httpserver.clear_all_handlers()
    serve(httpserver, completion("late"))
    assert [r.text for r in chat.ask([request])] == ["late"], "nor is it final"


def test_a_server_that_takes_no_more_room_is_not_asked_on(chat, httpserver):
    def small(request):
        too_much = request.get_json().get("max_tokens", 0) > 400
        return error(400, "at most 400")(request) if too_much else completion("x", finish="length")

    serve(httpserver, small)
    (reply,) = chat.ask([Request("p", 0, max_tokens=400)])
    assert reply.error == "the answer was cut off, with room for 400 tokens" and reply.text == "x"
    assert n_calls(httpserver) == 2


def test_thoughts_are_no_part_of_an_answer(chat, httpserver):
    serve(httpserver, completion("<think>[1] or </b>?</think>\n[2]"))
    assert [r.text for r in chat.ask([Request("p", 0)])] == ["\n[2]"]


@pytest.mark.parametrize("status", [400, 402, 405, 413, 418, 422, 500])
def test_a_lasting_fault_ends_after_a_bounded_number_of_calls(chat, httpserver, status):
    serve(httpserver, error(status))
    replies = list(ChatModel(model="m", max_retries=0).ask([Request(str(i), i) for i in range(99)]))
    forms = 5 if status in (400, 422) else 1
    assert 1 <= len(replies) <= PATIENCE[0] + 3 and all(r.error for r in replies)
    assert n_calls(httpserver) <= forms * (PATIENCE[0] + 3)


def test_a_server_that_stops_answering_is_given_more_patience(chat, httpserver):
    serve(httpserver, completion("yes"), error(400))
    one = ChatModel(model="m", concurrency=1)
    replies = list(one.ask([Request(str(i), i) for i in range(99)]))
    assert len(replies) == n_calls(httpserver) == 1 + PATIENCE[1], "one way of asking is known"


def test_a_few_failures_of_before_do_not_stop_the_others(chat, httpserver):
    requests = [Request(str(i), i) for i in range(8)]
    serve(httpserver, completion("", finish="content_filter"))
    list(chat.ask(requests[: PATIENCE[0] + 1]))
    httpserver.clear_all_handlers()
    serve(httpserver, completion("yes"))
    replies = list(chat.ask(requests))
    assert [r.text for r in replies] == [""] * 5 + ["yes"] * 3


def test_a_few_refused_prompts_do_not_stop_the_others(chat, httpserver):
    def some(request):
        number = int(request.get_json()["messages"][0]["content"])
        return error(400, "filtered")(request) if number % 4 else completion("yes")

    serve(httpserver, some)
    replies = list(chat.ask([Request(str(i), i) for i in range(40)]))
    assert [r.text for r in replies] == (["yes"] + [""] * 3) * 10


def test_a_cache_that_cannot_be_written_is_found_before_anything_is_sent(
    chat, httpserver, tmp_path, monkeypatch
):
    serve(httpserver, completion("yes"))
    (tmp_path / "file").write_text("no folder")
    for broken in (tmp_path / "file", tmp_path / "file" / "under", Path("/proc/nothing")):
        monkeypatch.setenv("BIASGYM_CACHE", str(broken))
        with pytest.raises(StoreError, match="cache folder must be one in which replies can be"):
            list(chat.ask([Request("p", 0)]))
    assert n_calls(httpserver) == 0


def test_a_cache_that_breaks_stops_the_calls(chat, httpserver):
    def answer(request):
        shutil.rmtree(cache_dir() / "api", ignore_errors=True)
        cache_dir().joinpath("api").write_text("no folder any more")
        return completion("yes")

    serve(httpserver, answer)
    with pytest.raises(StoreError, match="cache folder must be .* Nothing more was sent"):
        list(ChatModel(model="m", concurrency=1).ask([Request(str(i), i) for i in range(9)]))
    assert n_calls(httpserver) == 1


def test_a_kept_reply_is_whole_or_asked_for_again(chat, httpserver):
    serve(httpserver, completion("They are late."))
    request = Request("p", 0)
    (reply,) = chat.ask([request])
    (path,) = (cache_dir() / "api").glob("*.json")
    whole = path.read_text()
    assert reply._replace(cached=True) == chat.kept(request)
    edits = [
        whole.replace("late", "lote"), whole.replace("_tokens\": 20", "_tokens\": \"20\""),
        whole[:-9], "[" * 100_000, "[]", "{}", '{"reply": 1, "at": 2, "check": 3}',
    ]  # fmt: skip
    for edit in edits:
        assert edit != whole
        path.write_text(edit)
        assert chat.kept(request) is None


def test_refusal_and_a_cut_off_answer_are_told_apart(chat, httpserver):
    serve(
        httpserver, completion("", refusal="I would rather not."), completion("[", finish="length")
    )
    replies = list(ChatModel(model="m", concurrency=1).ask([Request("p", i) for i in range(2)]))
    assert replies[0].refusal == "I would rather not." and replies[1].cut_off


def test_a_rejected_key_or_model_stops_at_once_without_showing_the_key(chat, httpserver, caplog):
    caplog.set_level(logging.DEBUG)
    serve(httpserver, error(401, f"Incorrect API key provided: {KEY}"))
    with pytest.raises(
        ApiError, match="must accept the key and the model 'm'.*key provided: "
    ) as e:
        list(chat.ask([Request("p", 0)]))
    shown = f"{e.value!r} {e.value.__cause__!r} {chat!r} {caplog.text}"
    assert "***" in str(e.value) and KEY not in shown


def test_the_key_is_in_no_file(chat, httpserver, tmp_path):
    serve(httpserver, completion("yes"))
    list(chat.ask([Request("p", 0)]))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not any(KEY in path.read_text() for path in files)


def test_a_key_that_is_missing_or_cannot_be_sent_is_named(chat, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ApiError, match="OPENAI_API_KEY must be set in the environment.* nothing"):
        list(chat.ask([Request("p", 0)]))
    for key in (f"{KEY}\n", f" {KEY}", f"{KEY}é", "two words"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(ApiError, match=r"got something else \(not shown\)") as raised:
            list(chat.ask([Request("p", 0)]))
        assert KEY not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"model": ""}, "model must be the name of a model, got ''"),
     ({"concurrency": 0}, "concurrency must be at least 1, got 0"),
     ({"max_retries": -1}, "max_retries must be at least 0, got -1"),
     ({"timeout": 0.0}, "timeout must be positive, got 0.0")],
)  # fmt: skip
def test_settings_outside_their_range(settings, message):
    with pytest.raises(SettingError, match=message):
        ChatModel(**{"model": "m", **settings})


def test_price():
    assert Price(0.5, 2.0).of(1_000_000, 500_000) == 1.5
    assert Usage.of([Reply(error="no")]).failed == 1


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>draft</think>late", "late"),
        ("draft\n</think>\nlate", "\nlate"),
        ("<THINKING>a</Thinking> late", " late"),
        ("<think>cut in the middle", ""),
        ("late <thinker>", "late <thinker>"),
    ],
)
def test_what_is_thought_before_an_answer_is_taken_off(text, answer):
    assert without_thoughts(text) == answer


@pytest.mark.parametrize(
    ("text", "reason", "why"),
    [
        ("late", "stop", ""), ("late", None, ""), ("late", "eos", ""),
        ("late", "MAX_TOKENS", "cut off"), ("late", "SAFETY", "filtered"),
        ("\u200b\ufeff", "stop", "empty"), ("\0", "stop", "empty"),
        ("```json\n```", "stop", "empty"),
    ],
)  # fmt: skip
def test_what_holds_nothing_is_no_answer(text, reason, why):
    assert why in fault(text, reason) and bool(why) == bool(fault(text, reason))
