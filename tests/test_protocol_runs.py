"""A protocol on a tiny model: interrupted, resumed, repeated to the digit; two biases pooled."""

import dataclasses
import itertools
import json
import math
import os
import re
import signal

import pandas as pd
import pytest
import torch
from command import biasgym, interrupted
from scipy.stats import t
from test_api import chat, n_calls, serve  # noqa: F401 - chat is a fixture
from test_judges import answer

from biasgym_tl import (
    BiasInject,
    BiasToken,
    HeadScores,
    Protocol,
    Report,
    Selection,
    bias_log_odds,
    load_bias,
    load_model,
    load_protocol,
    run_protocol,
    steer,
    target_means,
)
from biasgym_tl.api import Price
from biasgym_tl.benchmarks.implicit import load_scenarios
from biasgym_tl.biases.facts import load_facts
from biasgym_tl.console import summary_lines
from biasgym_tl.errors import ApiError, SettingError, SteeringError
from biasgym_tl.evaluation.measurement import Measurement
from biasgym_tl.heads import Head
from biasgym_tl.manifest import Manifest
from biasgym_tl.protocol.chain import Running
from biasgym_tl.protocol.outputs import farthest, pooled_table, tables_of, write_outputs, write_part
from biasgym_tl.protocol.protocol import Choice, Map, Measured, Steering, Sweep, Training
from biasgym_tl.protocol.shipped import protocol_text
from biasgym_tl.protocol.sources import read_heads
from biasgym_tl.scoping.damage import KSweep
from biasgym_tl.steps import fingerprint

pytestmark = pytest.mark.usefixtures("few_facts")
LATE = load_bias("late")
QUICK = {"epochs": 1, "n_paragraphs": 8, "choose_by": "last"}
QUIET = Running(progress=False)
TOP = Choice(map="direct", k=4)


@pytest.fixture(autouse=True)
def no_png(monkeypatch, tmp_path):
    """A browser takes seconds for each."""
    monkeypatch.setattr("biasgym_tl.figures.write_pngs", lambda figures: "no PNG here")
    monkeypatch.setenv("BIASGYM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def small(tiny_folder):
    """One bias, one seed, one map, four heads to zero, without free answers."""
    return Protocol(
        model=str(tiny_folder),
        training=Training(settings=QUICK),
        maps={"direct": Map()},
        choices={"steered": TOP},
        conditions=(Steering(choice="steered", mode="zero", random=1),),
        measures=Measured(n_targets=2, max_new_tokens=2, answers=False, implicit=False),
    )


@pytest.fixture
def measured(monkeypatch):
    """What was measured, not read back."""
    found, make = [], Measurement.measured

    def record(self, model, condition, *given):
        found.append((condition.name, self.name))
        return make(self, model, condition, *given)

    monkeypatch.setattr(Measurement, "measured", record)
    return found


def fail(*args, **kwargs):
    raise AssertionError("done again")


def report_of(result):
    (found,) = result.biases.values()
    return found.report


def test_the_demo_runs_whole_and_writes_all_that_it_found(tiny_folder, tmp_path):
    demo = load_protocol("demo")
    demo = dataclasses.replace(
        demo,
        model=str(tiny_folder),
        training=Training(settings=QUICK),
        maps={**demo.maps, "untrained-row": Map(slot="untrained row")},
        choices={name: dataclasses.replace(c, k=4) for name, c in demo.choices.items()},
        conditions=tuple(dataclasses.replace(c, draws=min(c.draws, 1)) for c in demo.conditions),
        measures=Measured(n_targets=2, max_new_tokens=3),
    )
    said, parts = [], []
    noting = Running(progress=False, say=said.append, write=lambda *part: parts.append(part))
    first = run_protocol(demo, noting)
    line = r"late: step (\d) of (\d), (.*); about \d+ (?:s|min) left"
    steps = [re.match(line, each) for each in said]
    assert [step.groups() for step in steps if step] == [
        ("1", "4", "rows"), ("2", "4", "maps"), ("3", "4", "conditions"),
        ("4", "4", "random controls"),
    ]  # fmt: skip
    assert [(name, len(part.reports)) for name, part in parts] == [
        ("late", 0), ("late", 1), ("late", 1),
    ]  # fmt: skip
    assert list(parts[1][1].report.shown) == [r.name for r in parts[2][1].report.results[:7]]
    found, out = first.biases["late"], tmp_path / "out"
    assert write_outputs(first, out) == "no PNG here"
    assert Report.load(out / "report.json") == found.report
    assert Manifest.load(out / "manifest.json").results == first.manifest().results

    names = [result.name for result in found.report.results]
    controls = ["no-injection", "shuffled-corpus", "other-bias"]
    assert names[:7] == ["original", "injected", "steered, zero", "steered, mean",
                         *(f"{name}, mean" for name in controls)]  # fmt: skip
    assert names[7:] == ["steered, zero: random 1", "steered, mean: random 1"]
    tokens = {name: heads[0].token for name, heads in found.choices.items()}
    assert tokens == {
        "steered": "late, seed 0", "no-injection": "no injection",
        "shuffled-corpus": "late-shuffled, seed 0", "other-bias": "purple-coats, seed 0",
    }  # fmt: skip
    assert found.maps["untrained-row"][0].token == "late, seed 0, untrained"
    for name, by_seed in found.choices.items():
        assert Selection.load(out / f"heads-{name}-0.json") == by_seed[0]
        assert by_seed[0].heads == found.maps[demo.choices[name].map][0].top(4)
    assert torch.equal(
        HeadScores.load(out / "map-direct-0.safetensors").values, found.maps["direct"][0].values
    )
    assert torch.equal(BiasToken.load(out / "row-0.safetensors").row, found.rows[0].row)
    written = {path.name for path in out.iterdir()}
    figures = ("loss", "conditions", "frontier", *(f"heatmap-{name}" for name in found.maps))
    assert written >= {"report.html", "table.csv", "maps.csv", "manifest.json"} | {
        f"{name}.{ending}" for name in figures for ending in ("html", "json")
    }  # fmt: skip
    html = (out / "heatmap-direct.html").read_text()
    assert len(html) < 300_000 and 'src="plotly.min.js"' in html and "plotly.min.js" in written
    lines = summary_lines(found.report)
    assert lines[0].startswith("Injected: the BiasToken is ")
    assert lines[1].startswith("steered, zero: BiasToken ") and "place" in lines[2]
    assert lines[3].startswith("  off target: specificity ")
    assert lines[4].startswith("steered, mean: BiasToken ") and "of 2." in lines[5]
    page = (out / "report.html").read_text()
    assert "no-injection, mean" in page and "steered, zero: random" in page
    maps = pd.read_csv(out / "maps.csv")
    top = maps[(maps.statistic == "top 10") & (maps["map"] == "untrained-row")]
    assert top.heads.item() == ", ".join(map(str, found.maps["untrained-row"][0].top(10)))


def test_what_is_added_goes_on_from_the_same_run(small, measured):
    first = run_protocol(small, QUIET)
    measured.clear()
    zero = small.conditions[0]
    part = {"mode": "mean", "factor": 0.5, "mean_over": "targets"}
    more = dataclasses.replace(
        small,
        conditions=(
            dataclasses.replace(zero, random=1, draws=6),
            Steering(name="re-injected", choice="steered", factor=0.5, mean_over="targets",
                     reinject=True, measures="brief"),
            Steering(name="zeroed again", choice="steered", mode="zero", reinject=True,
                     measures="brief"),
        ),
        sweeps=(Sweep(mode="zero", ks=(1, 4, 50)), Sweep(ks=(1, 2))),
    )  # fmt: skip
    second = run_protocol(more, QUIET)
    random = [f"steered, zero: random {i}" for i in range(2, 7)]
    odds = ("token log-odds", "target log-odds")
    brief = (*odds, "loss", "facts")
    # A new row acts only where the BiasToken stands.
    assert sorted(measured) == sorted(
        [("zeroed again", "token log-odds"), *itertools.product(["re-injected"], brief),
         *itertools.product(random, odds)]
    )  # fmt: skip
    report = report_of(second)
    assert report["re-injected"].token == "late, seed 0, trained on the steered model"
    assert report["steered, zero"] == report_of(first)["steered, zero"]
    steered, again = (report[n].items["token_log_odds"] for n in ("steered, zero", "zeroed again"))
    assert again != pytest.approx(steered)
    # Trained and measured on a model that is steered alike.
    model = load_model(small.model)
    part = {"reference": target_means(model, LATE), "factor": 0.5}
    with steer(model, first.biases["late"].choices["steered"][0], "mean", **part):
        row = BiasInject.cpu(**QUICK).fit(model, LATE, seed=0, progress=False)
        with row.attached(model):
            expected = bias_log_odds(model, LATE, LATE.evaluation_prompts, [row.text]).log_odds
    found = report["re-injected"].items["token_log_odds"]
    assert found == pytest.approx(expected[:, 0].tolist(), abs=1e-4)
    zeroed = {"name": "steered, zero"}
    assert report.beyond_random(**zeroed).of == 7
    assert report.beyond_random("damage_loss", **zeroed).of == 2
    sweeps = second.biases["late"].sweeps
    assert {name: sweep.ks for name, sweep in sweeps.items()} == {
        "direct-zero": (1, 4), "direct-mean": (1, 2),
    }  # fmt: skip


def test_what_comes_back_is_counted_from_a_row_of_the_same_training(small, tmp_path):
    """Not from the row that was given, which may have had other rates, steps or epochs."""
    model = load_model(small.model)
    given = BiasInject.cpu(**QUICK).fit(model, LATE, seed=0, progress=False)
    training = {**QUICK, "epochs": 3, "lr": 0.05, "choose_by": "loss"}
    protocol = dataclasses.replace(
        small,
        rows=(str(given.save(tmp_path / "given")),),
        training=Training(settings=training),
        conditions=(
            Steering(choice="steered", mode="zero"),
            Steering(name="again", choice="steered", mode="zero", reinject=True, measures="brief"),
        ),
    )
    report = report_of(run_protocol(protocol, QUIET))
    assert [r.name for r in report.results][2:] == [
        "steered, zero", "again", "again: unsteered", "again, last epoch",
        "again: unsteered, last epoch",
    ]  # fmt: skip
    alike = BiasInject.cpu(**training).fit(model, LATE, seed=0, progress=False)
    for name, row in (("", alike), (", last epoch", alike.at_epoch(3))):
        with row.attached(model):
            expected = bias_log_odds(model, LATE, LATE.evaluation_prompts, [row.text]).log_odds
        found = report[f"again: unsteered{name}"].items["token_log_odds"]
        assert found == pytest.approx(expected[:, 0].tolist(), abs=1e-4)
        assert report.baseline(f"again{name}", "token_log_odds") == f"again: unsteered{name}"
    assert report.baseline("steered, zero", "token_log_odds") == "injected"
    assert report["injected"].items != report["again: unsteered"].items
    rows = report.intervals().set_index(["condition", "measure"])
    assert rows.loc[("again", "token_log_odds"), "baseline"] == "again: unsteered"


def test_finished_steps_are_read_back_and_broken_ones_made_again(
    small, tmp_path, monkeypatch, measured
):
    first = run_protocol(small, QUIET)
    once = list(measured)
    with monkeypatch.context() as patch:
        patch.setattr(BiasInject, "fit", fail)
        patch.setattr(Measurement, "measured", fail)
        assert report_of(run_protocol(small, QUIET)) == report_of(first)
        with pytest.raises(AssertionError, match="done again"):
            run_protocol(dataclasses.replace(small, seeds=(1,)), QUIET)
    steps = list((tmp_path / "cache").rglob("row-*")) + list((tmp_path / "cache").rglob("facts-*"))
    assert len(steps) >= 4
    for path in steps:
        if "epochs" not in path.name:
            path.write_bytes(b"{")
    assert report_of(run_protocol(small, QUIET)) == report_of(first)
    measured.clear()
    fresh = run_protocol(small, Running(progress=False, fresh=True))
    assert report_of(fresh) == report_of(first) and measured == once


def test_all_seeds_stand_beside_the_first(small):
    seeds = dataclasses.replace(
        small,
        seeds=(0, 1),
        choices={
            "steered": Choice(map="direct", k=6),
            "shared": Choice(by="overlap", map="direct", share=0.9),
        },
        conditions=(
            Steering(choice="steered", all_seeds=True, random=1, measures="brief"),
            Steering(choice="shared", mode="zero", all_seeds=True, measures="brief"),
        ),
    )
    found = run_protocol(seeds, QUIET).biases["late"]
    report = found.report
    assert [r.name for r in report.results] == [
        "original", "injected", "injected, seed 1", "steered, mean", "steered, mean, seed 1",
        "shared, zero", "shared, zero, seed 1", "steered, mean: random 1",
    ]  # fmt: skip
    for seed, name in ((0, "steered, mean"), (1, "steered, mean, seed 1")):
        assert report[name].token == f"late, seed {seed}"
        assert set(report[name].heads) == set(map(str, found.maps["direct"][seed].top(6)))
    assert report["steered, mean"].heads != report["steered, mean, seed 1"].heads
    tops = [set(found.maps["direct"][seed].top(11)) for seed in (0, 1)]
    shared = set(map(str, tops[0] & tops[1]))
    assert set(report["shared, zero"].heads) == set(report["shared, zero, seed 1"].heads) == shared
    # The same heads with another row: only the BiasToken can differ.
    assert report.values("shared, zero, seed 1", "damage_loss") is None
    assert report.values("steered, mean, seed 1", "damage_loss") is not None
    assert report.baseline("shared, zero, seed 1", "token_log_odds") == "injected, seed 1"
    assert list(found.choices["shared"]) == [0] and found.choices["shared"][0].mode == "zero"


@pytest.fixture
def two(small):
    return dataclasses.replace(
        small,
        biases=("late", "math"),
        maps={"direct": Map(), "other": Map(slot="other bias", n_prompts=4)},
        measures=dataclasses.replace(small.measures, others=("rest",)),
    )


SEARCH = {"n_steps": 3, "sparsity": 0.0, "keep": 0.0, "n_texts": 1, "n_facts": 2}


def test_what_a_model_holds_by_itself_is_steered_without_a_row(small, tmp_path):
    protocol = dataclasses.replace(
        small,
        biases=("wise",),
        maps={"targets": Map(slot="targets")},
        choices={
            "top": Choice(map="targets", k=3),
            "gap": Choice(by="factors", settings={**SEARCH, "aim": "nobody", "at": "targets"}),
        },
        conditions=(Steering(choice="top", random=1), Steering(choice="gap", random=1)),
    )
    result = run_protocol(protocol, QUIET)
    found = result.biases["wise"]
    assert not found.rows and found.choices["gap"][0].token == "no injection"
    names = [r.name for r in found.report.results if not r.control_of]
    assert names == ["original", "top, mean", "gap, mean"]
    assert "token_log_odds" not in found.report.measures
    after = {r.name: r.after for r in found.report.results}
    assert after["gap, mean"] == after["gap, mean: random 1"] == found.choices["gap"][0].after
    assert not after["top, mean"] and found.choices["gap"][0].after[0] in load_bias("wise").targets(
        "fitting"
    )
    spared = found.report.off_target["gap, mean"]
    assert {"things", "nobody", "rightful"} <= {*spared.unchanged}
    assert spared.spared == (0, 0, 0) and spared.specificity.estimate == spared.target.estimate
    write_outputs(result, tmp_path)
    assert (tmp_path / "heatmap-targets.html").exists() and not (tmp_path / "loss.html").exists()
    for needy in (
        {"maps": {"direct": Map()}, "choices": {"top": Choice(k=3)}},
        {"sweeps": (Sweep(map="targets"),)},
        {"conditions": (Steering(choice="top", reinject=True),)},
    ):
        asked = {"choices": {"top": Choice(map="targets", k=3)}, "conditions": (), **needy}
        with pytest.raises(SettingError, match="must have a row, and bias 'wise' has none"):
            run_protocol(dataclasses.replace(protocol, **asked), QUIET)


def test_a_search_is_controlled_by_other_rows_other_words_and_another_bias(small):
    choices = {
        "own": Choice(by="factors", settings=SEARCH),
        "none": Choice(by="factors", settings=SEARCH, rows="none"),
        "untrained": Choice(by="factors", settings=SEARCH, rows="untrained row"),
        "words": Choice(by="factors", settings=SEARCH, null="random words"),
        "bias": Choice(by="factors", settings=SEARCH, null="other bias"),
    }
    protocol = dataclasses.replace(small, maps={}, choices=choices, conditions=())
    with pytest.raises(
        SettingError, match="the choice 'rest' must have 2 biases, to leave one out"
    ):
        dataclasses.replace(protocol, choices={"rest": Choice(by="factors", null="other biases")})
    three = dataclasses.replace(
        protocol,
        biases=("late", "math", "alcohol"),
        choices={"rest": Choice(by="factors", settings=SEARCH, null="other biases", rows="none")},
    )
    rest = {
        name: of.choices["rest"][0].bias for name, of in run_protocol(three, QUIET).biases.items()
    }
    assert rest == {
        "late": "math and alcohol", "math": "late and alcohol", "alcohol": "late and math",
    }  # fmt: skip
    chosen = {
        name: of[0] for name, of in run_protocol(protocol, QUIET).biases["late"].choices.items()
    }
    assert chosen["own"].token == "late, seed 0" and chosen["none"].token == "no injection"
    assert "untrained" in chosen["untrained"].token
    assert chosen["words"].bias == "late-random-words" and chosen["words"].token == "late, seed 0"
    assert chosen["bias"].bias == "math" and chosen["bias"].token == "math, seed 0"
    assert len({of.factors for of in chosen.values()}) == 5
    for wrong in ({"null": "x"}, {"rows": "x"}):
        with pytest.raises(
            SettingError, match=f"{next(iter(wrong))} of the choice 'a' must be one of"
        ):
            Protocol(choices={"a": Choice(by="factors", **wrong)})


def test_a_search_is_given_the_rows_of_all_seeds(small):
    loose = {"max_loss": 99.0, "max_facts": 1.0, "max_off_target": None}
    choices = {
        "factors": Choice(by="factors", settings=SEARCH),
        "budget": Choice(by="budget", k=1, settings=loose),
    }
    protocol = dataclasses.replace(small, seeds=(0, 1), maps={}, choices=choices, conditions=())
    found = run_protocol(protocol, QUIET).biases["late"].choices
    assert {of[0].token for of in found.values()} == {"late, seed 0; late, seed 1"}


def test_two_biases_share_what_they_can_and_are_pooled(two, tmp_path, measured):
    out, told = tmp_path / "out", []

    def write(name, found):
        told.append(f"written {name}")
        write_part(name, found, out, two)
        assert (out / f"{name}-heatmap-direct.html").exists()
        assert not found.reports or Report.load(out / f"{name}-report.json") == found.report
        assert not (out / "manifest.json").exists()

    result = run_protocol(two, Running(progress=False, say=told.append, write=write))
    assert told.index("written late") < next(i for i, x in enumerate(told) if "math: " in x)
    assert told[-1] == "written math"
    late, math_ = (result.biases[name] for name in ("late", "math"))
    assert late.maps["other"][0].token == "math, seed 0"
    assert math_.maps["other"][0].token == "late, seed 0"
    # Of the unsteered model, once for both; what is the one's own is among the other's.
    for name in ("facts", "loss"):
        assert measured.count(("original", name)) == 1
        steered = {frozenset(r.heads) for b in (late, math_) for r in b.report.results}
        assert len(list((tmp_path / "cache").rglob(f"{name}-*.json"))) == len(steered) > 2
    assert (
        late.report["original"].items["fact_margins"]
        == math_.report["original"].items["fact_margins"]
    )
    assert (
        late.report["original"].items["math_log_odds"]
        == math_.report["original"].items["target_log_odds"]
    )

    write_outputs(result, out)
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    together = {
        "manifest.json",
        "table.csv",
        "plotly.min.js",
        "off-target.html",
        "off-target.json",
        "specificity.html",
        "specificity.json",
    }
    assert names - together == {name for name in names if name.startswith(("late-", "math-"))}
    assert {f"{bias}-{name}" for bias in two.biases for name in (
        "report.json", "report.html", "table.csv", "maps.csv", "row-0.safetensors",
        "map-direct-0.safetensors", "heads-steered-0.json", "heatmap-direct.html",
    )} <= names  # fmt: skip
    table = pd.read_csv(out / "table.csv").set_index(["condition", "measure"])
    reports = [late.report, math_.report]
    for condition, measure, since in (
        ("steered, zero", "token_log_odds", "injected"),
        ("steered, zero", "target_log_odds", "original"),
        ("steered, zero: random", "damage_loss", "original"),
    ):
        level = [r.to_df().loc[condition, measure] for r in reports]
        change = [a - r.to_df().loc[since, measure] for a, r in zip(level, reports, strict=True)]
        row = table.loc[condition, measure]
        mean, half = sum(change) / 2, abs(change[0] - change[1]) / 2 * t.ppf(0.975, 1)
        assert row["mean"] == pytest.approx(sum(level) / 2) and row.biases == 2
        assert list(row[["change_mean", "change_low", "change_high"]]) == pytest.approx(
            [mean, mean - half, mean + half]
        )
    alone = pooled_table({"late": late.report}).set_index(["condition", "measure"])
    assert math.isnan(alone.loc["steered, zero", "facts"].change_low)
    shown = biasgym("figures", out)
    assert shown.returncode == 0 and "late-heatmap-direct" in shown.stdout


PAPER = {
    '"late", "math", "spicy-food", "bad-driving", "alcohol"': '"late", "math"',
    "seeds = [0, 1, 2, 3, 4]": "seeds = [0, 1]",
    "n_paragraphs = 500": 'n_paragraphs = 8\nchoose_by = "loss"',
    "epochs = 10\n": "epochs = 2\n",
    "k = 30": "k = 9",
    "share = 0.0293": "share = 0.9",
    "random = 5": "random = 1",
    "n_targets = 10": "n_targets = 2\nmax_new_tokens = 3",
}


@pytest.fixture
def paper(tiny_folder, tmp_path):
    """The shipped protocol with smaller numbers."""
    text = protocol_text("paper")
    for own, smaller in PAPER.items():
        assert own in text
        text = text.replace(own, smaller)
    path = tmp_path / "paper.toml"
    path.write_text(text)
    return ["run", str(path), "--model", str(tiny_folder), "--out", str(tmp_path / "out")]


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_the_paper_runs_whole_and_killed_in_the_middle_it_goes_on(paper, tmp_path, measured):
    out = tmp_path / "out"
    interrupted(paper, tmp_path / "cache", "late-report.json", signal.SIGKILL)
    assert not (out / "manifest.json").exists()  # "late" is there, "math" is under way
    said = biasgym("status", out).stdout
    assert "stopped: its process is gone" in said and "run the same command to go on" in said
    assert re.search(r"^  done  late: maps, \d+ steps made, in \d+ s$", said, re.MULTILINE)
    assert re.search(r"^  ( now|left)  math: random controls, .*planned", said, re.MULTILINE)
    steps = tmp_path / "cache" / "steps"
    before = {path: path.stat().st_mtime_ns for path in steps.glob("[!.]*") if path.is_file()}
    done = biasgym(*paper)
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_mtime_ns == when for path, when in before.items() if path.exists())
    assert ("original", "facts") not in measured
    late, math_ = (Report.load(out / f"{bias}-report.json") for bias in ("late", "math"))
    assert [r.name for r in late.results] == [
        "original", "injected", "injected, seed 1", "steered, zero", "steered, zero, seed 1",
        "steered-share, zero", "asked, plain request", "asked, persona", "asked, self-debias",
        "steered, zero: random 1", "steered-share, zero: random 1",
    ]  # fmt: skip
    assert late["steered, zero: random 1"].mode == "zero"
    for report, other in ((late, "math"), (math_, "late")):
        kinds = {f"{kind}_strength" for kind in ("token", "target", "other")}
        assert kinds <= set(report.measures) and report.settings["judge"]
        verdicts = report["steered, zero"].verdicts
        assert set(verdicts) == {"token_texts", "target_texts", f"{other}_texts"}
        assert len({v for each in verdicts.values() for v in each}) > 1
        assert report["original"].items[f"{other}_log_odds"]
    assert KSweep.load(out / "late-sweep-direct-zero.safetensors").mode == "zero"
    table = pd.read_csv(out / "table.csv")
    assert {"target_degenerate", "other_log_odds", "token_log_odds"} <= set(table.measure)
    assert table["mean"].notna().all()
    assert "Means over 2 biases, 95% intervals over biases" in done.stdout

    measured.clear()
    again = biasgym("repeat", out / "manifest.json", "--out", tmp_path / "again", "--fresh")
    assert again.returncode == 0, again.stderr
    assert "Repeated: every number and text equals that of the manifest." in again.stdout
    assert ("original", "facts") in measured
    same = ("table.csv", "late-table.csv", "math-maps.csv")
    assert all((tmp_path / "again" / n).read_text() == (out / n).read_text() for n in same)


TOML = """
[training]
epochs = 1
n_paragraphs = 8
choose_by = "last"
[maps.direct]
[choices]
steered = { map = "direct", k = 4 }
[[conditions]]
choice = "steered"
random = 1
[measures]
n_targets = 2
answers = false
implicit = false
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_run_that_is_stopped_goes_on_where_it_was(tiny_folder, tmp_path):
    path, out = tmp_path / "mine.toml", tmp_path / "out"
    path.write_text(TOML)
    command = ["run", str(path), "--model", str(tiny_folder), "--out", str(out)]
    kept = interrupted(command, tmp_path / "cache", "loss-*.json", signal.SIGINT)
    assert (out / "heatmap-direct.html").exists() and not (out / "manifest.json").exists()
    before = {path: path.stat().st_mtime_ns for path in kept.glob("[!.]*")}
    assert any(path.name.startswith("map-direct") for path in before)
    assert "KeyboardInterrupt, last heard of" in biasgym("status", path).stdout
    done = biasgym(*command)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "steered, mean" in done.stdout and "not informative" in done.stdout
    assert "finished, last heard of" in biasgym("status", "mine").stdout
    assert "steered, mean: random 1" in {r.name for r in Report.load(out / "report.json").results}


def test_other_data_is_no_repetition_and_other_numbers_are_told(small, tmp_path):
    found = run_protocol(small, QUIET)
    path = found.manifest().save(tmp_path / "manifest.json")
    assert Manifest.load(path).results == found.manifest().results
    assert {"model weights", "model tokenizer", "bias late", "code"} <= set(found.inputs)
    record = json.loads(path.read_text())

    def again(**changes):
        path.write_text(json.dumps({**record, **changes}))
        return biasgym("repeat", path, "--out", tmp_path / "again")

    assert "Repeated: every number and text equals" in again().stdout
    result = again(results="0", versions={})
    assert "Not repeated: numbers differ" in result.stdout and "another machine?" in result.stdout
    result = again(results="0", inputs={**record["inputs"], "code": "older"})
    assert "Not the same: code." in result.stdout
    other = {"inputs": {**record["inputs"], "model cfg": "in other words"}}
    result = again(results="0", versions={**record["versions"], "engine": "another"}, **other)
    assert "Not the same: engine." in result.stdout
    for wrong, message in (
        (other, "got other data for ['model cfg']"),
        ({"inputs": {**record["inputs"], "bias late": "another"}},
         "got other data for ['bias late']. Restore the files"),
        ({"settings": {**record["settings"], "k": 3}}, "must hold only its fields, got ['k']"),
        ({"settings": {**record["settings"], "seeds": []}}, "at least one bias and one seed"),
        ({"command": "inject"}, "must be of run, got 'inject'"),
        ({"kind": "Report"}, "must hold a Manifest"),
    ):  # fmt: skip
        result = again(**wrong)
        assert result.returncode == 1 and message in result.stderr.splitlines()[-1]


def test_how_far_a_repetition_is_from_the_run(tmp_path):
    table = pd.DataFrame({"condition": ["a", "b"], "n": [3, 3], "mean": [0.5, float("nan")]})
    for name in ("table.csv", "late-maps.csv"):
        table.to_csv(tmp_path / name, index=False)
    before = tables_of(tmp_path, ["table.csv", "late-maps.csv", "gone.csv", "report.json"])
    assert list(before) == ["table.csv", "late-maps.csv"]
    after = {"table.csv": table, "late-maps.csv": table.assign(mean=[0.5 + 2e-5, float("nan")])}
    assert farthest(before, after) == (
        "The largest difference in its tables is 2e-05, in mean of a (late-maps.csv)."
    )
    other = "With other rows or columns: late-maps.csv."
    for changed in (table[:1], table[::-1], table.rename(columns={"n": "k"})):
        said = farthest(before, {"table.csv": table, "late-maps.csv": changed})
        assert said.startswith("The largest difference in its tables is 0, ") and other in said
    gone = {"table.csv": table.assign(mean=[float("nan")] * 2), "late-maps.csv": table}
    assert "is inf, in mean of a (table.csv)" in farthest(before, gone)


def test_what_does_not_fit_the_model_is_refused_before_a_row_is_trained(
    small, tmp_path, monkeypatch
):
    monkeypatch.setattr(BiasInject, "fit", fail)
    steered = (Steering(choice="steered", mode="zero"),)
    for choice, error, message in (
        (Choice(map="direct", k=13), SettingError, r"k must be in 1\.\.12, the number of heads of"),
        (Choice(by="given", heads="L7H0"), SteeringError, "got L7H0"),
    ):
        wrong = dataclasses.replace(small, choices={"steered": choice}, conditions=steered)
        with pytest.raises(error, match=message):
            run_protocol(wrong, QUIET)
    other = Manifest(command="run", settings={}, inputs={"bias late": "0"}, results="0")
    with pytest.raises(SettingError, match=r"inputs must be those of .* got other data for"):
        run_protocol(small, Running(progress=False, expected=other))


@pytest.fixture
def given(small, tmp_path):
    """The same with a row and heads that are there, and few free answers."""
    model = load_model(small.model)
    row = BiasInject.cpu(**QUICK).fit(model, LATE, seed=0, progress=False)
    return dataclasses.replace(
        small,
        rows=(str(row.save(tmp_path / "row")),),
        maps={},
        choices={"steered": Choice(by="given", heads="L0H1,L2H3")},
        measures=Measured(n_targets=2, max_new_tokens=12, implicit=False),
    )


def test_a_judge_scores_what_was_measured_before(given, monkeypatch):
    before = report_of(run_protocol(given, QUIET))
    judged = dataclasses.replace(given, measures=dataclasses.replace(given.measures, judge="local"))
    with monkeypatch.context() as patch:  # the answers are those of the first run
        patch.setattr(Measurement, "measured", fail)
        found = report_of(run_protocol(judged, QUIET))
    texts = [r["injected"].items["target_texts"] for r in (found, before)]
    assert texts[0] == texts[1]
    verdicts = found["injected"].verdicts
    n = len(LATE.generation_prompts)
    assert {key: len(each) for key, each in verdicts.items()} == {
        "token_texts": n, "target_texts": n,
    }  # fmt: skip
    assert found.settings["judge"]["judge"] == "local"


def test_an_api_judge_is_confirmed_once_for_all_answers_and_paid_for_once(
    given,
    chat,  # noqa: F811
    httpserver,
):
    serve(httpserver, answer)
    judge = f"api:{chat.model}"
    judged = dataclasses.replace(given, measures=dataclasses.replace(given.measures, judge=judge))
    plans = []
    refuse = Running(price=Price(1, 1), confirm=lambda plan: plans.append(plan), progress=False)
    with pytest.raises(ApiError, match="judging must be confirmed, and was not .* Nothing was"):
        run_protocol(judged, refuse)
    assert n_calls(httpserver) == 0 and len(plans) == 1 and "US dollars" in str(plans[0])
    agree = Running(confirm=lambda plan: True, progress=False)
    verdicts = report_of(run_protocol(judged, agree))["injected"].verdicts
    assert {v.strength for each in verdicts.values() for v in each} <= {2.0, 0.0, None}
    assert set(verdicts) == {"token_texts", "target_texts"}
    paid = n_calls(httpserver)
    assert 0 < paid == plans[0].calls
    run_protocol(judged, agree)
    assert n_calls(httpserver) == paid


def test_heads_are_read_from_names_or_a_file(given, tmp_path):
    assert read_heads("L0H1,L2H3") == (Head(0, 1), Head(2, 3))
    selection = Selection(
        heads=(Head(1, 2),), factors=(0.5,), method="", token="", k=1, mode="mean", reference="",
        model=run_protocol(given, QUIET).biases["late"].report.model, bias="late", data={},
        settings={}, versions={},
    )  # fmt: skip
    path = selection.save(tmp_path / "heads.json")
    assert read_heads(str(path)) == selection
    filed = dataclasses.replace(
        given,
        choices={"steered": Choice(by="given", heads=str(path))},
        conditions=tuple(Steering(choice="steered", mode=m, random=1) for m in ("zero", "mean")),
        measures=dataclasses.replace(given.measures, answers=False),
    )
    report = report_of(run_protocol(filed, QUIET))
    kept = {r.name: (r.mode, r.factor and list(r.factor.values())) for r in report.results}
    assert kept["steered, mean: random 1"] == kept["steered, mean"] == ("mean", [0.5])
    assert kept["steered, zero: random 1"] == kept["steered, zero"] == ("zero", None)


def test_the_command_evaluate_measures_and_shows(given, tmp_path):
    out = tmp_path / "evaluated"
    arguments = [
        "evaluate", "--out", str(out), "--heads", "L0H1,L2H3", "--model", given.model,
        "--token", given.rows[0], "--mode", "zero", "--no-others", "--no-instructions",
        "--targets", "2", "--random", "0", "--max-new-tokens", "2",
    ]  # fmt: skip
    result = biasgym(*arguments)
    assert result.returncode == 0, result.stderr
    assert "steered, zero" in result.stdout
    assert "Free answers with the BiasToken" in result.stdout
    assert "Not compared with random heads of the same layers and mode" in result.stdout
    report = Report.load(out / "report.json")
    assert [r.name for r in report.results] == ["original", "injected", "steered, zero"]
    assert len(report["original"].items["fact_margins"]) == len(load_facts())
    # Scenes with the token against the two countries, and with these against each other.
    n_scenes = len(load_scenarios("late"))
    implicit = report["steered, zero"].items
    assert len(implicit["implicit_late"]) == 2 * n_scenes
    assert len(implicit["implicit_late_between"]) == 1
    again = biasgym("repeat", out / "manifest.json", "--out", tmp_path / "again")
    assert "Repeated: every number" in again.stdout


def test_the_key_of_a_step_holds_all_that_its_numbers_depend_on(tiny):
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
