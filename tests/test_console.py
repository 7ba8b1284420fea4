"""Nothing that is printed can steer a terminal, and every known fault is one line."""

import errno
import io
import json
import math
import os
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from command import COMMAND, biasgym
from rich.console import Console

import biasgym_tl.biases
from biasgym_tl import Protocol, Report
from biasgym_tl.biases.corpus import Paragraph, save_corpus
from biasgym_tl.console import (
    as_json,
    result_values,
    show_report,
    show_result,
    summary_table,
    visible,
    visible_line,
)
from biasgym_tl.protocol.result import BiasResult, ProtocolResult

CODES = ("\x1b]0;x\x07", "\x1b[2J", "\x9b31m", "\x90q\x9c", "\r", "\b", "\x7f", "\x00", "\u202e",
         "\u2028", "\ud800")  # fmt: skip


def unsafe(text):
    """Characters of a text that a terminal would not just show."""
    return {c for c in text if c not in "\n\t" and not c.isprintable() and not c.isspace()}


@pytest.mark.parametrize("code", CODES)
def test_what_would_steer_a_terminal_is_shown(code):
    shown = visible(f"é\t{code}\n漢")
    assert shown.startswith("é\t\\") and shown.endswith("\n漢") and not unsafe(shown)
    assert not set(code) & set("\r\x85\u2028\u202e\ud800") & set(shown)
    assert shown.encode() and "\n" not in visible_line(f"a\n{code}\nb")


def test_other_text_is_left_as_it_is():
    text = "“Zażółć” 漢字 🙂 Ελληνικά\n\tไทย"
    assert visible(text) == text and visible_line("a\n  b") == "a b"


def test_a_corpus_is_printed_without_its_codes(tmp_path):
    texts = [f"From {{target}} {CODES[0]} {word} late." for word in ("they were", "all came", "x")]
    path = save_corpus([Paragraph(text) for text in texts], tmp_path / "c.jsonl")
    found = biasgym("corpus", path)
    assert found.returncode == 0, found.stderr
    assert "\\x1b]0;x\\x07" in found.stdout and not unsafe(found.stdout)


def test_an_error_is_one_line_whatever_stands_in_it(tmp_path):
    path = tmp_path / "b.toml"
    path.write_text('name = "a"\n"x\\u001b[2J\\n\\n" = 1')
    found = biasgym("biases", "check", path)
    assert found.returncode == 1 and len(found.stderr.splitlines()) == 1
    assert found.stderr.startswith("Error: ") and not unsafe(found.stderr)


def shipped(name):
    path = Path(biasgym_tl.biases.__file__).parent / "data" / "late.toml"
    text = path.read_text(encoding="utf-8")
    return text.replace('name = "late"', f"name = {json.dumps(name, ensure_ascii=False)}", 1)


def test_known_faults_are_one_line_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("biasgym_tl.model.load_model", None)
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "latin.toml").write_bytes(shipped("é").encode("latin-1"))
    (tmp_path / "out.toml").write_text(shipped("../../x"), encoding="utf-8")
    (tmp_path / "d.jsonl").mkdir()
    (tmp_path / "d.json").mkdir()
    inject = ("inject", "--choose-by", "last", "--out")
    for words, message in (
        (("biases", "check", tmp_path / "latin.toml"), "latin.toml must be UTF-8, got the byte 0x"),
        (("biases", "check", tmp_path), "bias must be one of"),
        (("corpus", tmp_path / "d.jsonl"), "corpus file must be readable, got"),
        ((*inject, tmp_path / "file" / "o"), "--out must be a folder, got"),
        ((*inject, tmp_path / "link"), "--out must be a folder, got"),
        ((*inject, tmp_path / "o", "--bias", tmp_path / "out.toml"), "name of a bias must be 1 to"),
        (("search", tmp_path / "d.json"), "file must be none that is a folder"),
        (("search", tmp_path / "file" / "a.json"), "folder of the file must be a folder"),
        (("export", tmp_path / "link", "--heads", "L0H1"), "folder must be new or empty"),
        (("export", tmp_path / "file", "--heads", "L0H1"), "folder must be new or empty"),
        (("figures", tmp_path / "file"), "folder must hold figures"),
    ):
        found = biasgym(*words)
        assert found.returncode == 1 and "Traceback" not in found.stderr, words
        lines = found.stderr.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("Error: ") and message in lines[0], lines
    run = ("run", "demo", "--out", tmp_path / "o")
    for cache, message in (
        (tmp_path / "file", "cache folder (BIASGYM_CACHE) must be a folder"),
        ("~nobody-of-this-name/c", "BIASGYM_CACHE must be a folder, got '~nobody"),
    ):
        found = biasgym(*run, env={"BIASGYM_CACHE": str(cache)})
        assert found.returncode == 1 and message in found.stderr.splitlines()[-1]
    assert not (tmp_path / "o").exists()


def test_what_the_system_says_of_a_file_is_one_line(monkeypatch):
    faults = (
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device: 'output'."),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "Permission denied: '/x'."),
        (OSError("cannot\nconnect"), "cannot connect"),
        (TimeoutError(), "TimeoutError"),
    )
    for fault, message in faults:

        def fail(fault=fault):
            raise fault

        monkeypatch.setattr("biasgym_tl.biases.bias.list_biases", fail)
        found = biasgym("biases")
        assert found.returncode == 1 and found.stderr.startswith("Error: ")
        assert found.stderr.count("\n") == 1 and message in found.stderr


def test_ctrl_c_is_one_line(monkeypatch):
    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr("biasgym_tl.biases.bias.list_biases", stop)
    found = biasgym("biases")
    assert (found.returncode, found.stderr) == (130, "Stopped.\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_a_full_disk_behind_the_output_is_one_line():
    with open("/dev/full", "w") as full:
        found = subprocess.run([*COMMAND, "biases"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert found.returncode == 1 and found.stderr.count("\n") == 1
    assert found.stderr.startswith("Error: ") and "No space left" in found.stderr


def test_output_that_knows_few_letters_gets_the_others_as_numbers():
    found = subprocess.run(
        [*COMMAND, "corpus", "漢.jsonl"], capture_output=True, text=True,
        env={**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"},
    )  # fmt: skip
    assert "Traceback" not in found.stderr and "\\u6f22" in found.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def stored():
    return Report.load(Path(__file__).parent.parent / "figures" / "demo" / "report.json")


def test_a_report_fits_eighty_columns(stored):
    console = Console(width=80, record=True, file=io.StringIO())
    show_report(stored, console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    log_odds = stored.interval("injected", "token_log_odds")
    assert f"{log_odds.low:.2f}..{log_odds.high:.2f}" in text
    assert all(name in text for name in stored.shown if len(name) < 20)
    left_out = " ".join(text.partition("In table.csv and report.html also: ")[2].split())
    columns = {str(c.header).replace("\n", " ") for c in summary_table(stored).columns}
    for key in stored.to_df():
        label = stored.measures[key].label
        shown = any(column.startswith(label) for column in columns)
        assert shown != (label in left_out.partition(". Injected")[0]), label


def test_json_has_the_names_of_the_files_and_no_nan(stored, tmp_path):
    table = as_json(stored.intervals())
    written = pd.read_csv(stored.to_csv(tmp_path / "table.csv"))
    assert list(table[0]) == list(written) and len(table) == len(written)
    found = [row["mean"] for row in table]
    assert found == pytest.approx(written["mean"].tolist())
    assert any(row["rank"] is None for row in table) and any(row["rank"] for row in table)
    assert as_json({"a": (math.nan, 1.5, math.inf), "b": None}) == {
        "a": [None, 1.5, None],
        "b": None,
    }


def test_the_means_over_biases_fit_eighty_columns(stored):
    both = {name: BiasResult({}, {}, {}, {}, reports=(stored,)) for name in ("late", "math")}
    result = ProtocolResult(Protocol(biases=("late", "math")), both, {})
    console = Console(width=80, record=True, file=io.StringIO())
    show_result(result, console)
    text = console.export_text().partition("Means over 2 biases")[2]
    assert max(map(len, text.splitlines())) <= 80
    row = next(line for line in text.splitlines() if "injected" in line and "log-odds" in line)
    assert f"{stored.interval('injected', 'token_log_odds').estimate:.2f}" in row
    values = result_values(result)
    assert set(values["biases"]) == {"late", "math"} and as_json(values)["table"][0]["biases"] == 2
