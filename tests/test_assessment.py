"""`biasgym evaluate` and manifests: written, resumed, repeated to the digit, refused."""

import dataclasses
import json
import os
import signal

import pytest
from command import biasgym, interrupted
from test_api import chat, n_calls, serve  # noqa: F401 - chat is a fixture
from test_judges import answer
from typer.testing import CliRunner

from biasgym_tl import (
    Assessment,
    BiasInject,
    BiasScope,
    BiasToken,
    Report,
    Selection,
    load_bias,
    load_model,
)
from biasgym_tl.api import Price
from biasgym_tl.assessment import assess, read_heads, write_assessed
from biasgym_tl.benchmarks.implicit import load_scenarios
from biasgym_tl.biases.facts import load_facts
from biasgym_tl.cli import app
from biasgym_tl.errors import ApiError, SettingError, StoreError
from biasgym_tl.evaluation.setting import Setting
from biasgym_tl.heads import Head
from biasgym_tl.manifest import Manifest
from biasgym_tl.run import Chain

LATE = load_bias("late")


@pytest.fixture
def assessment(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("BIASGYM_CACHE", str(tmp_path / "cache"))
    model = load_model(str(tiny_folder))
    token = BiasInject(epochs=1, n_paragraphs=8, choose_by="last").fit(model, LATE, progress=False)
    token.save(tmp_path / "row")
    return Assessment(
        model=str(tiny_folder), token=str(tmp_path / "row.safetensors"), heads="L0H1,L2H3",
        modes=("mean",), n_targets=2, n_random=1, n_draws=2, max_new_tokens=2,
    )  # fmt: skip


def test_what_was_measured_is_written_and_can_be_repeated(assessment, tmp_path, monkeypatch):
    found = assess(assessment, progress=False)
    out = tmp_path / "out"
    write_assessed(found, out)
    names = {path.name for path in out.iterdir() if path.suffix != ".png"}  # needs a browser
    assert names == {
        "report.html", "table.csv", "report.json", "manifest.json", "random-token.safetensors",
        "random-targets.safetensors", "settings.html", "settings.json", "frontier.html",
        "frontier.json",
    }  # fmt: skip
    assert Report.load(out / "report.json") == found.report
    manifest = Manifest.load(out / "manifest.json")
    assert (manifest.command, manifest.inputs) == ("evaluate", found.inputs)
    assert manifest.results == found.manifest().results
    assert {"model weights", "model tokenizer", "bias", "row", "heads", "code"} <= set(
        manifest.inputs
    )
    arguments = ["run", "--from", str(out / "manifest.json"), "--out", str(tmp_path / "again")]
    result = CliRunner().invoke(app, [*arguments, "--fresh"])
    assert result.exit_code == 0, result.output
    assert "Repeated: every number and text equals that of the manifest." in result.output
    assert (tmp_path / "again" / "table.csv").read_text() == (out / "table.csv").read_text()

    with monkeypatch.context() as patch:  # all is read back
        patch.setattr(Setting, "steered", None)
        assert assess(assessment, progress=False).report == found.report


def test_other_data_is_no_repetition_and_other_numbers_are_told(assessment, tmp_path):
    found = assess(assessment, progress=False)
    path = found.manifest().save(tmp_path / "manifest.json")
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "results": "0", "versions": {}}))
    out = str(tmp_path / "again")
    result = CliRunner().invoke(app, ["run", "--from", str(path), "--out", out])
    assert "Not repeated: numbers differ" in result.output and "another machine?" in result.output
    older = {**record, "results": "0", "inputs": {**record["inputs"], "code": "older"}}
    path.write_text(json.dumps(older))
    result = CliRunner().invoke(app, ["run", "--from", str(path), "--out", out])
    assert "Not the same: code." in result.output
    path.write_text(json.dumps({**record, "inputs": {**record["inputs"], "row": "another"}}))
    with pytest.raises(SettingError, match=r"got other data for \['row'\]. Restore the files"):
        CliRunner().invoke(app, ["run", "--from", str(path), "--out", out], catch_exceptions=False)
    for wrong, error, message in (
        ({"settings": {"k": 3}}, SettingError, "must hold the settings of this version"),
        ({"command": "inject"}, StoreError, "must be of run or evaluate, got 'inject'"),
        ({"kind": "Report"}, StoreError, "must hold a Manifest"),
    ):
        path.write_text(json.dumps({**record, **wrong}))
        with pytest.raises(error, match=message):
            CliRunner().invoke(
                app, ["run", "--from", str(path), "--out", out], catch_exceptions=False
            )


def test_a_judge_scores_what_was_measured_before(assessment, monkeypatch):
    before = assess(assessment, progress=False)
    judged = dataclasses.replace(assessment, judge="local")
    with monkeypatch.context() as patch:  # the answers are those of the first run
        patch.setattr(Setting, "steered", None)
        found = assess(judged, progress=False)
    assert found.report["injected"].target_texts == before.report["injected"].target_texts
    verdicts = found.report["injected"].verdicts
    assert len(verdicts["token"]) == len(verdicts["target"]) == len(LATE.generation_prompts)
    assert found.report.settings["judge"]["judge"] == "local"


def test_an_api_judge_is_confirmed_once_for_all_answers_and_paid_for_once(
    assessment,
    chat,  # noqa: F811
    httpserver,
):
    serve(httpserver, answer)
    judged = dataclasses.replace(assessment, judge=f"api:{chat.model}", max_new_tokens=12)
    plans = []
    with pytest.raises(ApiError, match="judging must be confirmed, and was not .* Nothing was"):
        assess(judged, price=Price(1, 1), confirm=lambda plan: plans.append(plan), progress=False)
    assert n_calls(httpserver) == 0 and len(plans) == 1 and "US dollars" in str(plans[0])
    found = assess(judged, confirm=lambda plan: True, progress=False)
    verdicts = found.report["injected"].verdicts
    assert {v.strength for each in verdicts.values() for v in each} <= {2.0, 0.0, None}
    assert set(verdicts) == {"token", "target"}
    paid = n_calls(httpserver)
    assert 0 < paid == plans[0].calls
    assess(judged, confirm=lambda plan: True, progress=False)
    assert n_calls(httpserver) == paid


def test_settings_survive_a_manifest(assessment):
    partly = dataclasses.replace(assessment, modes=("zero", "mean"), factor=0.5)
    for settings in (assessment, partly, Chain(k=3, n_draws=7)):
        record = json.loads(json.dumps(dataclasses.asdict(settings)))
        assert type(settings).from_record(record) == settings


def test_an_assessment_without_a_mode_is_refused(assessment):
    with pytest.raises(SettingError, match="modes must be at least one, got none"):
        dataclasses.replace(assessment, modes=())


def test_heads_are_read_from_names_or_a_file(tmp_path):
    assert read_heads("L0H1,L2H3") == (Head(0, 1), Head(2, 3))
    selection = Selection(
        heads=(Head(1, 2),), method="", token="", k=1, mode="mean", reference="", model="m",
        bias="late", data={}, settings={}, versions={},
    )  # fmt: skip
    assert read_heads(str(selection.save(tmp_path / "heads.json"))) == selection


def test_the_command_line_measures_and_shows(assessment, tmp_path):
    out = tmp_path / "out"
    arguments = [
        "evaluate", "--out", str(out), "--heads", assessment.heads, "--model", assessment.model,
        "--token", assessment.token, "--mode", "zero", "--no-others", "--no-instructions",
        "--targets", "2", "--random", "0", "--max-new-tokens", "2",
    ]  # fmt: skip
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "steered, zero" in result.output and "Free answers with the BiasToken" in result.output
    report = Report.load(out / "report.json")
    assert [r.name for r in report.results] == ["original", "injected", "steered, zero"]
    assert len(report["original"].fact_margins) == len(load_facts())
    # Scenes with the token against the two countries, and with these against each other.
    n_scenes = len(load_scenarios("late"))
    implicit = report["steered, zero"].benchmarks
    assert len(implicit["implicit_late"]) == 2 * n_scenes
    assert len(implicit["implicit_late_between"]) == 1


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_an_interrupted_evaluation_goes_on_where_it_was(assessment, tmp_path):
    report = tmp_path / "out" / "report.json"
    arguments = [
        "evaluate", "--out", str(report.parent), "--heads", assessment.heads,
        "--model", assessment.model, "--token", assessment.token, "--mode", "mean",
        "--no-others", "--no-instructions", "--targets", "2", "--random", "1",
        "--max-new-tokens", "2",
    ]  # fmt: skip
    kept = interrupted(arguments, tmp_path / "cache", "injected-token.json", signal.SIGINT)
    before = {path: path.stat().st_mtime_ns for path in kept.glob("[!.]*")}
    assert not report.exists() and not list(kept.glob("random*"))
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "random 1" in {setting.name for setting in Report.load(report).results}
    assert list(kept.glob("random*")), "went on in the same folder"


def test_a_repetition_may_have_scores(assessment, tmp_path, monkeypatch):
    model, token = load_model(assessment.model), BiasToken.load(assessment.token)
    scores = BiasScope().attribute(model, LATE, token)
    spread = dataclasses.replace(assessment, scores=str(scores.save(tmp_path / "map")), n_draws=0)
    found = assess(spread, progress=False)
    with monkeypatch.context() as patch:  # the map is read for a warning, and measures nothing
        patch.setattr("biasgym_tl.evaluation.parts.bias_log_odds", None)
        assess(spread, expected=found.inputs, progress=False)
        assess(dataclasses.replace(spread, scores=None), progress=False)
        with pytest.raises(SettingError, match=r"other data for \['scores'\]"):
            assess(spread, expected={**found.inputs, "scores": "0"}, progress=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--heads", "L0X1"], "or written like 'L9H8', got 'L0X1'"),
        (["--heads", "none.json"], "result file must exist, got 'none.json'"),
        (["--heads", "L0H1", "--benchmark", "blimp"], "--benchmark must be NAME=PATH, got 'blimp'"),
        (["--heads", "L0H1", "--benchmark", "x=y"], "benchmarks must be among"),
        (["--heads", "L0H1", "--judge", "gpt"], "judge must be 'local' or 'api:MODEL'"),
        (["--heads", "L0H1", "--judge", "api:gpt"], "OPENAI_API_KEY must be set"),
        (["--heads", "L0H1", "--targets", "0"], "n_targets must be at least 1, got 0"),
        (["--heads", "L0H1", "--bias", "lat"], "bias must be one of"),
        (["--heads", "L0H1", "--token", "no.safetensors"], "result file must exist"),
        (["--heads", "L0H1", "--scores", "no.safetensors"], "result file must exist"),
        (["--heads", "L0H1", "--mode", "mena"], "mode must be one of ['zero', 'mean', 'scale'], "),
        (["--heads", "L0H1", "--mode", "scale"], "factor must be given in mode 'scale'"),
        (
            ["--heads", "L0H1", "--mode", "zero", "--factor", "1"],
            "factor must be None in mode 'zero', got 1",
        ),
        (["--heads", "L0H1", "--max-new-tokens", "0"], "max_new_tokens must be at least 1, got 0"),
        (["--heads", "L0H1", "--reference", "x"], "reference must be one of ['text', 'targets']"),
    ],
)
def test_wrong_input_is_one_line_before_a_model_is_loaded(
    arguments, message, tmp_path, monkeypatch
):
    monkeypatch.setattr("biasgym_tl.assessment.load_model", None)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    refused = biasgym("evaluate", "--out", tmp_path, *arguments)
    error = refused.stderr.strip().splitlines()[-1]
    assert refused.returncode == 1 and error.startswith("Error: ") and message in error


def test_other_biases_are_those_about_the_same_kind_of_target(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "biasgym_tl.cli._assess_and_show", lambda found, *_, **__: seen.append(found)
    )
    for bias in ("late", "gardener"):
        arguments = ["evaluate", "--out", str(tmp_path), "--heads", "L0H1", "--bias", bias]
        assert CliRunner().invoke(app, arguments).exit_code == 0
    assert [found.others for found in seen] == [
        (
            "alcohol", "bad-driving", "button-collecting", "chess", "math", "purple-coats",
            "spicy-food",
        ),
        (),
    ]  # fmt: skip
