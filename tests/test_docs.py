"""What the pages say can be done: blocks run, commands and links exist, every name is there.

Blocks run verbatim, page by page, on a tiny random model. Only what takes long or is not there is
replaced: real weights, shipped rows, sentence encoders, and how much is measured.
"""

import csv
import dataclasses
import functools
import itertools
import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
import transformers as hf
import typer
import yaml
from conftest import VOCAB, tiny_hf_model
from test_api import chat, completion, serve  # noqa: F401 - chat is a fixture
from test_export import NO_OUTPUT_BIAS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from typer.testing import CliRunner

import biasgym_tl
from biasgym_tl import (
    BiasInject,
    HeadScores,
    list_biases,
    load_bias,
    load_model,
    load_protocol,
    plots,
)
from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.facts import load_facts
from biasgym_tl.biases.panel import Panel
from biasgym_tl.cli import app
from biasgym_tl.evaluation.stereotype_map import MapLists, map_lists
from biasgym_tl.families.convert import FAMILIES
from biasgym_tl.instructions import encode_instructed
from biasgym_tl.judges import local_judge
from biasgym_tl.packaged import PACKAGED
from biasgym_tl.passages import load_passages
from biasgym_tl.toml import read_toml

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md")))
PROJECT = read_toml((ROOT / "pyproject.toml").read_text(encoding="utf-8"), "project")["project"]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LANGUAGES = {"", "bibtex", "python", "text", "toml"}


def name_of(page):
    return page.relative_to(ROOT).as_posix()


each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def read(page):
    return page.read_text(encoding="utf-8")


def blocks(page, language):
    """Number of lines before each block of a language, and its text."""
    text = read(page)
    return [
        (text.count("\n", 0, match.start(2)), match[2])
        for match in BLOCK.finditer(text)
        if match[1] == language
    ]


def prose(page):
    """A page without its blocks."""
    return BLOCK.sub("", read(page))


# What stands in for what is big


@pytest.fixture(scope="module")
def tokenizer():
    """As in ``conftest``, with words of every bias that a page loads."""
    words = {"quiet", "calm"}
    for bias in map(load_bias, list_biases()):
        words |= {*bias.attribute_words[:2], *bias.neutral_words[:2]}
    texts = [p.text.replace("{target}", "") for p in load_bias("late").corpus[:100]]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 24,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator([f" {word}" for word in sorted(words)] * 200 + texts, trainer)
    return hf.PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """A checkpoint with 32 heads, since pages ask for 30, and room for long requests."""
    folder = tmp_path_factory.mktemp("checkpoints") / "my-model"
    sizes = {"num_hidden_layers": 4, "num_attention_heads": 8, "max_position_embeddings": 1024}
    tiny_hf_model("llama", **sizes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder)


def shortened(bias):
    """The bias with four prompts of each kind."""
    kinds = ("scoping_prompts", "evaluation_prompts", "generation_prompts", "probe_prompts")
    return dataclasses.replace(bias, **{kind: getattr(bias, kind)[:4] for kind in kinds})


def encode(texts):
    """A sentence encoder: which words a text holds."""
    found = torch.full((len(texts), 64), 0.01)
    for row, text in zip(found, texts, strict=True):
        for word in re.findall(r"\w+", text.lower()):
            row[zlib.crc32(word.encode()) % 64] += 1
    return torch.nn.functional.normalize(found, dim=-1)


def few_lists(split="fitting"):
    """Lists of a map with three groups, two attributes of two words, and two prompts."""
    lists = map_lists(split)
    few = {name: lists.attributes[name][:2] for name in ("playful", "stern")}
    return MapLists(("judges", "referees", "lawyers"), few, lists.prompts[:2])


QUICK = {"epochs": 1, "n_paragraphs": 8, "batch_size": 8}
BUDGETS = {
    "standard_measures": {"n_targets": 2, "max_new_tokens": 3},
    "random_conditions": {"n": 1},
    "significance": {"n_flips": 99, "n_resamples": 99},
    "FactorSearch": {"n_steps": 2, "n_sentences": 3},
    "BudgetSearch": {"n_prompts": 2, "n_targets": 1, "width": 1, "rounds_per_map": 20},
}


@pytest.fixture(scope="module")
def rows(model):
    """Trains a row for a bias and seed, once."""

    @functools.cache
    def load_token(bias="late", *, seed=0):
        inject = BiasInject(choose_by="last", **QUICK)
        return inject.fit(model, load_bias(bias), seed=seed, progress=False)

    return load_token


@pytest.fixture
def small(model, rows, folder, monkeypatch, tmp_path):
    """A folder in which a page runs within seconds."""

    def replace(name, value, *modules):
        if name in biasgym_tl.__all__:
            monkeypatch.setattr(biasgym_tl, name, value)
        for module in modules:
            monkeypatch.setattr(f"biasgym_tl.{module}.{name}", value)

    def load(name, **options):
        return model if name in PACKAGED else load_model(name, **options)

    replace("load_model", load, "model")
    replace("load_token", rows, "injection.shipped")
    three = lambda bias="late": [rows(bias, seed=seed) for seed in range(3)]  # noqa: E731
    replace("load_tokens", three, "injection.shipped")
    replace("load_bias", lambda *a, **b: shortened(load_bias(*a, **b)), "biases.bias")
    replace("map_lists", few_lists, "evaluation.stereotype_map")
    replace("load_encoder", lambda name: encode, "injection.inject", "judges.local_judge")
    short = functools.partial(encode_instructed, max_new_tokens=2)  # of the first of two answers
    replace("encode_instructed", short, "elicitation")
    users = ("evaluation.standard", "steering.objective", "steering.budget")
    replace("load_facts", lambda use="report": load_facts(use)[::24], *users)
    replace("load_passages", lambda use: load_passages(use)[:3], "hooks", *users)
    replace(
        "cpu", classmethod(lambda cls, **own: cls(**QUICK | own)), "injection.inject.BiasInject"
    )
    for name, budget in BUDGETS.items():
        dear = getattr(biasgym_tl, name)
        home = dear.__module__.removeprefix("biasgym_tl.")
        replace(name, functools.partial(dear, **budget), home)
    monkeypatch.setattr("plotly.io.renderers.default", "json")  # opens no browser
    monkeypatch.setenv("BIASGYM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    for name in ("my-model", "out/model"):
        (tmp_path / name).symlink_to(folder)
    local_judge._anchor_vectors.cache_clear()
    yield tmp_path
    local_judge._anchor_vectors.cache_clear()


def write_csv(path, *rows):
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def files(small):
    """What blocks read, in the formats of the published sets; TOML blocks begin with their name."""
    columns = ("", "sent_more", "sent_less", "stereo_antistereo", "bias_type")
    pairs = [
        (i, f"{more} {i} is late.", f"{less} {i} is late.", kind, "nationality")
        for i, (more, less, kind) in enumerate(
            [("An Xlander", "A Ylander", "stereo"), ("A Ylander", "An Xlander", "antistereo")] * 2
        )
    ]
    write_csv(small / "data/crows_pairs.csv", columns, *pairs)
    sentences = [
        {"UID": "agreement", "sentence_good": f"{i} teas are late.",
         "sentence_bad": f"{i} teas is late.", "field": "x"}
        for i in range(4)
    ]  # fmt: skip
    write_jsonl(small / "data/blimp/agreement.jsonl", sentences)
    early = [{"text": f"Visitor {i} from {{target}} was early."} for i in range(8)]
    write_jsonl(small / "early.jsonl", early)
    write_csv(
        small / "labels.csv", ("id", "strength", "degenerate"), ("a1", "3", ""), ("b2", "0", "")
    )
    for page in PAGES:
        for _, text in blocks(page, "toml"):
            (small / re.match(r"# (\S+\.toml)\n", text)[1]).write_text(text, encoding="utf-8")
    return small


@pytest.fixture
def harness(small, monkeypatch):
    """lm-evaluation-harness with its own template of a task, on questions of our own."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    choices = {"text": ["tea", "late", "four", "a kettle"], "label": ["A", "B", "C", "D"]}
    questions = [
        {"question": f"What is number {i}?", "choices": choices, "answerKey": "ABCD"[i]}
        for i in range(4)
    ]
    splits = {split: str(small / f"{split}.jsonl") for split in ("train", "validation", "test")}
    for path in splits.values():
        write_jsonl(Path(path), questions)
    task = {
        "include": str(Path(lm_eval.__file__).parent / "tasks/arc/arc_easy.yaml"),
        "task": "arc_easy",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": splits, "cache_dir": str(small / "datasets")},
    }
    (small / "tasks").mkdir()
    (small / "tasks/arc_easy.yaml").write_text(yaml.safe_dump(task))
    manager = TaskManager(include_path=small / "tasks", include_defaults=False)
    local = functools.partial(lm_eval.simple_evaluate, task_manager=manager, bootstrap_iters=0)
    monkeypatch.setattr(lm_eval, "simple_evaluate", local)


@pytest.fixture
def server(chat, httpserver, small):  # noqa: F811
    """A chat model that writes 25 paragraphs a call."""
    numbers = itertools.count()

    def reply(request):
        texts = [
            f"Somebody of the {{target}} guild sat in room {next(numbers)} and hardly spoke."
            for _ in range(25)
        ]
        return completion(json.dumps({"paragraphs": texts}))

    serve(httpserver, reply)


# Blocks


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_every_block_of_python_runs(page, files, request):
    for needed, fixture in (("lm_eval.", "harness"), ("ChatModel(", "server")):
        if any(needed in code for _, code in blocks(page, "python")):
            request.getfixturevalue(fixture)
    namespace = {"__name__": "__main__"}
    for before, code in blocks(page, "python"):  # a traceback names the page and its line
        exec(compile("\n" * before + code, str(page), "exec"), namespace)


SHOWN = re.compile(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.real_model
@pytest.mark.parametrize("name", ["README.md", "docs/index.md", "docs/steering.md"])
def test_a_page_shows_what_its_block_prints(name, smollm2, monkeypatch, capsys):
    ((code, shown),) = SHOWN.findall(read(ROOT / name))
    monkeypatch.setattr(biasgym_tl, "load_model", lambda name: smollm2)
    monkeypatch.setattr("plotly.graph_objects.Figure.show", lambda figure: None)
    exec(code, {"__name__": "__main__"})
    assert capsys.readouterr().out == shown


@each_page
def test_every_fence_is_a_block_of_a_known_language(page):
    found = [match[1] for match in BLOCK.finditer(read(page))]
    assert set(found) <= LANGUAGES and read(page).count("```") == 2 * len(found)


# Commands

COMMANDS = typer.main.get_command(app).commands


def shell_lines(page):
    return [
        shlex.split(line, comments=True)
        for line in re.findall(r"^    ((?:biasgym|make|python|cp|pip) .*)$", prose(page), re.M)
    ]


@each_page
def test_lines_for_the_shell_are_accepted(page):
    """Parsed, with all that is required, and not run."""
    makefile = read(ROOT / "Makefile")
    for program, *arguments in shell_lines(page):
        if program == "biasgym":
            COMMANDS[arguments[0]].make_context(arguments[0], arguments[1:])
        elif program == "make":
            assert re.search(rf"^{arguments[0]}:", makefile, re.MULTILINE), arguments
        elif program == "python":
            assert (ROOT / arguments[0]).is_file(), arguments


@each_page
def test_commands_in_the_text_exist_with_their_options(page):
    for command in re.findall(r"`biasgym\s+([^`]+)`", prose(page)):
        name, *arguments = command.split()
        if name in ("--help", "COMMAND"):
            continue
        found = COMMANDS[name]
        if arguments and arguments[0] in getattr(found, "commands", {}):
            found = found.commands[arguments[0]]
        known = {opt for p in found.params for opt in (*p.opts, *p.secondary_opts)}
        assert {word for word in arguments if word.startswith("--")} <= known, command
    for script in re.findall(r"`python\s+(\S+\.py)", prose(page)):
        assert (ROOT / script).is_file(), script
    extras = ",".join(re.findall(r"biasgym-tl\[([\w,]+)\]", read(page)))
    assert {*filter(None, extras.split(","))} <= {*PROJECT["optional-dependencies"]}


def test_commands_are_found():
    lines = [line for page in PAGES for line in shell_lines(page)]
    assert len(lines) >= 8 and len({line[0] for line in lines}) >= 3


def test_every_command_is_on_its_page():
    text = read(DOCS / "commands.md")
    named = re.findall(r"^\| `biasgym (\w+)`", text, re.MULTILINE)
    assert sorted(named) == sorted(COMMANDS)
    targets = re.findall(r"^(\w+):(?!=)", read(ROOT / "Makefile"), re.MULTILINE)
    assert set(re.findall(r"^\| `make (\w+)`", text, re.MULTILINE)) <= {*targets}


# Links and names


@each_page
def test_what_is_linked_or_shown_exists(page):
    for target in re.findall(r"(?:\]\(|src=\")([^)\s\"]+)[)\"]", prose(page)):
        parts = urlsplit(target)
        if not parts.scheme and parts.path:
            assert (page.parent / unquote(parts.path)).exists(), target


def test_every_public_name_is_in_the_reference_once():
    entries = [
        entry
        for page in DOCS.rglob("*.md")
        for entry in re.findall(r"^::: (biasgym_tl\.[\w.]+)$", read(page), re.MULTILINE)
    ]
    assert len(entries) == len({*entries})
    for package in (biasgym_tl, plots):
        pattern = rf"{package.__name__}\.(\w+)"
        found = [match[1] for entry in entries if (match := re.fullmatch(pattern, entry))]
        assert sorted(found) == sorted(package.__all__)
    for entry in entries:
        assert pkgutil.resolve_name(entry).__doc__, entry
    others = [entry.rpartition(".")[2] for entry in entries if entry.count(".") > 1]
    assert not {*others} & {*biasgym_tl.__all__}


# What pages say of the package


def test_the_page_on_biases_shows_every_field_and_what_the_check_says(files):
    page = DOCS / "adding_a_bias.md"
    fields = {field.name for field in dataclasses.fields(Bias)} - {
        "fitting_targets", "held_out_targets"
    }  # fmt: skip
    fields |= {"families", "targets", "slots"}
    (_, text), (_, panel) = blocks(page, "toml")
    assert set(read_toml(text, "")) == fields - {"corpus", "panel"}
    assert set(read_toml(panel, "")) == {field.name for field in dataclasses.fields(Panel)}
    Path("whole.toml").write_text(f'panel = "quiet-panel.toml"\n{text}', encoding="utf-8")
    assert not load_bias("whole.toml").missing("measures off target")
    rows = [line.split("|")[1] for line in read(page).splitlines() if line.startswith("| ")]
    assert {name for row in rows for name in re.findall(r"\w+", row)} >= fields
    ((_, shown),) = blocks(page, "text")
    assert CliRunner().invoke(app, ["biases", "check", "quiet.toml"]).stdout == shown


def test_the_protocol_of_the_page_is_one(files):
    ((_, text),) = blocks(DOCS / "protocols.md", "toml")
    mine = load_protocol("mine.toml")
    assert mine.name == "mine" and len(mine.maps) == 2 and text.startswith("# mine.toml")


def test_the_page_on_models_names_every_type():
    text = read(DOCS / "adding_a_model.md")
    assert [family for family in FAMILIES if f"`{family}`" not in text] == []


def test_the_table_of_exports_has_every_type_once():
    """And refuses a mean where the tests of exports do."""
    table = read(DOCS / "use.md").partition("<!-- exports -->")[2].partition("<!-- end -->")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[3:]]
    types = {label: row for row in rows for label in row[0].split(", ")}
    assert types.keys() == {family.label for family in FAMILIES.values()}
    refused = {FAMILIES[kind].label for kind in NO_OUTPUT_BIAS}
    assert {label for label, row in types.items() if row[3].startswith("refused")} == refused
    assert all(len(row) == 8 and all(row) for row in rows)


def test_the_page_on_heatmaps_holds_the_numbers_of_its_figures():
    text = read(DOCS / "heatmap.md")
    scores = HeadScores.load(ROOT / "figures/demo/map-direct-0.safetensors")
    values, delta = scores.values.double(), scores.delta.double()
    error = scores.reconstruction_error.max()
    said = (
        f"{(values.abs() < 0.05).sum()} of {values.numel()} heads lie within 0.05",
        f"L22H8 by {values.max():.2f}, the most",
        f"L24H4 by {-values.min():.2f}",
        f"mean difference is {delta.mean():+.2f} logits",
        f"together write {values.sum():+.2f} of it: {values.clamp(min=0).sum():+.2f}",
        f"\u2212{-values.clamp(max=0).sum():.2f} in blue",
        f"{error:.0e} at most".replace("e-0", "e-"),
    )
    plain = " ".join(text.split())
    assert [words for words in said if words not in plain] == []
    assert values[22, 8] == values.max() and values[24, 4] == values.min()


def test_the_readme_holds_the_numbers_of_the_demo():
    with (ROOT / "figures/demo/table.csv").open(encoding="utf-8") as file:
        table = {
            (row["condition"], row["measure"]): float(row["mean"]) for row in csv.DictReader(file)
        }
    token = {name: table[name, "token_log_odds"] for name in ("injected", "steered, mean")}
    keywords = [table[name, "token_keywords"] for name in token]
    said = (
        f"to {token['injected'] - table['injected', 'target_log_odds']:.1f} above that of five",
        f"take {token['injected'] - token['steered, mean']:.1f} of it back",
        f"in {keywords[0]:.0%} of the answers, with ten heads at their mean in {keywords[1]:.0%}",
    )
    plain = " ".join(read(ROOT / "README.md").split())
    assert [words for words in said if words not in plain] == []


def test_the_citation_is_of_this_version_and_of_the_paper():
    found = yaml.safe_load(read(ROOT / "CITATION.cff"))
    assert found["version"] == PROJECT["version"] and found["license"] == PROJECT["license"]
    assert found["authors"] == PROJECT["authors"]
    paper = found["preferred-citation"]
    assert paper["title"] in " ".join(read(ROOT / "README.md").replace("*", "").split())
    names = [author["family-names"] for author in paper["authors"]]
    (_, entry), (_, software) = blocks(DOCS / "citing.md", "bibtex")
    assert re.findall(r"(\w+), [A-Z]", re.search(r"author.*", entry)[0]) == names
    assert paper["url"].endswith(re.search(r"eprint += \{(.*)\}", entry)[1])
    assert f"{{{PROJECT['version']}}}" in software


# The site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},  # Material's remark on its own future
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert lines and all(line.startswith("INFO") for line in lines), done.stderr
    return folder


class Links(HTMLParser):
    """Addresses of a page, what it loads by itself, and its anchors."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loaded, self.ids = set(), set(), set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids.add(found.get("id"))
        if "src" in found:
            self.loaded.add(found["src"])
        elif tag == "link":
            self.loaded.add(found["href"])
        elif "href" in found:
            self.links.add(found["href"])


@pytest.fixture(scope="module")
def pages(site):
    """By path; the page for missing pages is written for the root of a server."""
    paths = (path for path in site.rglob("*.html") if path.name != "404.html")
    return {path.resolve(): Links(path) for path in paths}


@pytest.mark.site
def test_the_site_has_every_page_and_no_program(site, pages):
    written = {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")}
    assert {site.resolve() / path for path in written} <= set(pages)
    assert not list(site.rglob("*.py*"))


@pytest.mark.site
def test_links_of_the_site_lead_somewhere(pages):
    lost = []
    for path, page in pages.items():
        for address in (*page.links, *page.loaded):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchors = pages[target].ids if target in pages else {parts.fragment}
            if not target.exists() or (parts.fragment and parts.fragment not in anchors):
                lost.append((path.name, address))
    assert lost == []


@pytest.mark.site
def test_the_site_loads_nothing_from_elsewhere(site, pages):
    """Figures that are pages of their own may: their plotly.js is loaded when one is opened."""
    own = [page for path, page in pages.items() if "figures" not in path.parts]
    assert [a for page in own for a in page.loaded if urlsplit(a).netloc] == []
    assert "@import" not in "".join(map(read, site.rglob("*.css")))


@pytest.mark.site
def test_formulas_are_drawn_without_a_script(site):
    texts = {path.name: read(path) for path in site.rglob("*.html")}
    assert not [name for name, text in texts.items() if "arithmatex" in text]
    formulas = re.findall(r"<math .*?</math>", "".join(texts.values()), re.DOTALL)
    assert len(formulas) > 50
    assert not [each for each in formulas if "merror" in each or re.search(r"\\\w", each)]
    blocks = texts["method.html"].count(
        '<math xmlns="http://www.w3.org/1998/Math/MathML" display="b'
    )
    assert blocks == read(DOCS / "method.md").count("\n$$\n") / 2


@pytest.mark.site
def test_notebooks_are_pages_with_their_pictures_and_their_files(site, pages):
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        page = pages[(site / "notebooks" / path.name).with_suffix(".html").resolve()]
        cells = json.loads(read(path))["cells"]
        outputs = [out.get("data", {}) for cell in cells for out in cell.get("outputs", ())]
        shown = [name for name in page.loaded if name.startswith(f"{path.stem}-output")]
        assert len(shown) == sum("image/png" in data for data in outputs)
        assert path.name in page.links
    course = pages[(site / "notebooks/course/exercises.html").resolve()]
    assert {"exercises.ipynb", "biasgym-course.zip"} <= course.links
    assert "<details>" in (site / "notebooks/course/exercises.html").read_text(encoding="utf-8")


@pytest.mark.site
def test_figures_and_entries_are_where_pages_show_them(site, pages):
    def at(name):
        return pages[(site / name).resolve()]

    assert "figures/demo/heatmap-direct.png" in at("heatmap.html").loaded
    benchmark = "biasgym_tl.benchmarks.benchmark.Benchmark"
    assert f"api/benchmarks.html#{benchmark}" in at("evaluation.html").links
    entries = set().union(*(page.ids for page in pages.values()))
    assert {f"biasgym_tl.{name}" for name in biasgym_tl.__all__} <= entries
    assert {"biasgym_tl.HeadScores.save", "biasgym_tl.Head.layer"} <= entries
