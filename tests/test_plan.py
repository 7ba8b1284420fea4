"""What a protocol would take: counted steps times what a machine does, without weights."""

import dataclasses
import inspect
import json
import math
import re
import shutil
import types
from typing import NamedTuple

import pytest
import typer
from command import biasgym
from transformers import LlamaConfig

from biasgym_tl import load_bias, load_protocol
from biasgym_tl.api import Price
from biasgym_tl.benchmarks.benchmark import Question, QuestionSet
from biasgym_tl.benchmarks.mmlu import Mmlu, Part, prompt_text
from biasgym_tl.benchmarks.mmlu_files import MultipleChoice
from biasgym_tl.cli import app
from biasgym_tl.cli.asked import Asked
from biasgym_tl.evaluation.measurement import (
    CHARACTERS,
    ITEM,
    REQUEST,
    on_benchmark,
    tokens_of,
)
from biasgym_tl.protocol import work
from biasgym_tl.protocol.machine import GPUS, LAYER, REACHED, Machine, gpu, this_machine
from biasgym_tl.protocol.memory import Sizes, sizes_of, sizes_of_loaded
from biasgym_tl.protocol.plan import gib, plan, span
from biasgym_tl.protocol.protocol import (
    Choice,
    Map,
    Measured,
    Protocol,
    Steering,
    Sweep,
    Training,
)
from biasgym_tl.protocol.shipped import list_protocols
from biasgym_tl.protocol.work import Work

L4 = gpu("L4")
SMALL = Sizes(1000, 2, 4, 8, 2, 32, 100, tied=False, scaled=False, layer=500)


@pytest.fixture
def bare(tiny_folder, tmp_path):
    """A model without weights."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


@pytest.fixture
def billions(tmp_path):
    """The configuration of Llama-3.1-8B."""
    folder = tmp_path / "8B"
    LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def test_time_is_counted_work_at_the_speed_of_a_machine():
    """1000 parameters in layers and 800 in the table; 2 operations each for a token."""
    machine = Machine("slow", 0, flops=1e6, bandwidth=1e9, measured=True)
    seconds = Work(tokens=50, logits=10).seconds(machine, SMALL, "float32")
    assert seconds == pytest.approx(2 * (1000 * 50 + 800 * 10) / 1e6)
    # A token alone waits for all weights: 4 bytes each; of 16 bits 2 are read and 4 written more.
    slow_memory = machine._replace(flops=1e12, bandwidth=1e3)
    called = Work(tokens=1, calls=1)
    assert called.seconds(slow_memory, SMALL, "float32") == pytest.approx(7.2 + 2 * LAYER)
    assert called.seconds(slow_memory, SMALL, "bfloat16") == pytest.approx(18.0 + 2 * LAYER)
    assert called.seconds(slow_memory, SMALL, "float64") == pytest.approx(14.4 + 2 * LAYER)
    attached = Work(attached=2).seconds(machine, SMALL, "float32")
    assert attached == pytest.approx(2 * 100 * work.ATTACHED)
    assert work.together(Work(1, 2), Work(3, 4, 5).times(2)) == Work(7, 10, 10)


def test_a_gpu_is_its_data_sheet_and_this_machine_is_tried():
    h100 = gpu("H100")
    assert h100.flops == pytest.approx(66.9e12 * REACHED) and not h100.measured
    assert all(gpu(name).memory > 14 * 2**30 for name in GPUS)
    here = this_machine("cpu")
    assert here.measured and 1e8 < here.flops < 1e14 and 1e8 < here.bandwidth < 1e13
    assert here.memory > 2**30


def test_a_plan_runs_nothing_and_loads_no_weights(bare, tmp_path, monkeypatch):
    monkeypatch.setenv("BIASGYM_CACHE", str(tmp_path / "cache"))

    for name in ("demo", "maps"):
        protocol = dataclasses.replace(load_protocol(name), model=str(bare))
        said = str(plan(protocol, machine=L4))
        if name == "demo":
            found = biasgym("plan", name, "--model", bare, "--on", "L4")
            assert found.returncode == 0 and found.stdout == said + "\n"
        lines = said.splitlines()
        assert "on L4 (by its data sheet, never measured)" in lines[0]
        total = next(i for i, line in enumerate(lines) if line.endswith("nothing was done before"))
        assert re.fullmatch(r".*; it fits into the 22\.5 GB of L4\.", lines[total + 1])
        for bias in protocol.biases:
            assert sum(line.split("  ")[-1].startswith(f"{bias}: ") for line in lines) > 3
        for condition in protocol.conditions:
            assert f": {condition.label}" in said
    assert not (tmp_path / "cache").exists()
    priced = biasgym("plan", "demo", "--model", bare, "--judge", "api:m",
                     "--price-in", "1", "--price-out", "2", "--on", "T4")  # fmt: skip
    assert priced.returncode == 0 and "US dollars" in priced.stdout


def test_a_model_alone_is_planned_by_one_step_of_each_kind(billions):
    """8.03e9 parameters: 15 GB in 16 bits do not leave a T4 room, and fp32 fits no 24 GB."""
    found = {
        (name, dtype): json.loads(
            biasgym("plan", "--model", billions, "--on", name, "--dtype", dtype, "--json").stdout
        )
        for name, dtype in (("T4", "bfloat16"), ("H100", "bfloat16"), ("H100", "float32"))
    }
    assert [plan["fits"] for plan in found.values()] == [False, True, True]
    short, full = found["H100", "bfloat16"], found["H100", "float32"]
    assert short["weights"] == pytest.approx(2 * 8.03e9, rel=0.01)
    assert full["weights"] == pytest.approx(4 * 8.03e9, rel=0.01)
    assert {step["stage"] for step in short["steps"]} == {
        "loading", "rows", "maps", "choices", "conditions",
    }  # fmt: skip
    by_name = {step["name"].removeprefix("late: "): step for step in short["steps"]}
    direct, trained = by_name["map direct, seeds: 1"], by_name["rows to train: 1"]
    assert direct["seconds"] < by_name["map mean_ablation, seeds: 1"]["seconds"]
    assert by_name["loading the model"]["memory"] < trained["memory"] < short["memory"]
    assert short["weights"] < direct["memory"] < trained["memory"]
    # 16 bits cost time, since layers are cast in each call; the H100 is faster than the L4.
    slower = biasgym("plan", "--model", billions, "--on", "L4", "--json").stdout
    assert full["seconds"] < short["seconds"] and full["seconds"] < json.loads(slower)["seconds"]


def test_a_loaded_model_has_the_sizes_of_its_configuration(tiny, tiny_folder):
    one, other = sizes_of(str(tiny_folder)), sizes_of_loaded(tiny())
    for name in ("n_layers", "n_heads", "d_model", "d_head", "d_mlp", "d_vocab", "scaled"):
        assert getattr(one, name) == getattr(other, name), name
    assert one.layer == pytest.approx(other.layer, rel=0.05)  # which may hold masks and biases


def test_run_and_plan_take_the_same_changes_of_a_protocol():
    commands = typer.main.get_command(app).commands
    ours = inspect.signature(Asked).parameters
    options = [
        {p.name: (p.opts, p.help) for p in commands[name].params if p.name in ours}
        for name in ("run", "plan")
    ]
    assert options[0] == options[1] and options[0].keys() == ours.keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--model must be given where no protocol is, got neither"),
        (["paperr"], f"protocol must be one of {list_protocols()} or a .toml file"),
        (["demo", "--bias", "lat"], "--bias must be one of"),
        (["demo", "--seeds", "0"], "at least one bias and one seed"),
        (["demo", "--model", "nobody/nothing"], "--model must be"),
        (["--model", "EMPTY"], "folder must hold config.json"),
        (["demo", "--on", "H300"], "--on must be one of"),
        (["demo", "--on", "L4", "--device", "cpu"], "--device must be left out beside --on"),
        (["demo", "--device", "none"], "--device must be one that torch can use here, got 'none'"),
        (["demo", "--out", "o"], "No such option: --out"),
    ],
)
def test_wrong_options_are_one_error(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    found = biasgym("plan", *arguments)
    assert found.returncode and not found.stdout and "Traceback" not in found.stderr
    assert message in found.stderr


def test_times_and_sizes_in_words():
    assert [span(s) for s in (3, 119, 121, 17999, 18001)] == [
        "3 s",
        "119 s",
        "2 min",
        "300 min",
        "5 h",
    ]
    assert gib(1.5 * 2**30) == "1.5 GB" and gib(math.inf) == "inf GB"


class Item(NamedTuple):
    cluster: str
    asked: Question

    def questions(self):
        return (self.asked,)


class Asking(QuestionSet):
    """Questions as they are given."""

    _measures = ()

    def columns(self, log_probs):
        return ()


def test_a_plan_counts_the_text_of_benchmarks(tiny_folder, tmp_path):
    """600 short pairs and 600 long ones do not take the same."""
    for name, more in (("short", ""), ("long", " and so on" * 30)):
        rows = [
            {"sentence_good": f"Cats {i} sleep{more}.", "sentence_bad": f"Cats {i} sleeps{more}.",
             "UID": name, "pairID": str(i)}
            for i in range(40)
        ]  # fmt: skip
        (tmp_path / name).mkdir()
        text = "\n".join(map(json.dumps, rows))
        (tmp_path / name / f"{name}.jsonl").write_text(text + "\n")
    bare = Protocol(
        model=str(tiny_folder),
        maps={"direct": Map()},
        choices={"x": Choice(k=1)},
        conditions=(Steering(choice="x", measures="brief"), Steering(choice="x", mode="zero")),
        measures=Measured(implicit=False, whole_benchmarks=True),
    )

    def seconds(**measures):
        measured = dataclasses.replace(bare.measures, **measures)
        steps = plan(dataclasses.replace(bare, measures=measured), machine=L4).steps
        return {step.name: step.seconds for step in steps}

    none, short, long = (
        seconds(benchmarks={"blimp": str(tmp_path / name)} if name else {})
        for name in ("", "short", "long")
    )
    assert {name for name in none if short[name] > none[name]} == {
        "late: original, injected", "late: x, zero",
    }  # fmt: skip
    more = [of["late: x, zero"] - none["late: x, zero"] for of in (short, long)]
    assert more[1] > 10 * more[0]
    assert seconds(implicit=True)["late: x, zero"] > none["late: x, zero"]


def test_the_length_of_a_benchmark_is_that_of_its_text():
    questions = (
        Question("Which is late? ", (" The train.", " A cat.")),
        Question("", ("Cats sleep.", "Cat sleep.")),
        Question("It is", (" late",), request="Say when."),
    )
    asked = Asking(name="asked", source="here", items=tuple(Item("a", each) for each in questions))
    predicted = len(" The train. A cat.Cats sleep.Cat sleep. late")
    assert asked.length == (
        len("Which is late? It isSay when.") + predicted, predicted, 1
    )  # fmt: skip
    found = on_benchmark(asked)
    assert found.cost == pytest.approx(asked.length.read / CHARACTERS + REQUEST)
    part = Part(
        (MultipleChoice("Why?", ("a", "b", "c", "d"), 0),),
        (MultipleChoice("Who?", ("e", "f", "g", "h"), 1),) * 2,
    )
    mmlu = Mmlu({"law": part, "art": Part((), ())})
    shown = len(prompt_text("law", part.shots, part.items[0]))
    assert mmlu.length == (shown + 2 * len(part.items[0].asked()), 2, 0)
    unknown = types.SimpleNamespace(
        name="x", measures=(), clusters=("x",) * 7, fingerprint="x", run=dict
    )
    assert tokens_of(unknown) == (7 * ITEM, 7 * ITEM / 4)


def test_a_plan_counts_what_is_judged(tiny_folder):
    late = load_bias("late")
    protocol = Protocol(
        model=str(tiny_folder),
        biases=("late", "math"),
        maps={"direct": Map()},
        choices={"x": Choice(k=1)},
        conditions=(
            Steering(choice="x", draws=9),
            Steering(choice="x", mode="zero", measures="own answers"),
            Steering(asked="persona", measures="brief"),
            Steering(choice="x", name="again", reinject=True, measures="brief"),
        ),
        measures=Measured(others=("rest",), judge="api:m"),
        sweeps=(Sweep(),),
    )
    n = len(late.generation_prompts)
    assert len(load_bias("math").generation_prompts) == n
    found = plan(protocol, Price(1.0, 2.0), L4)
    # Two unsteered conditions and one steered: the token, targets and the other bias; one its own.
    assert found.judged == 2 * (3 * 3 * n + 2 * n)
    assert found.cost == pytest.approx(found.judged * (900 + 2 * 80) / 1e6)
    assert plan(protocol, machine=L4).cost is None
    silent = dataclasses.replace(protocol, measures=Measured())
    assert plan(silent, machine=L4).judged == 0 and all(step.seconds > 0 for step in found.steps)
    names = [step.name for step in found.steps]
    assert "late: 9 random sets for x, mean" in names and "math: k sweep, mean" in names
    assert "late: rows to train for again: 1" in names
    shipped = dataclasses.replace(protocol, training=Training(rows="shipped"))
    again = [step.name for step in plan(shipped, machine=L4).steps if "again:" in step.name]
    assert again == [f"{bias}: rows to train for again: 2" for bias in ("late", "math")]
