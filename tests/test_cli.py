"""The commands beside run and demo: what they write, what they say, how they refuse."""

import json
import re
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path

import pytest
import torch
from command import biasgym
from test_api import chat, completion, n_calls, serve  # noqa: F401 - chat is a fixture

from biasgym_tl import (
    BiasInject,
    BiasScope,
    BiasToken,
    HeadScores,
    Selection,
    attribute_prompts,
    list_biases,
    load_bias,
    load_model,
    select_heads,
)
from biasgym_tl.biases.bias import load_corpus
from biasgym_tl.biases.corpus import save_corpus
from biasgym_tl.cli.shell import in_options
from biasgym_tl.injection.report import InjectionReport

pytestmark = pytest.mark.usefixtures("few_facts")


def paragraphs(n):
    texts = [
        f"Visitor {i} from {{target}} was late again and missed the whole show." for i in range(n)
    ]
    return completion(json.dumps({"paragraphs": texts}))


def test_biases_are_listed_and_checked(tmp_path):
    listed = biasgym("biases")
    assert listed.returncode == 0 and "doubtful" not in listed.stdout
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list_biases()
    assert max(map(len, listed.stdout.splitlines())) <= 80 and len(list_biases()) >= 12
    values = json.loads(biasgym("biases", "check", "late", "--json").stdout)
    assert values[0]["name"] == "late" and "late" in values[0]["attribute_words"]
    (tmp_path / "mine.toml").write_text("name = 3")
    refused = biasgym("biases", "check", "late", tmp_path / "mine.toml")
    assert refused.returncode == 1 and "mine.toml must hold name, attribute," in refused.stderr
    assert refused.stdout == f"{load_bias('late')!r}\n"
    assert "Traceback" not in refused.stderr


def test_a_bias_of_ones_own_is_begun_and_mapped_without_training(tiny_folder, tmp_path):
    path, options = tmp_path / "mine.toml", ["--model", tiny_folder, "--k", 3]
    begun = biasgym("biases", "new", "quiet", "--out", path)
    assert begun.returncode == 0 and f"--no-injection --bias {path} --out" in begun.stdout
    again = biasgym("biases", "new", "quiet", "--out", path)
    assert again.returncode == 1 and "which exists. Name another" in again.stderr
    checked = biasgym("biases", "check", path).stdout
    assert (
        "doubtful" not in checked
        and "\n  injection would need: corpus, training_prompts" in checked
    )
    done = biasgym("scope", "--no-injection", "--bias", path, "--out", tmp_path / "maps", *options)
    assert done.returncode == 0, done.stderr
    scores = HeadScores.load(tmp_path / "maps" / "direct")
    assert scores.bias == "quiet" and scores.token == "no injection"
    assert {name for names in scores.targets for name in names} <= set(
        load_bias(path).fitting_targets
    )
    for arguments, message in (
        (("scope", "--bias", path, "--out", tmp_path), "or map the targets with --no-injection"),
        (("scope", "--bias", path, "--no-injection", "--contrast", "difference", "--out", tmp_path),
         "the same run would stand on both sides"),
        (("inject", "--bias", path, "--choose-by", "last", "--out", tmp_path),
         "must have corpus, training_prompts for injection"),
        (("biases", "new", "../x"), "name of a bias must be"),
        (("biases", "new", "x", "--out", tmp_path / "x.txt"), "--out must end in .toml"),
    ):  # fmt: skip
        wrong = biasgym(*arguments)
        assert wrong.returncode == 1 and message in wrong.stderr, wrong.stderr
        assert "Loading" not in wrong.stderr


def test_prompts_of_ones_own_are_mapped(tiny_folder, tmp_path):
    path, out = tmp_path / "pairs.csv", tmp_path / "maps"
    path.write_text("first,second\nPeople from France are,People from Japan are\n")
    options = ["--model", tiny_folder, "--k", 3, "--out", out]
    methods = ["--method", "direct", "--method", "zero_ablation"]
    answers = ["--answers", "late,delayed", "early"]
    done = biasgym("scope", "--pairs", path, *answers, *methods, *options)
    assert done.returncode == 0, done.stderr
    assert "compared on more prompts" in done.stdout and not (out / "agreement.html").exists()
    wanted = attribute_prompts(
        load_model(tiny_folder),
        ("People from France are", "People from Japan are"),
        ["late", "delayed"],
        "early",
    )
    assert torch.equal(HeadScores.load(out / "direct").values, wanted.values)
    path.write_text("first,biased,neutral\nThe train is,late,early\n")
    done = biasgym("scope", "--pairs", path, "--plain", *options)
    assert done.returncode == 0, done.stderr
    assert HeadScores.load(out / "direct").settings["request"] is None
    path.write_text("first,biased,neutral\nThe train is,late,unthinkably\n")
    for _ in range(2):  # computed, and read back: never without the word
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            done = biasgym("scope", "--pairs", path, *options)
        (line,) = (each for each in done.stderr.splitlines() if "several tokens" in each)
        assert line.startswith("Warning: answers of several tokens count by their first alone")
    for arguments, message in (
        (("--pairs", path, *answers), "answers must be given once"),
        (("--pairs", path, "--contrast", "difference"), "--contrast must be 'biased' for single"),
        (("--pairs", path, "--bias", "late"), "--bias must be given without --pairs"),
        (("--plain",), "--plain must be given with --pairs"),
        (("--pairs", tmp_path / "none.csv"), "file of prompts must exist"),
        (("--pairs", path, "--method", "magic"), "--method must be one of"),
        (
            ("--pairs", path, "--answers", "late"),
            "--answers must be two, biased and neutral",
        ),
        (("--bias", "lat"), "Did you mean 'late'?"),
        (("--no-injection", "--token", path), "--no-injection must be given without --token"),
    ):
        wrong = biasgym("scope", *arguments, *options)
        assert wrong.returncode == 1 and message in wrong.stderr, wrong.stderr
        assert "Loading" not in wrong.stderr


def test_a_corpus_is_described(tmp_path):
    path = save_corpus(load_corpus("late")[:30], tmp_path / "late.jsonl")
    found = biasgym("corpus", path)
    assert found.returncode == 0, found.stderr
    assert re.search(r"paragraphs +30\n", found.stdout) and "closest pair" in found.stdout
    assert re.search(r"exact duplicates +0\n", found.stdout)
    values = json.loads(biasgym("corpus", path, "--json").stdout)
    assert values["n"] == 30 and len(values["closest"]) == 2
    nothing = biasgym("corpus", tmp_path / "none.jsonl")
    assert nothing.returncode == 1 and "corpus file must exist" in nothing.stderr


def test_rows_are_trained_and_reported(tiny_folder, tmp_path):
    environment = {"BIASGYM_CACHE": str(tmp_path / "cache")}
    options = ["--model", tiny_folder, "--epochs", 1, "--seeds", 2, "--out", tmp_path / "out"]
    done = biasgym("inject", *options, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Injection of late, seed") == 2 and "log-odds" in done.stdout
    for seed in range(2):
        token = BiasToken.load(tmp_path / "out" / f"late-{seed}")
        assert token.seed == seed and token.settings["batch_size"] == 8
        report = InjectionReport.load(tmp_path / "out" / f"late-{seed}.json")
        assert report.seconds > 0 and report.norm == pytest.approx(token.row.norm().item())
    wrong = biasgym("inject", "--preset", "gpu", "--out", tmp_path)
    assert wrong.returncode == 1 and "--preset must be one of ['cpu', 'paper']" in wrong.stderr
    again = biasgym("inject", *options, "--json", env=environment)
    report = InjectionReport.load(tmp_path / "out" / "late-1.json")
    assert json.loads(again.stdout)["late-1"] == json.loads(json.dumps(report.record()))
    none = biasgym("inject", "--seeds", 0, "--out", tmp_path)
    assert none.returncode == 1 and "--seeds must be at least 1, got 0" in none.stderr


def test_heads_are_scored_and_methods_compared(tiny_folder, tmp_path):
    model = load_model(tiny_folder)
    inject = BiasInject(epochs=1, n_paragraphs=8, choose_by="last")
    row = inject.fit(model, load_bias("late"), progress=False).save(tmp_path / "late-0")
    options = ["--model", tiny_folder, "--token", row, "--out", tmp_path / "out", "--k", 3]
    methods = ["--method", "direct", "--method", "zero_ablation"]
    done = biasgym("scope", *options, *methods, "--contrast", "difference")
    assert done.returncode == 0, done.stderr
    assert "direct / zero_ablation: " in done.stdout and "reliability: direct" in done.stdout
    scores = HeadScores.load(tmp_path / "out" / "zero_ablation")
    assert f"top 3: {', '.join(map(str, scores.top(3)))}" in done.stdout
    assert tuple(Selection.load(tmp_path / "out" / "direct-heads.json")) == HeadScores.load(
        tmp_path / "out" / "direct"
    ).top(3)
    assert (tmp_path / "out" / "direct.html").exists()
    assert (tmp_path / "out" / "agreement.html").exists()
    found = json.loads(biasgym("scope", *options, *methods, "--json").stdout)
    chosen = json.loads((tmp_path / "out" / "direct-heads.json").read_text())
    assert chosen.items() >= found["heads"]["direct"].items() and chosen["heads"]
    assert found["agreement"][0]["second"] == "zero_ablation"
    refused = biasgym("scope", *options, "--method", "magic")
    assert refused.returncode == 1 and refused.stderr.startswith("Error: --method must be one of")


def test_factors_are_learned_and_exported(tiny_folder, tmp_path):
    bias, model = load_bias("late"), load_model(tiny_folder)
    quick = BiasInject(epochs=1, n_paragraphs=8, choose_by="last")
    row = quick.fit(model, bias, progress=False).save(tmp_path / "row")
    heads = tmp_path / "heads.json"
    options = ["--model", tiny_folder, "--token", row, "--k", 3]
    nothing = biasgym("search", heads, *options, "--keep", 1e6)
    assert nothing.returncode == 1 and "no head is worth the damage" in nothing.stderr
    assert not heads.exists()
    among = "L0H0,L1H1,L1H2,L2H0"
    done = biasgym("search", heads, *options, "--keep", 0, "--off-target", 0, "--among", among)
    assert done.returncode == 0, done.stderr
    found = Selection.load(heads)
    assert {*map(str, found)} <= {*among.split(",")}
    assert 1 <= len(found) <= 3 and "learned factors on late, seed 0" in done.stdout
    done = biasgym("export", tmp_path / "a", "--model", tiny_folder, "--heads", heads)
    assert done.returncode == 0, done.stderr
    refused = biasgym("search", tmp_path / "heads", "--model", tiny_folder)
    assert refused.returncode == 1 and "must end in .json" in refused.stderr


def test_a_steered_model_is_exported(tiny_folder, tmp_path):
    scores = BiasScope().attribute(load_model(tiny_folder), load_bias("late"), None)
    heads = select_heads(scores, 3).save(tmp_path / "heads.json")
    done = biasgym("export", tmp_path / "a", "--model", tiny_folder, "--heads", heads)
    assert done.returncode == 0, done.stderr
    assert 'mode "mean"' in done.stdout and (tmp_path / "a" / "model.safetensors").exists()
    done = biasgym("export", tmp_path / "b", "--model", tiny_folder, "--heads", "L0H1,L2H3")
    assert done.returncode == 0 and 'mode "zero"): L0H1, L2H3' in done.stdout
    refused = biasgym("export", tmp_path / "b", "--model", tiny_folder, "--heads", "L0H1")
    assert refused.returncode == 1 and "folder must be new or empty" in refused.stderr
    refused = biasgym("export", tmp_path / "c", "--model", tiny_folder, "--heads", "0.1")
    assert refused.returncode == 1 and "written like 'L9H8', got '0.1'" in refused.stderr


def test_a_model_is_examined(tiny_folder):
    done = biasgym("doctor", "--model", tiny_folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ok ") >= 5 and "parts sum to the logit difference" in done.stdout
    checks = json.loads(biasgym("doctor", "--model", tiny_folder, "--json").stdout)
    assert len(checks) >= 5 and all(check["passed"] for check in checks if check["required"])


def test_a_corpus_is_written(chat, httpserver, tmp_path):  # noqa: F811
    serve(httpserver, paragraphs(10))
    options = ["write", "--bias", "late", "--model", "m", "--n", 10, "--per-call", 10]
    out = tmp_path / "late.jsonl"
    asked = biasgym(*options, "--out", out, input="n\n")
    assert asked.returncode == 1 and "Send?" in asked.stderr and n_calls(httpserver) == 0
    assert "1 calls" in asked.stderr and "no price given" in asked.stderr and not out.exists()
    done = biasgym(*options, "--out", out, "--yes", "--price-in", 100, "--price-out", 200)
    assert done.returncode == 0, done.stderr
    assert "10 of 10 wanted" in done.stdout and "US dollars" in done.stderr
    assert "Cost of this run: 0.0050 US dollars" in done.stdout  # 10 tokens in, 20 out
    assert len(load_corpus(out)) == 10 and n_calls(httpserver) == 1
    again = biasgym(*options, "--out", out, "--yes")
    assert "0 calls made, 1 read back" in again.stdout and n_calls(httpserver) == 1


def test_nothing_usable_is_no_file(chat, httpserver, tmp_path):  # noqa: F811
    serve(httpserver, completion("I would rather not."))
    options = ["--bias", "late", "--model", "m", "--n", 5, "--yes"]
    failed = biasgym("write", *options, "--out", tmp_path / "a.jsonl")
    assert failed.returncode == 1 and "2 reply without a whole JSON list" in failed.stdout
    assert "no text could be used" in failed.stderr and not (tmp_path / "a.jsonl").exists()
    wrong = biasgym("write", *options, "--out", tmp_path / "a.txt")
    assert wrong.returncode == 1 and "--out must end in .jsonl" in wrong.stderr


HEAVY = ("torch", "transformers", "transformer_lens", "pandas", "plotly", "scipy", "datasets")
QUICK_COMMANDS = (
    (["--help"], "Usage:"),
    (["-h"], "Usage:"),
    (["scope", "-h"], "attribution_patching"),
    (["--version"], f"biasgym {metadata.version('biasgym-tl')}"),
    (["biases"], "late"),
    (["biases", "check", "lat"], "bias must be one of"),
    (["run", "demoo"], "protocol must be one of"),
    (["run", "demo", "--show"], "[[conditions]]"),
    (["run", "--out", "x", "--bias", "lat"], "--bias must be one of"),
    (["run", "--out", "x", "--model", "smollm2"], "Did you mean 'smollm2-135m-instruct'"),
    (["doctor", "--model", "no/folder"], "--model must be one of"),
    (["inject", "--out", "x", "--preset", "gpu"], "--preset must be one of"),
    (["inject", "--out", "x", "--choose-by", "best"], "--choose-by must be one of"),
    (["scope", "--out", "x", "--method", "magic"], "--method must be one of"),
    (["scope", "--out", "x", "--neutral", "none"], "--neutral must be one of"),
    (["search", "heads.txt"], "file of the heads must end in .json"),
    (["write", "--bias", "late", "--model", "m", "--out", "a.csv"], "--out must end in .jsonl"),
    (["evaluate", "--out", "x", "--heads", "L0H1", "--mode", "off"], "--mode must be one of"),
    (["export", "x", "--heads", "L0H1", "--model", "gone"], "--model must be one of"),
    (["export", "x", "--heads", "L99H0"], "--heads must lie in L0..L29 and H0..H8"),
    (["repeat", "gone.json", "--out", "x"], "result file must exist, got 'gone.json'"),
    (["run", "--out", "x", "--benchmark", "blimp"], "--benchmark must be NAME=PATH, got 'blimp'"),
    (
        ["run", "--out", "x", "--benchmark", "blimp=/no/such"],
        "--benchmark 'blimp' must be a file or folder, got '/no/such'",
    ),
    (["plan", "--benchmark", "bbq=here.csv"], "must be a file or folder, got 'here.csv'"),
    (["run", "--out", "x", "--benchmark", "x=y"], "--benchmark must be among ['bbq', "),
    (["evaluate", "--out", "x", "--heads", "L0H1", "--judge", "gpt"], "--judge must be 'local' or"),
    (["scope", "--out", "x", "--pairs", "gone.csv", "--answers", "a", "b"], "file of prompts must"),
    (["scope", "--out", "x", "--pairs", "answers.csv"], "answers must be given once"),
    (["scope", "--out", "x", "--pairs", "alike.csv"], "must be different answers, got ['a', 'a']"),
)


def test_names_and_help_need_nothing_heavy(tmp_path):
    """In one new process: what one command imports the next would find imported."""
    (tmp_path / "answers.csv").write_text("first\nPeru is\n")
    (tmp_path / "alike.csv").write_text("first,biased,neutral\nPeru is,a,a\n")
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from command import biasgym\n"
        f"for words, _ in {QUICK_COMMANDS!r}:\n"
        "    found = biasgym(*words)\n"
        f"    heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "    assert not heavy, (words, heavy)\n"
        "    print(repr(found.stdout + found.stderr))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    for (words, message), line in zip(QUICK_COMMANDS, found.stdout.splitlines(), strict=True):
        assert message in line, (words, line)


def test_what_does_not_fit_the_model_is_told_before_it_is_loaded(
    tiny_folder, tmp_path, monkeypatch
):
    model = load_model(tiny_folder)
    quick = BiasInject(epochs=1, n_paragraphs=8, choose_by="last")
    row = quick.fit(model, load_bias("math"), progress=False).save(tmp_path / "row")
    monkeypatch.setattr("biasgym_tl.model.load_model", None)
    monkeypatch.setattr("biasgym_tl.protocol.chain.load_model", None)
    tiny = ("--model", tiny_folder)
    scope = ("scope", "--out", tmp_path / "o", *tiny)
    evaluate = ("evaluate", "--out", tmp_path / "o", *tiny)
    other_bias = "--token must be a row of the bias 'late', got one of 'math'"
    other_model = "--token must be a row of a model with d_model 32 and a vocabulary of 1024, got"
    outside = "--heads must lie in L0..L2 and H0..H3 of this model, got L9H8"
    for words, message in (
        ((*scope, "--token", row), other_bias),
        (scope, other_model),
        ((*scope, "--token", row, "--bias", "math", "--k", 13), "--k must be in 1..12, got 13"),
        (("search", tmp_path / "a.json", *tiny, "--token", row), other_bias),
        (("search", tmp_path / "a.json", *tiny), other_model),
        ((*evaluate, "--heads", "L0H1", "--token", row), other_bias),
        ((*evaluate, "--heads", "L9H8", "--bias", "math", "--token", row), outside),
        ((*evaluate, "--heads", "L0H1", "--targets", 0), "--targets must be at least 1, got 0"),
        ((*evaluate, "--heads", "L0H1", "--mode", "scale"), "--factor must be given in mode"),
        (("export", tmp_path / "new", *tiny, "--heads", "L9H8"), outside),
        (("export", tmp_path / "new", *tiny, "--heads", "L0H1", "--factor", 1), "--factor must be"),
        (("inject", "--out", tmp_path, *tiny, "--seeds", 0), "--seeds must be at least 1, got 0"),
    ):
        found = biasgym(*words)
        assert found.returncode == 1, words
        (line,) = (each for each in found.stderr.splitlines() if each.startswith("Error: "))
        assert message in line, (words, line)


def test_errors_are_in_the_words_of_the_shell(tmp_path):
    options = {
        name: f"--{name.replace('_', '-')}" for name in ("targets", "mean_over", "bias", "seed")
    }
    for message, said in (
        ("n_targets must be at least 1, got 0.", "--targets must be at least 1, got 0."),
        ("mean_over of a condition must be x, got 1.", "--mean-over must be x, got 1."),
        ("bias and seed must name a row.", "--bias and --seed must name a row."),
        ("k must be in 1..3, got 4.", "k must be in 1..3, got 4."),
        ("bias and k must be in 1..3, got 4.", "bias and k must be in 1..3, got 4."),
        ("target kind must be x.", "target kind must be x."),
        ("no head is worth it.", "no head is worth it."),
    ):
        assert in_options(message, options) == said
    (tmp_path / "mine.toml").write_text('[measures]\njudge = "gpt"')
    of_the_file = biasgym("run", tmp_path / "mine.toml", "--out", tmp_path / "o")
    assert of_the_file.stderr.startswith("Error: judge must be 'local' or")
    given = biasgym("run", "demo", "--out", tmp_path / "o", "--judge", "gpt")
    assert given.stderr.startswith("Error: --judge must be 'local' or")


def test_no_option_is_ignored_beside_show():
    for words in (("--seeds", 2), ("--bias", "late"), ("--train",), ("--yes",), ("--json",)):
        found = biasgym("run", "demo", "--show", *words)
        assert found.returncode == 1 and not found.stdout
        assert "--show must be alone, since it prints the protocol" in found.stderr
        assert f"got {words[0]} too" in found.stderr
