"""The whole chain on a tiny model, from the command line: interrupted, resumed, reproduced."""

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from command import biasgym, interrupted
from typer.testing import CliRunner

import biasgym_tl
from biasgym_tl import BiasInject, Chain, Report, Selection, run_chain
from biasgym_tl.cli import app
from biasgym_tl.console import summary_lines
from biasgym_tl.errors import SettingError
from biasgym_tl.evaluation.setting import Setting
from biasgym_tl.plots import figure
from biasgym_tl.run import write_outputs
from biasgym_tl.steps import fingerprint

SHORT = ["--epochs", "1", "--choose-by", "last", "--max-new-tokens", "3", "--no-controls"]
QUICK = BiasInject(epochs=1, n_paragraphs=8, choose_by="last")


@pytest.fixture
def chain(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("BIASGYM_CACHE", str(tmp_path / "cache"))
    return Chain(model=str(tiny_folder), k=4, n_random=2, max_new_tokens=3, inject=QUICK)


def test_a_second_run_reproduces_every_number(chain, tmp_path):
    first = run_chain(chain, progress=False)
    write_outputs(first, tmp_path / "out")
    written = (tmp_path / "out" / "results.json").read_text()
    record = json.loads(written)
    assert "NaN" not in written  # which is not JSON
    second = run_chain(chain, fresh=True, progress=False)
    write_outputs(second, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "results.json").read_text()) == record
    assert Report.load(tmp_path / "out" / "report.json") == first.report == second.report
    assert record["heads"] == [str(h) for h in first.scores.top(4)]
    selection = Selection.load(tmp_path / "out" / "selection.json")
    assert selection == first.selection and record["random"] is None
    names = [result.name for result in first.report.results]
    assert names[2:8] == ["steered, zero", "steered, mean", "no-injection heads, mean",
                          "untrained-row heads, mean", "shuffled-corpus heads, mean",
                          "other-bias heads, mean"]  # fmt: skip
    tokens = {name: heads.token for name, heads in first.control_selections.items()}
    assert tokens == {
        "no-injection": "no injection", "untrained-row": "late, seed 0, untrained",
        "shuffled-corpus": "late-shuffled, seed 0", "other-bias": "math, seed 0",
    }  # fmt: skip
    assert record["control_heads"]["other-bias"] == [
        str(h) for h in first.control_selections["other-bias"]
    ]
    html = (tmp_path / "out" / "heatmap.html").read_text()
    assert len(html) < 300_000 and "cdn.plot.ly" in html
    lines = summary_lines(first.report)
    assert lines[0].startswith("Injected: the BiasToken is ")
    assert lines[2].startswith("steered, mean: BiasToken ") and "of 3." in lines[3]
    assert any("not informative" in warning for warning in first.report.warnings())
    page = (tmp_path / "out" / "report.html").read_text()
    assert "no-injection heads, mean" in page and "random" in page


def test_reinjection_and_many_draws_go_on_from_the_same_run(chain, monkeypatch):
    first = run_chain(chain, progress=False)
    measured = []
    steered = Setting.steered
    monkeypatch.setattr(
        Setting, "steered", lambda self, *a: measured.append(self.name) or steered(self, *a)
    )
    more = dataclasses.replace(chain, reinject=True, n_draws=6)
    second = run_chain(more, progress=False)
    assert set(measured) == {"re-injected, mean", "random set"}
    assert second.report["re-injected, mean"].token == "late, seed 0, trained on the steered model"
    assert second.report["steered, mean"] == first.report["steered, mean"]
    assert second.report["re-injected, mean"].token_log_odds != pytest.approx(
        second.report["steered, mean"].token_log_odds
    )
    assert second.random is not None and len(second.random.draws) == 6
    assert "6 random sets" in repr(second.random)


def test_finished_steps_are_read_back_and_broken_ones_made_again(chain, tmp_path, monkeypatch):
    first = run_chain(chain, progress=False)

    def fail(*args, **kwargs):
        raise AssertionError("trained again")

    with monkeypatch.context() as patch:
        patch.setattr(BiasInject, "fit", fail)
        assert run_chain(chain, progress=False).report == first.report
        with pytest.raises(AssertionError, match="trained again"):
            run_chain(dataclasses.replace(chain, seed=1), progress=False)
    cache = tmp_path / "cache"
    for pattern in ("rows/*.safetensors", "runs/*/random-1-token.json", "runs/*/selection.json"):
        for path in cache.glob(pattern):
            path.write_bytes(b"{")
    assert run_chain(chain, progress=False).report == first.report


def test_k_is_checked(chain):
    with pytest.raises(SettingError, match="k must be at least 1, got 0"):
        Chain(k=0)
    with pytest.raises(SettingError, match="k must be at most 12, the number of heads"):
        run_chain(dataclasses.replace(chain, k=13), progress=False)
    with pytest.raises(SettingError, match="n_draws must be at least 0, got -1"):
        Chain(n_draws=-1)
    with pytest.raises(SettingError, match="max_new_tokens must be at least 1, got 0"):
        Chain(max_new_tokens=0)
    with pytest.raises(SettingError, match="other_bias must be another bias, got 'late' again"):
        run_chain(dataclasses.replace(chain, other_bias="late"), progress=False)


def test_the_key_of_a_run_holds_all_that_its_numbers_depend_on(tiny):
    model = tiny()
    keys = [fingerprint(model)]
    model.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    keys.append(fingerprint(model))
    model.cfg.default_prepend_bos = False
    keys.append(fingerprint(model))
    with torch.no_grad():  # swapped heads have the same sum
        W_O = model.blocks[0].attn.W_O
        W_O.copy_(W_O.flip(0))
    keys.append(fingerprint(model))
    assert fingerprint(model) == keys[-1]
    assert all(a != b for a, b in itertools.combinations(keys, 2))


def test_command_line(tiny_folder, tmp_path):
    environment = {"BIASGYM_CACHE": str(tmp_path / "cache")}
    out = tmp_path / "out"
    options = ["--model", str(tiny_folder), "--k", "3", *SHORT, "--out", str(out)]
    done = biasgym("run", *options, env=environment)
    assert done.returncode == 0, done.stderr
    for text in ("steered, mean", "random", "not informative", "Free answers with the BiasToken"):
        assert text in done.stdout
    written = {path.name for path in out.iterdir()}
    assert written >= {
        "heatmap.html", "loss.html", "settings.html", "results.json", "report.json",
        "selection.json", "token.safetensors", "scores.safetensors",
    }  # fmt: skip
    assert (out / "heatmap.png").exists() or "PNG not written" in done.stderr

    wrong = biasgym("run", "--out", str(out), "--bias", "tardy", env=environment)
    assert wrong.returncode == 1 and "bias must be one of" in wrong.stderr
    assert "Traceback" not in wrong.stderr and wrong.stderr.count("\n") == 2
    (tmp_path / "file").touch()
    no_folder = biasgym("run", "--out", str(tmp_path / "file"), env=environment)
    assert no_folder.returncode == 1 and "--out must be a folder" in no_folder.stderr
    listed = CliRunner().invoke(app, ["biases"])
    assert listed.exit_code == 0 and "Bias('late'" in listed.output
    assert "demo" in CliRunner().invoke(app, ["--help"]).output


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_goes_on_where_it_was(tiny_folder, tmp_path, signal_number):
    cache, out = tmp_path / "cache", tmp_path / "out"
    options = ["run", "--model", str(tiny_folder), *SHORT, "--out", str(out)]
    kept = interrupted(options, cache, "injected-token.json", signal_number)
    assert not out.exists()
    before = {path: path.stat().st_mtime_ns for path in kept.glob("[!.]*")}
    assert biasgym(*options, env={"BIASGYM_CACHE": str(cache)}).returncode == 0
    assert (out / "results.json").exists()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert kept / "scores.safetensors" in before
    assert list(kept.glob("random*")), "went on in the same folder"


def test_importing_the_package_or_the_command_loads_nothing_heavy():
    code = "import sys, biasgym_tl, biasgym_tl.cli; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformer_lens", "transformers", "pandas"} & {*found.stdout.split()}


def test_every_public_name_can_be_loaded():
    assert biasgym_tl.__all__ == dir(biasgym_tl)
    for name in biasgym_tl.__all__:
        assert getattr(biasgym_tl, name).__doc__, name
    with pytest.raises(AttributeError, match="biasgym_tl attribute debias"):
        biasgym_tl.debias  # noqa: B018


def test_png_without_a_browser_is_one_line(tmp_path, monkeypatch):
    kaleido = pytest.importorskip("kaleido", reason="the extra png is not installed")
    import plotly.graph_objects as go

    def no_browser(*args, **kwargs):
        raise kaleido.errors.ChromeNotFoundError

    monkeypatch.setattr(figure, "write_images", no_browser)
    remark = figure.write_png(go.Figure(), tmp_path / "figure.png")
    assert remark.startswith("PNG not written: kaleido found no usable Chrome")
    assert "\n" not in remark and not list(tmp_path.iterdir())
