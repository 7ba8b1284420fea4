"""A protocol is data: every wrong part of it is one line before a model is loaded."""

import dataclasses
import json
import subprocess
import sys
from importlib import resources

import pytest
from command import biasgym

import biasgym_tl
from biasgym_tl import Protocol, load_bias, load_protocol
from biasgym_tl.errors import SettingError
from biasgym_tl.plots import figure
from biasgym_tl.protocol.protocol import Choice, Map
from biasgym_tl.protocol.shipped import list_protocols, protocol_text
from biasgym_tl.steering.budget import BudgetSearch


@pytest.fixture(autouse=True)
def no_model(monkeypatch, tmp_path):
    monkeypatch.setattr("biasgym_tl.protocol.chain.load_model", None)
    monkeypatch.setenv("BIASGYM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def test_the_shipped_protocols_load_and_survive_a_manifest():
    names = ["demo", "maps", "natural", "paper", "referee", "specificity", "study"]
    assert list_protocols() == names
    for name in list_protocols():
        found = load_protocol(name)
        assert found.name == name and found.about and found.conditions
        record = json.loads(json.dumps(dataclasses.asdict(found)))
        assert Protocol.from_mapping(record) == found
        assert {c.choice for c in found.conditions if c.choice} <= set(found.choices)
    paper = load_protocol("paper")
    steered = [c for c in paper.conditions if c.choice]
    assert len(paper.biases) == len(paper.seeds) == 5 and {c.mode for c in steered} == {"zero"}
    assert paper.training.inject.n_paragraphs == 500 and paper.choices["steered"].by == "overlap"
    assert all(c.random for c in steered), "each with random sets of its own mode"


def test_what_is_shown_is_what_run_accepts(tmp_path):
    for name in list_protocols():
        shown = biasgym("run", name, "--show")
        assert shown.returncode == 0 and shown.stdout == protocol_text(name) + "\n"
        path = tmp_path / f"{name}.toml"
        path.write_text(shown.stdout)
        assert load_protocol(str(path)) == load_protocol(name)
    own = tmp_path / "own.toml"
    own.write_text('biases = ["math"]\n[training]\nlr = 1\n')
    found = load_protocol(str(own))
    assert found.name == "own" and found.training.inject.lr == 1.0
    assert biasgym("run", own, "--show").stdout == own.read_text() + "\n"


MAP = "[maps.direct]\n"
CHOICE = f'{MAP}[choices]\nsteered = {{ map = "direct", k = 3 }}\n'
RIVAL = '[rivals]\nx = { method = "caa" }\n[[conditions]]\n'
CONDITION = f'{CHOICE}[[conditions]]\nchoice = "steered"\n'
GIVEN = '[choices]\nsteered = { by = "given", heads = "L0H1" }\n'
AS_SHOWN = "must be as in 'biasgym run --show demo', got "
WRONG = [
    ('modle = "x"', "must be a protocol, but: Protocol must hold only its fields, got ['modle']"),
    ("model = 5", "model is not as declared"),
    ("name = 2020-01-01", "must be a protocol, but: "),
    ('model = "x', "must be TOML, but"),
    ('seeds = "0"', "seeds is not as declared"),
    ("seeds = [0.5]", "seeds.0 is not as declared"),
    ("seeds = []", "a protocol must have at least one bias and one seed"),
    ("seeds = [1, 1]", "seeds must be different ones, got [1, 1]"),
    ("biases = []", "at least one bias"),
    ('biases = "late"', "biases is not as declared"),
    ('biases = ["late", "late"]', "biases must be different ones"),
    ('biases = ["lat"]', "bias must be one of"),
    ('biases = ["gone.toml"]', "gone.toml"),
    ('rows = ["a", "b"]', "rows must be one for each of 1 seeds, of one bias, got 2 for 1"),
    ('biases = ["late", "math"]\nrows = ["a"]', "rows must be one for each of 1 seeds"),
    ('rows = ["gone.safetensors"]', "result file must exist, got"),
    ("training = 3", f"training {AS_SHOWN}3"),
    ('[training]\npreset = "gpu"', "preset must be one of ['cpu', 'paper'], got 'gpu'"),
    ("[training]\nepoch = 3", "settings of the training must be of BiasInject"),
    ("[training]\nepoch = 3", "only its fields, got ['epoch']"),
    ('[training]\nepochs = "3"', "epochs is not as declared"),
    ("[training]\nepochs = 0", "epochs must be at least 1, got 0"),
    ('[training]\nchoose_by = "luck"', "choose_by is not as declared: Input should be"),
    ("[training]\nsettings = [1]", f"training {AS_SHOWN}"),
    ('[training]\nrows = "all"', "rows of the training must be one of"),
    ("maps = 5", f"maps {AS_SHOWN}5"),
    ("maps = { direct = 5 }", f"maps {AS_SHOWN}"),
    ('maps = { direct = "row" }', f"maps {AS_SHOWN}"),
    ("[[maps]]\nslot = 'row'", f"maps {AS_SHOWN}"),
    (f'{MAP}slot = "rows"', "slot of the map 'direct' must be one of ['row', 'targets'"),
    (f'{MAP}method = "magic"', "method is not as declared: Input should be"),
    (f"{MAP}methd = 1", "settings of the map must be of BiasScope"),
    (f"{MAP}n_prompts = 0", "n_prompts of the map 'direct' must be at least 1"),
    (f"{MAP}seed = 3", "seed of the map 'direct' must be left to the protocol's seeds"),
    ('[maps."../x"]', "names of maps, choices and rivals must be letters, digits"),
    ('[maps.""]', "names of maps, choices and rivals must be letters, digits"),
    ('[choices]\n"a/b" = { by = "given", heads = "L0H1" }', "names of maps, choices and rivals"),
    ('choices = "steered"', f"choices {AS_SHOWN}'steered'"),
    ('[choices]\nsteered = "direct"', f"choices {AS_SHOWN}"),
    ('[choices]\nx = { by = "best" }', "by of the choice 'x' must be one of ['top', 'overlap',"),
    ('[choices]\nx = { map = "direct", k = 3 }', "map of the choice 'x' must be one of [], got"),
    (f'{MAP}[choices]\nx = {{ map = "direct" }}', "the choice 'x' must have k or share, got None"),
    (f"{MAP}[choices]\nx = {{ k = 3, share = 0.1 }}", "must have k or share, got 3 and 0.1"),
    (f"{MAP}[choices]\nx = {{ k = 0 }}", "k of the choice 'x' must be at least 1, got 0"),
    (f"{MAP}[choices]\nx = {{ share = 1.5 }}", "share of 'x' must lie in 0..1, got 1.5"),
    (f'{MAP}[choices]\nx = {{ k = "3" }}', "k is not as declared"),
    (f"{MAP}[choices]\nx = {{ k = 3, kk = 3 }}", "given only ['map', 'k', 'share'], got settings"),
    (f"{MAP}[choices]\nx = {{ k = 3, heads = 'L0H1' }}", "got heads = 'L0H1'"),
    (f'{MAP}[choices]\nx = {{ by = "overlap", k = 3 }}', "must have 2 seeds to overlap, got 1"),
    ('[choices]\nx = { by = "factors", k = 3 }', "by 'factors' must be given only"),
    ('[choices]\nx = { by = "factors", steps = 3 }', "must be of FactorSearch"),
    ('[choices]\nx = { by = "budget", k = 0 }', "k must be at least 1"),
    ('[choices]\nx = { by = "given" }', "heads of the choice 'x' must be given, got none"),
    ('[choices]\nx = { by = "given", heads = "L0X1" }', "got 'L0X1'"),
    ('[choices]\nx = { by = "given", heads = "gone.json" }', "result file must exist"),
    ('[choices]\nx = { by = "given", heads = "L0H1", k = 3 }', "given only ['heads'], got k = 3"),
    (f'{CHOICE}[conditions]\nchoice = "steered"', f"conditions {AS_SHOWN}"),
    (f"conditions = [5]\n{CHOICE}", f"conditions {AS_SHOWN}"),
    ('[[conditions]]\nchoice = "gone"', "choice of a condition must be one of [], got 'gone'"),
    ("[[conditions]]\nrandom = 5", "a condition must name a choice of heads, a rival or"),
    ('[rivals]\nx = { method = "magic" }', "method must be one of ['logit_shift'"),
    ("[rivals]\nx = { k = 3 }", "method must be one of"),
    ("[rivals]\nx = 3", f"rivals {AS_SHOWN}"),
    ('[rivals]\nx = { method = "iti", kk = 3 }', "settings of 'iti' must be among"),
    (f'{RIVAL}rival = "gone"', "rival of a condition must be one of ['x'], got 'gone'"),
    (f'{RIVAL}rival = "x"', "must have a kl or a strength above 0, got none. 0.03 is a kl"),
    (f'{RIVAL}rival = "x"\nkl = 0.0', "must have a kl or a strength above 0, got {'kl': 0.0}"),
    (f'{RIVAL}rival = "x"\nkl = 0.1\nstrength = 2.0', "must have a kl or a strength"),
    (f'{RIVAL}rival = "x"\nkl = 0.1\nreinject = true', "reinject of a condition must be left out"),
    ('[[conditions]]\nasked = "shout"', "instruction must be one of"),
    ('[[conditions]]\nasked = "persona"\nrandom = 5', "'asked, persona' must steer heads to have"),
    ('[[conditions]]\nasked = "persona"\nreinject = true', "must steer heads"),
    (f'{CONDITION}mode = "men"', "mode must be one of ['zero', 'mean', 'scale'], got 'men'"),
    (f'{CONDITION}mode = "scale"', "factor must be given in mode 'scale'"),
    (f'{CONDITION}mode = "zero"\nfactor = 0.5', "factor must be None in mode 'zero', got 0.5"),
    (f'{CONDITION}factor = "x"', "factor is not as declared"),
    (f"{CONDITION}factor = nan", "factor of the condition 'steered, mean' must be a number"),
    (f'{CONDITION}mean_over = "x"', "mean_over of a condition must be one of ['text', 'targets'"),
    (f'{CONDITION}measures = "few"', "measures of a condition must be one of ['all', 'brief',"),
    (f"{CONDITION}random = -1", "random of the condition 'steered, mean' must be at least 0"),
    (f"{CONDITION}draws = 1.5", "draws is not as declared"),
    (f"{CONDITION}random_answers = 1", "random_answers of the condition 'steered, mean' must be"),
    (f"{CONDITION}randm = 5", "Steering must hold only its fields, got ['randm']"),
    (f"{CONDITION}name = 'injected'", "names of conditions must be different ones"),
    (f"{CONDITION}[[conditions]]\nchoice = 'steered'", "names of conditions must be different"),
    ("measures = 1", f"measures {AS_SHOWN}1"),
    ("[measures]\nn_targets = 0", "n_targets must be at least 1, got 0"),
    ("[measures]\nmax_new_tokens = 0", "max_new_tokens must be at least 1, got 0"),
    ('[measures]\nothers = "rest"', "others is not as declared"),
    ('[measures]\nothers = ["lat"]', "bias must be one of"),
    ('[measures]\nothers = ["gardener"]', "others must be about the target kind 'country', got"),
    ('[measures]\nbenchmarks = { x = "y" }', "benchmarks must be among ['bbq', 'blimp',"),
    ("[measures]\nbenchmarks = 3", "benchmarks is not as declared"),
    ('[measures.benchmarks]\nblimp = "no-folder"', "no-folder"),
    ('[measures]\njudge = "gpt"', "judge must be 'local' or 'api:MODEL'"),
    ('[measures]\njudge = "api:"', "model must be the name of a model"),
    ('[measures]\njudge = "api:gpt"', "OPENAI_API_KEY must be set"),
    ("[measures]\njuge = 1", "Measured must hold only its fields, got ['juge']"),
    ('[[sweeps]]\nmap = "gone"', "map of a sweep must be one of [], got 'gone'"),
    (f'{MAP}[[sweeps]]\nmode = "scale"', "mode of a sweep must be one of ['zero', 'mean']"),
    (f"{MAP}[[sweeps]]\nks = []", "ks of a sweep must rise from 1 or more, got ()"),
    (f"{MAP}[[sweeps]]\nks = [3, 1]", "ks of a sweep must rise"),
    (f"{MAP}[[sweeps]]\nks = [0, 1]", "ks of a sweep must rise"),
    (f"{MAP}[[sweeps]]\n[[sweeps]]\nks = [1]", "sweeps must be different ones"),
    (f"{MAP}[sweeps]\nks = [1]", f"sweeps {AS_SHOWN}"),
]


def one_line(found, message):
    assert found.returncode == 1, found.stdout + found.stderr
    (*before, error) = found.stderr.strip().splitlines()
    assert before in ([], [before[0]] if before and before[0].startswith("Loading ") else [])
    assert error.startswith("Error: ") and message in error, error
    return True


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_a_wrong_part_of_a_file_is_one_line_before_a_model_is_loaded(text, message, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    assert one_line(biasgym("run", path, "--out", tmp_path / "out"), message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["paperr"],
            f"protocol must be one of {list_protocols()} or a .toml file",
        ),
        (["gone.toml"], "gone.toml"),
        (["demo"], "--out must be given, the folder for the results, got none"),
        (["demo", "--out", "FILE"], "--out must be a folder"),
        (["demo", "--out", "o", "--seeds", "0"], "at least one bias and one seed"),
        (["paper", "--out", "o", "--seeds", "1"], "must have 2 seeds to overlap, got 1"),
        (["demo", "--out", "o", "--bias", "lat"], "--bias must be one of"),
        (["demo", "--out", "o", "--paragraphs", "0"], "--paragraphs must be at least 1"),
        (["demo", "--out", "o", "--judge", "gpt"], "--judge must be 'local' or 'api:MODEL'"),
        (["demo", "--out", "o", "--benchmark", "blimp"], "--benchmark must be NAME=PATH"),
        (["demo", "--out", "o", "--benchmark", "x=y"], "--benchmark must be among"),
        (["demo", "--out", "o", "--model", "nobody/nothing"], "--model must be"),
        (["demo", "--out", "o", "--model", "EMPTY"], "folder must hold config.json"),
    ],
)
def test_wrong_options_are_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").touch()
    (tmp_path / "EMPTY").mkdir()
    assert one_line(biasgym("run", *arguments), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--heads", "L0X1"], "or written like 'L9H8', got 'L0X1'"),
        (["--heads", "none.json"], "result file must exist, got 'none.json'"),
        (["--heads", ""], "--heads must be given"),
        (["--heads", "L0H1", "--benchmark", "blimp"], "--benchmark must be NAME=PATH, got 'blimp'"),
        (["--heads", "L0H1", "--benchmark", "x=y"], "--benchmark must be among"),
        (["--heads", "L0H1", "--judge", "gpt"], "--judge must be 'local' or 'api:MODEL'"),
        (["--heads", "L0H1", "--judge", "api:gpt"], "OPENAI_API_KEY must be set"),
        (["--heads", "L0H1", "--targets", "0"], "--targets must be at least 1, got 0"),
        (["--heads", "L0H1", "--bias", "lat"], "--bias must be one of"),
        (["--heads", "L0H1", "--token", "no.safetensors"], "result file must exist"),
        (
            ["--heads", "L0H1", "--mode", "mena"],
            "--mode must be one of ['zero', 'mean', 'scale'], ",
        ),
        (["--heads", "L0H1", "--mode", "scale"], "--factor must be given in mode 'scale'"),
        (["--heads", "L0H1", "--mode", "zero", "--mode", "zero"], "names of conditions must be"),
        (
            ["--heads", "L0H1", "--mode", "zero", "--factor", "1"],
            "--factor must be None in mode 'zero', got 1",
        ),
        (
            ["--heads", "L0H1", "--max-new-tokens", "0"],
            "--max-new-tokens must be at least 1, got 0",
        ),
        (["--heads", "L0H1", "--mean-over", "x"], "--mean-over must be one of"),
        (["--heads", "L0H1", "--random", "-1"], "--random must be"),
    ],
)
def test_wrong_input_of_evaluate_is_one_line_before_a_model_is_loaded(arguments, message, tmp_path):
    assert one_line(biasgym("evaluate", "--out", tmp_path, *arguments), message)


def test_two_files_with_one_name_are_no_two_biases(tiny, tmp_path):
    text = resources.files("biasgym_tl.biases").joinpath("data/late.toml").read_text("utf-8")
    path = tmp_path / "mine.toml"
    path.write_text(text)
    own = tmp_path / "own.toml"
    own.write_text(f'biases = ["late", {str(path)!r}]')
    assert one_line(
        biasgym("run", own, "--out", tmp_path / "out"),
        "biases must be different ones, got ['late', 'late']",
    )
    # What is trained on another bias is never trained on the same one.
    spec, biases = Map(slot="other bias"), (str(path), "math")
    for bias, other in (("late", "math"), ("math", str(path))):
        assert spec.row_of(load_bias(bias), 0, biases) == load_bias(other)
    assert spec.row_of(load_bias("late"), 0, ("late",)).name == "math"
    named = dataclasses.replace(spec, other="chess")
    assert named.row_of(load_bias("late"), 0, biases).name == "chess"


def test_options_change_the_protocol(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        "biasgym_tl.cli.protocols.run_and_show", lambda found, *_, **__: seen.append(found)
    )
    monkeypatch.setattr("biasgym_tl.cli.asked.find_model", lambda name, **_: None)
    options = ["--model", "m", "--bias", "math", "--bias", "alcohol", "--seeds", "3",
               "--paragraphs", "48", "--benchmark", "blimp=b=c", "--judge", "api:x",
               "--train"]  # fmt: skip
    for name in ("paper", "demo"):
        assert biasgym("run", name, "--out", tmp_path, *options).returncode == 0
    for found, name in zip(seen, ("paper", "demo"), strict=True):
        own = load_protocol(name)
        assert (found.model, found.biases, found.seeds) == ("m", ("math", "alcohol"), (0, 1, 2))
        assert found.training.inject == dataclasses.replace(own.training.inject, n_paragraphs=48)
        assert found.training.rows == "trained" and found.measures.benchmarks == {"blimp": "b=c"}
        assert found.measures == dataclasses.replace(
            own.measures, judge="api:x", benchmarks={"blimp": "b=c"}
        )
        assert found.conditions == own.conditions and found.choices == own.choices
    assert biasgym("demo", "--out", tmp_path).returncode == 0
    assert seen[2] == load_protocol("demo")


def test_evaluate_is_a_protocol_too(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        "biasgym_tl.cli.protocols.run_and_show", lambda found, *_, **__: seen.append(found)
    )
    for bias, *more in (("late",), ("gardener", "--factor", "0.5", "--no-instructions")):
        found = biasgym("evaluate", "--out", tmp_path, "--heads", "L0H1", "--bias", bias, *more)
        assert found.returncode == 0
    late, gardener = seen
    steered = [c for c in late.conditions if c.choice]
    assert [(c.label, c.random) for c in steered] == [("steered, zero", 5), ("steered, mean", 5)]
    assert [c.factor for c in gardener.conditions] == [None, 0.5]
    others = [
        [
            b.name
            for b in p.measures.other_biases(load_bias(p.biases[0]), p.measures.others, p.biases)
        ]
        for p in seen
    ]
    assert others[0] == [
        "alcohol", "bad-driving", "button-collecting", "chess", "math", "purple-coats",
        "spicy-food",
    ]  # fmt: skip
    assert "late" not in others[1] and "math" not in others[1]


def test_a_choice_brings_its_k_or_share_to_a_model_of_any_size():
    assert Choice(k=3).n_heads(12) == 3 and Choice(share=0.0293).n_heads(1024) == 30
    assert Choice(share=0.0293).n_heads(270) == 8 and Choice(share=0.001).n_heads(12) == 1
    with pytest.raises(SettingError, match=r"k must be in 1\.\.12, the number of heads of the"):
        Choice(k=13).n_heads(12)
    assert Choice(by="budget", k=7).search() == BudgetSearch(k=7)
    assert Choice(by="budget", settings={"k": 7}).search() == BudgetSearch(k=7)


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
