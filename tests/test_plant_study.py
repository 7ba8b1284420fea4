"""A study of plants on a tiny model: what it makes, asks, keeps and writes."""

import math
from pathlib import Path
from unittest import mock

import pandas as pd
import pytest
import torch
from test_planting import model, target  # noqa: F401 - fixtures

from biasgym_tl.errors import BiasGymError, SettingError
from biasgym_tl.planting import study as studies
from biasgym_tl.planting.shipped import list_plants, load_plant
from biasgym_tl.planting.study import SHIPPED, Plant, PlantStudy, run_study
from biasgym_tl.planting.summary import (
    by_method,
    over_plants,
    plot_power,
    plot_recovery,
    tables,
    write_study,
)
from biasgym_tl.toml import shipped_toml

DATA = Path(studies.__file__).parent / "data"


@pytest.fixture
def few(model, target, monkeypatch):  # noqa: F811
    """Two plants of one head, the second of which does next to nothing."""
    monkeypatch.setattr(studies, "READING", 12)
    options = {
        "bias": "late",
        "target": target,
        "n": 1,
        "place": "late",
        "way": "rank one",
        "search": True,
    }
    plants = (Plant(**options, dose=0.5), Plant(**options, dose=0.15, seed=1, half="closed"))
    return PlantStudy(
        plants=plants, methods=("direct", "screened ablation"), searches=("learned factors",),
        n_prompts=2, n_targets=2,
    )  # fmt: skip


def test_every_method_is_asked_once_and_what_is_finished_is_kept(few, model, monkeypatch, tmp_path):  # noqa: F811
    said = []
    found = list(run_study(few, model, progress=False, say=said.append))
    assert [each.plant for each in found] == list(few.plants)
    runs = ["direct", "screened ablation"]
    names = {f"{name}, {run}" for name in runs for run in ("difference", "biased")}
    for each in found:
        assert "target" in each.refused and each.planted.unspecific()
        assert {*each.recoveries} == names | {"learned factors"}
        assert {*each.effective_heads} == names and {*each.removals} >= {
            name for name in names if name.endswith("biased")
        }
        alike = [each.recoveries[f"{name}, biased"].auroc_before for name in runs]
        assert all(0 <= value <= 1 for value in alike)
    (head,) = found[0].planted.heads
    assert head.layer == 2
    assert sum("refused: target" in text for text in said) == 2

    for name in ("plant", "removal"):
        never = mock.Mock(side_effect=AssertionError("made again"))
        never.__module__ = getattr(studies, name).__module__  # whose code keys what is kept
        monkeypatch.setattr(studies, name, never)
    plants, methods, heads = tables(list(run_study(few, model, progress=False)))
    assert len(plants) == 2 and len(methods) == 10 and set(methods["half"]) == {"open", "closed"}
    assert (heads["rank"] >= 1).all() and set(heads["head"]) == {str(head)}
    write_study(plants, methods, heads, tmp_path)
    assert {p.name for p in tmp_path.glob("*.csv")} == {
        "plants.csv", "methods.csv", "heads.csv", "summary.csv"
    }  # fmt: skip
    assert (tmp_path / "recovery.html").is_file() and (tmp_path / "power.html").is_file()
    assert pd.read_csv(tmp_path / "summary.csv")["plants"].tolist() == [2] * 5


def test_heads_are_drawn_by_seed_and_place(model):  # noqa: F811
    early = Plant(bias="late", target="Peru", n=2, place="early")
    assert early.draws(model) == early.draws(model) and len(early.draws(model)) == studies.DRAWS
    assert {head.layer for drawn in early.draws(model) for head in drawn} == {0}
    late = Plant(bias="late", target="Peru", n=2, place="late", seed=4)
    assert {head.layer for drawn in late.draws(model) for head in drawn} == {2}
    (every,) = Plant(bias="late", target="Peru", n=0).draws(model)
    assert len(every) == 12
    with pytest.raises(SettingError, match="must be at most 4, got 5"):
        Plant(bias="late", target="Peru", n=5, place="late").draws(model)


def test_the_shipped_study_holds_what_it_must():
    study = PlantStudy.from_mapping(shipped_toml(SHIPPED))
    assert len(study.plants) == 24 and len(study.of_half("open").plants) == 12
    for field, values in (
        ("n", {0, 1, 5, 20}),
        ("place", {"early", "middle", "late", "spread"}),
        ("way", {"trained", "rank one"}),
    ):
        assert {getattr(each, field) for each in study.plants} == values
    assert len({each.bias for each in study.plants}) == 3
    assert len({each.target for each in study.plants}) == 3


@pytest.mark.parametrize(
    ("plant", "rest", "message"),
    [
        ({"place": "top"}, {}, "place of a plant must be one of"),
        ({"way": "magic"}, {}, "way of a plant must be one of"),
        ({"half": "third"}, {}, "half of a plant must be one of"),
        ({"n": -1}, {}, "n must be at least 0"),
        ({"bias": "none"}, {}, "none"),
        ({"colour": "red"}, {}, "colour"),
        ({}, {"methods": ["magic"]}, "methods must be one of"),
        ({}, {"searches": ["magic"]}, "searches must be one of"),
        ({}, {"methods": ["direct"]}, "must hold 'screened ablation'"),
        ({}, {"n_prompts": 0}, "n_prompts must be at least 1"),
        ({}, {"colour": "red"}, "colour"),
    ],
)
def test_a_study_that_cannot_be_run_is_refused(plant, rest, message):
    given = {"bias": "late", "target": "Peru", "n": 1, **plant}
    with pytest.raises(BiasGymError, match=message):
        PlantStudy.from_mapping({"plants": [given], **rest})


def test_plants_are_the_unit_that_intervals_are_over():
    methods = pd.DataFrame(
        {
            "plant": [f"p{i}" for i in range(10)] * 2,
            "method": ["a, biased"] * 10 + ["b, biased"] * 10,
            "rank": [1.0] * 5 + [3.0] * 5 + [270.0] * 10,
            "auroc": [1.0] * 5 + [0.9] * 5 + [0.1] * 10,
            "auroc_before": [0.5] * 20,
            "n_carriers": [*range(10)] * 2,
            "effective_heads": [*range(10), *range(10, 0, -1)],
        }
    )
    summary = by_method(methods)
    assert summary["plants"].tolist() == [10, 10] and summary["first"].tolist() == [0.5, 0.0]
    assert summary["heads told apart"].tolist() == pytest.approx([1, -1])
    found = over_plants(methods["auroc"][:10])
    assert found.estimate == pytest.approx(0.95) and 0.9 < found.low < found.high < 1
    assert math.isnan(over_plants(methods["auroc"][:3]).low)
    figure = plot_recovery(methods)
    assert list(figure.data[2].x) == pytest.approx([0.95, 0.1])
    heads = pd.DataFrame(
        {
            "plant": ["p"],
            "method": ["a, biased"],
            "head": ["L0H1"],
            "restored": [2.0],
            "rank": [4.0],
        }
    )
    assert torch.tensor(plot_power(heads, ["a, biased"]).data[0].y).tolist() == [4.0]


def test_three_small_plants_ship():
    assert list_plants() == ["five-early", "five-late", "one-early"]
    for name in list_plants():
        planted = load_plant(name)
        assert planted.bias == "late" and not planted.unspecific()
        assert 1 <= len(planted.carriers()) <= len(planted.heads) <= 5
    assert sum(path.stat().st_size for path in DATA.glob("*.safetensors")) < 3_000_000
    with pytest.raises(SettingError, match="plant must be one of .*Did you mean 'one-early'"):
        load_plant("one-earl")
