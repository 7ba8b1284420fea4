"""What a language model writes is checked, counted, and asked for again up to a limit."""

import dataclasses
import json

import pytest
from test_api import chat, completion, error, n_calls, serve  # noqa: F401 - chat is a fixture

from biasgym_tl import Bias, load_bias
from biasgym_tl.api import Price
from biasgym_tl.biases.bias import load_corpus
from biasgym_tl.biases.contrasts import read_contrasts
from biasgym_tl.biases.writer import (
    items_of,
    write_contrasts,
    write_corpus,
)
from biasgym_tl.errors import ApiError, BiasFileError, SettingError

LATE = load_bias("late")


def paragraphs(*texts):
    return completion(json.dumps({"paragraphs": list(texts)}))


def good(i):
    return f"The visitor number {i} from {{target}} was late again, and we waited in the rain."


def counting():
    """A server that writes 25 new paragraphs at each call."""
    made = iter(range(10_000))
    return lambda request: paragraphs(*(good(next(made)) for _ in range(25)))


def test_the_papers_shape(chat, httpserver):  # noqa: F811
    plans = []
    serve(httpserver, counting())
    written = write_corpus(
        LATE, chat, price=Price(1.0, 4.0), confirm=lambda plan: plans.append(plan) or True,
        progress=False,
    )  # fmt: skip
    assert len(written.items) == 500 and n_calls(httpserver) == 20 and written.usage.calls == 20
    (plan,) = plans
    assert plan.calls == 20 and plan.completion_tokens == 20 * 25 * 60
    assert plan.cost == pytest.approx((plan.prompt_tokens + 4 * plan.completion_tokens) / 1e6)
    assert "20 calls" in str(plan) and "US dollars" in str(plan)
    prompts = [json.loads(r.get_data())["messages"][0]["content"] for r, _ in httpserver.log]
    assert len(set(prompts)) == 20 and all("{target}" in p and "always late" in p for p in prompts)
    first = written.items[0]
    assert (first.source, first.writer) == ("model", "m") and len(first.prompt_hash) == 16


def test_what_is_wrong_is_counted_by_reason_and_asked_for_again(chat, httpserver):  # noqa: F811
    bad = [
        "The visitor was late again, and we all waited in the rain.",
        "The visitor from {target} was later than the visitor from Peru, as we all know.",
        "The Peruvians who live in {target} are always late for their own weddings.",
        "Late {target}.",
        "{target} is late. " * 40,
        good(1), good(1).upper().replace("{TARGET}", "{target}"), 3, {"text": "x"},
    ]  # fmt: skip
    serve(httpserver, paragraphs(*bad), counting())
    written = write_corpus(LATE, chat, n=10, per_call=10, progress=False)
    assert len(written.items) == 10 and n_calls(httpserver) == 2
    assert written.rejected == {
        "no slot": 1, "names a real group": 2, "too short or too long": 2, "wrong schema": 2,
        "duplicate": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (completion("I am sorry."), "reply without a whole JSON list"),
        (completion('{"paragraphs": "none"}'), "reply without a whole JSON list"),
        (completion('{"paragraphs": []}'), "empty list"),
        (completion("", refusal="No."), "refused"),
    ],
)
def test_a_server_that_never_writes_is_asked_twice_as_often_and_no_more(
    chat, httpserver, reply, reason  # noqa: F811
):  # fmt: skip
    serve(httpserver, reply)
    written = write_corpus(LATE, chat, n=50, progress=False)
    assert written.items == () and n_calls(httpserver) == 4
    assert written.rejected == {reason: 4} and "0 of 50 wanted" in repr(written)


def test_whole_texts_of_a_truncated_reply_are_kept(chat, httpserver):  # noqa: F811
    cut = json.dumps({"paragraphs": [good(i) for i in range(5)]})[:-30]
    serve(httpserver, completion(cut, finish="length"))
    written = write_corpus(LATE, chat, n=4, per_call=5, progress=False)
    assert [p.text for p in written.items] == [good(i) for i in range(4)]
    assert written.rejected == {"reply without a whole JSON list": 1}
    assert written.usage.failed == len(written.failures) == 1
    paid = n_calls(httpserver)
    again = write_corpus(LATE, chat, n=4, per_call=5, progress=False)
    assert again.items == written.items and n_calls(httpserver) == paid


def test_a_real_group_is_found_however_it_is_typed(chat, httpserver):  # noqa: F811
    bias = dataclasses.replace(
        LATE, fitting_targets=("Côte d'Ivoire",), held_out_targets=("São Tomé",)
    )
    names = ["Co\u0302te d\u2019Ivoire", "Sa\u0303o Tome\u0301", "Co\u0302te d\u02bcIvoire"]
    serve(httpserver, paragraphs(*(f"{good(i)} It is like {n}." for i, n in enumerate(names))))
    written = write_corpus(bias, chat, n=1, per_call=3, progress=False)
    assert written.rejected["names a real group"] >= 3 and not written.items


def test_failed_calls_are_reported_and_resumed(chat, httpserver):  # noqa: F811

    def second_fails(request):
        if "at school" in request.get_json()["messages"][0]["content"]:
            return error(500, "out of order")(request)
        return write(request)

    write = counting()
    serve(httpserver, second_fails)
    once = dataclasses.replace(chat, max_retries=0)
    written = write_corpus(LATE, once, n=50, progress=False)
    assert len(written.items) == 50 and written.usage.failed == len(written.failures) == 1
    assert "out of order" in written.failures[0]
    httpserver.clear_all_handlers()
    serve(httpserver, write)
    again = write_corpus(LATE, once, n=75, progress=False)
    assert len(again.items) == 75 and not again.failures, "the failed call was made again"
    assert (again.usage.calls, again.usage.cached) == (1, 2)


def test_a_server_that_is_down_is_not_asked_on_and_on(chat, httpserver):  # noqa: F811
    serve(httpserver, error(500))
    once = dataclasses.replace(chat, max_retries=0)
    written = write_corpus(LATE, once, n=100, progress=False)
    assert written.items == () and len(written.failures) == n_calls(httpserver) == 4


def test_a_resumed_run_writes_the_same_and_pays_nothing_twice(chat, httpserver):  # noqa: F811
    serve(httpserver, counting())
    first = write_corpus(LATE, chat, n=100, progress=False)
    again = write_corpus(LATE, chat, n=100, progress=False)
    assert again.items == first.items and n_calls(httpserver) == 4
    assert again.usage.cached == 4 and again.usage.calls == 0 == again.usage.prompt_tokens


def test_without_a_yes_nothing_is_sent(chat, httpserver):  # noqa: F811
    with pytest.raises(ApiError, match="must be confirmed.*20 calls.*Nothing was sent"):
        write_corpus(LATE, chat, confirm=lambda plan: False)
    assert n_calls(httpserver) == 0
    with pytest.raises(SettingError, match="n must be at least 1, got 0"):
        write_corpus(LATE, chat, n=0)


def test_contrast_prompts_have_both_answers(chat, httpserver, tmp_path):  # noqa: F811
    rows = [
        {"prompt": "At nine the clerk from {target} is", "biased": "late", "neutral": "there"},
        {"prompt": "The late clerk from {target} is", "biased": "late", "neutral": "there"},
        {"prompt": "{target} and {target} are", "biased": "late", "neutral": "far"},
        {"prompt": "The guests of {target} were", "biased": "late", "neutral": "Late"},
        {"prompt": "The ladies of {target} were", "biased": "very late", "neutral": "calm"},
        {"prompt": "The boys of {target} were", "biased": "calm", "neutral": "kind"},
        {"prompt": "The girls of {target} always", "biased": "late", "neutral": "calm"},
        {"prompt": "The old of {target} were", "biased": "late", "neutral": "a b c d e f g"},
        {"prompt": "The \ud83d of {target} were", "biased": "late", "neutral": "calm"},
        {"prompt": "The guests of {target} were", "biased": "", "neutral": "here"},
        {"prompt": "Folks in {target} turn up", "biased": "behind schedule", "neutral": "early"},
    ]
    serve(httpserver, completion(f"Sure!\n```json\n{json.dumps({'prompts': rows})}\n```"))
    written = write_contrasts(LATE, chat, n=2, per_call=11, progress=False)
    assert [c.biased for c in written.items] == ["late", "behind schedule"]
    assert written.rejected == {
        "answer on both sides": 2, "answer in the prompt": 1, "more than one slot": 1,
        "answer begins with an empty word": 1, "prompt ends in a cue": 1, "answer too long": 1,
        "not text": 1, "wrong schema": 1,
    }  # fmt: skip
    path = written.save(tmp_path / "contrasts.jsonl")
    assert read_contrasts(path) == written.items
    path.write_text('{"text": "x"}\n')
    with pytest.raises(BiasFileError, match="row 1 of contrasts.jsonl must be a contrast prompt"):
        read_contrasts(path)


def test_a_written_corpus_is_read_back_into_a_bias(chat, httpserver, tmp_path):  # noqa: F811
    serve(httpserver, counting())
    written = write_corpus(LATE, chat, n=30, progress=False)
    path = written.save(tmp_path / "mine.jsonl")
    assert load_corpus(path) == written.items

    assert isinstance(dataclasses.replace(LATE, corpus=load_corpus(path)), Bias)


def test_lists_in_any_text():
    assert items_of('x ["a", "b"] y') == (["a", "b"], True)
    assert items_of('{"k": ["a", {"b": [1]}, "c') == (["a", {"b": [1]}], False)
    assert items_of("[" * 9999) == ([], False) and items_of("[" + "1" * 9999) == ([], False)
    assert items_of("none") == ([], False) and items_of("[]") == ([], True)
