"""Rivals on plants: restoring takes all back (KL 0), strength 0 nothing, minus the plant all."""

import dataclasses
from pathlib import Path
from unittest import mock

import pandas as pd
import pytest
from test_planting import LATE, RELAY, WRITER, model, target  # noqa: F401 - fixtures

from biasgym_tl.errors import SettingError, SteeringError
from biasgym_tl.heads import Head
from biasgym_tl.planting import study as studies
from biasgym_tl.planting import taken_back as module
from biasgym_tl.planting.plant import plant
from biasgym_tl.planting.sentences import target_token
from biasgym_tl.planting.study import ANY, PlantStudy, run_study
from biasgym_tl.planting.summary import rivals_table, tables, write_study
from biasgym_tl.planting.taken_back import CARRIERS, RESTORED, Asked, TakenBack, take_back
from biasgym_tl.protocol.steering import Rival
from biasgym_tl.rivals.damage import Damage
from biasgym_tl.rivals.head_sets import toward
from biasgym_tl.rivals.intervention import HeadsEdit, WeightsEdit
from biasgym_tl.rivals.methods import METHODS, Method
from biasgym_tl.slot import fill
from biasgym_tl.steering.selection import Selection, fingerprints
from biasgym_tl.steps import Steps
from biasgym_tl.toml import read_toml

ROOT = Path(__file__).parent.parent
FEW = dataclasses.replace(
    LATE,
    scoping_prompts=LATE.scoping_prompts[:5],
    evaluation_prompts=LATE.evaluation_prompts[:3],
)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("BIASGYM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def made(model, target, few_facts):  # noqa: F811
    """A small plant of each kind of weights."""
    options = {"dose": 0.5, "limits": ANY, "n_steps": 4, "progress": False}
    return {
        way: plant(model, FEW, heads, target, way=way, **options)
        for way, heads in {
            "rank one": [WRITER], "relay": [RELAY], "trained": [WRITER, RELAY]
        }.items()
    }  # fmt: skip


@pytest.fixture
def minus(model, made, monkeypatch):  # noqa: F811
    """A method that takes away what was planted in W_O, and the plant of one head."""
    planted = made["rank one"]
    edit = WeightsEdit(
        method="minus", bias="late", model=model.cfg.model_name, data={}, settings={},
        heads=planted.heads, delta=-planted.W_O,
    )  # fmt: skip
    given = []

    def make(model, bias, tokens):
        given.extend(tokens)
        return edit

    make.__module__ = METHODS["caa"].prepare.__module__
    monkeypatch.setitem(METHODS, "minus", Method(make, 0))
    return planted, edit, given


@pytest.fixture
def asked(model, made):  # noqa: F811
    def of(planted):
        token = target_token(model, FEW, planted.target)
        return Asked(model, FEW, planted, token, Steps.of(model), 0)

    return of


def test_restoring_takes_all_back_and_strength_0_nothing(asked, made, minus):
    _, edit, _ = minus
    for way in ("rank one", "relay", "trained"):
        each = asked(made[way])
        restored = each.judged("all", None, heads=())
        assert (restored.removed, restored.kl) == (1, 0)
        assert (restored.neighbours, restored.others) == (0, 0)
        left = each.judged("none", edit.at(0.0))
        assert (left.removed, left.kl) == (0, left.kl_unsteered) and left.kl > 1e-4
        assert left.neighbours == left.neighbours_unsteered


def test_random_heads_hold_no_carrier(asked, made, model):  # noqa: F811
    each = asked(made["rank one"])
    (carrier,) = made["rank one"].carriers()
    own = toward(model, FEW, "own", [carrier], [0.0], {}, "mean")
    assert carrier in {own.random(model, seed).heads[0] for seed in range(40)}
    for seed in range(8):
        (drawn,) = dataclasses.replace(each, seed=seed).drawn(own).heads
        assert drawn != carrier and drawn.layer == carrier.layer


def test_where_random_heads_must_hold_a_carrier_there_is_no_control(asked, made, model):  # noqa: F811
    each = asked(made["rank one"])
    (carrier,) = made["rank one"].carriers()
    layer = [Head(carrier.layer, head) for head in range(model.cfg.n_heads)]
    most, every = (
        toward(model, FEW, "own", h, [0.0] * len(h), {}, "mean") for h in (layer[1:], layer)
    )
    assert {*each.drawn(most).heads} == {*layer} - {carrier}
    with mock.patch.object(module, "MOST_DRAWS", 1):
        found = [dataclasses.replace(each, seed=seed).drawn(most) for seed in range(12)]
    assert None in found and all(carrier not in one.heads for one in found if one)
    with mock.patch.object(HeadsEdit, "random", side_effect=AssertionError("was drawn")):
        assert each.drawn(every) is None
        rival = Rival(method="top", settings={"k": 12})
        all_heads = each.rival("all", rival, each.made("all", rival), 0.01)
    assert (all_heads.removed_random, all_heads.kl_random) == (None, None)


def test_what_was_added_is_taken_away_by_its_negative(model, minus):  # noqa: F811
    planted, edit, given = minus
    with planted.attached(model):
        size = Damage(model).kl(edit)
    rivals = {"minus": Rival(method="minus")}
    carriers, restored, found = take_back(model, FEW, planted, rivals, [size])
    assert (carriers.rival, restored.rival) == (CARRIERS, RESTORED)
    assert (restored.removed, restored.kl) == (1, 0) and restored.strength is None
    assert carriers.damage_kl > 0 and carriers.wanted_kl is None
    assert found.strength == 1 and found.wanted_kl == size == pytest.approx(found.damage_kl)
    assert found.removed == pytest.approx(1, abs=1e-4) and found.kl == pytest.approx(0, abs=1e-6)
    assert abs(found.removed_random) < 0.5 and found.kl_random > 100 * found.kl
    (token,) = given
    assert token.settings == {"row of": planted.target}


def test_a_rival_that_has_seen_what_judges_is_refused(asked, made, tmp_path):
    each, prompt = asked(made["rank one"]), FEW.evaluation_prompts[0]
    path, data = tmp_path / "sel.json", fingerprints(prompts=FEW.scoping_prompts)
    chosen = Selection(
        heads=(WRITER,), method="own", token="own", k=1, mode="mean", reference="", bias="late",
        model=each.model.cfg.model_name, data=data, settings={}, versions={}, factors=(0.5,),
    )  # fmt: skip
    chosen.save(path)
    rivals, said = {"own": Rival(method="factors", settings={"heads": str(path)})}, []
    given = each.model, FEW, each.planted, rivals, [1e-3]
    assert [found.rival for found in take_back(*given)][-1] == "own"
    near, far = each.targets
    for kind, seen in (
        ("prompts", prompt),
        ("prompts", fill(prompt, each.planted.target)),
        ("targets", near[0]),
        ("targets", far[0]),
    ):
        dataclasses.replace(chosen, data=fingerprints(**{kind: [seen]})).save(path)
        with pytest.raises(SteeringError, match=f"{kind} of an evaluation must not be among"):
            list(take_back(*given, say=said.append))
    assert not any("left out" in text or "TakenBack(own" in text for text in said)


def test_what_is_finished_is_kept(model, made, monkeypatch):  # noqa: F811
    rivals = {
        "shift": Rival(method="logit_shift"),
        "vector": Rival(method="caa", settings={"layer": 1, "between": "slot"}),
    }
    said = []
    first = list(take_back(model, FEW, made["relay"], rivals, [0.01, 1e3], say=said.append))
    assert [each.rival for each in first] == [CARRIERS, RESTORED, "shift", "vector"]
    assert first[2].removed_random is None and first[3].kl_random > 0
    assert all(each.damage_kl == pytest.approx(0.01, rel=0.06) for each in first[2:])
    assert any("left out at KL 1000" in text for text in said)
    for name in ("prepare", "answers", "toward"):
        monkeypatch.setattr(module, name, mock.Mock(side_effect=AssertionError("made again")))
    assert list(take_back(model, FEW, made["relay"], rivals, [0.01])) == first
    assert "100% of the rise" in repr(first[1])


@pytest.mark.parametrize(
    ("rivals", "kls", "message"),
    [
        ({"one": Rival(method="magic")}, [0.03], "method must be one of"),
        ({"one": Rival(method="caa", settings={"color": 1})}, [0.03], "must be among .*color"),
        ({"a/b": Rival(method="caa")}, [0.03], "names of maps, choices and rivals"),
        ({}, [0.03, 0.0], "kl must be above 0, got 0.0"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_runs(model, made, rivals, kls, message):  # noqa: F811
    given = {name: {"method": each.method, **each.settings} for name, each in rivals.items()}
    with pytest.raises(SettingError, match=message):
        PlantStudy.from_mapping({"plants": [], "rivals": given, "kl": kls})
    with (
        mock.patch.object(module, "answers", side_effect=AssertionError("was run")),
        pytest.raises(SettingError, match=message),
    ):
        list(take_back(model, FEW, made["relay"], rivals, kls))


def test_a_study_asks_rivals_and_writes_what_they_took_back(model, target, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.setattr(studies, "READING", 12)
    study = PlantStudy.from_mapping(
        {
            "plants": [
                {"bias": "late", "target": target, "n": 1, "place": "late", "way": "rank one",
                 "dose": 0.5}
            ],
            "methods": [], "searches": [], "n_prompts": 5, "kl": [0.01],
            "rivals": {"vector": {"method": "caa", "layer": 1, "between": "slot"}},
        }
    )  # fmt: skip
    assert study.rivals["vector"].settings == {"layer": 1, "between": "slot"}
    said = []
    found = list(run_study(study, model, progress=False, say=said.append))
    assert all(isinstance(each, TakenBack) for each in found[0].taken_back)
    assert sum("of the rise" in text for text in said) == len(found[0].taken_back) == 3
    write_study(*tables(found), tmp_path, rivals=rivals_table(found))
    written = pd.read_csv(tmp_path / "rivals.csv")
    assert written["rival"].tolist() == [CARRIERS, RESTORED, "vector"]
    assert written["plant"].tolist() == [study.plants[0].name] * 3


def test_a_shipped_plant_is_taken_as_it_is(model):  # noqa: F811
    one = {"bias": "late", "target": "Denmark", "n": 1, "shipped": "one-early"}
    (each,) = PlantStudy.from_mapping({"plants": [one]}).plants
    assert studies._made(each, model, Steps.of(model), False, print).heads == ((3, 6),)
    for wrong, message in (
        ({"shipped": "one-earl"}, "shipped plant must be one of .*Did you mean 'one-early'"),
        ({"target": "Peru"}, "target of a shipped plant must be one of"),
        ({"bias": "math"}, "bias of a shipped plant must be one of"),
        ({"way": "rank one"}, r"way of a shipped plant must be one of \['trained'\]"),
        ({"seed": 7}, r"seed of a shipped plant must be one of \[0\], got 7"),
        ({"dose": 3.0}, r"dose of a shipped plant must be one of \[5.0\]"),
        ({"n": 5}, r"n of a shipped plant must be one of \[1\], got 5"),
        ({"place": "late"}, r"place of a shipped plant must be one of \['early', 'spread'\]"),
    ):
        with pytest.raises(SettingError, match=message):
            PlantStudy.from_mapping({"plants": [one | wrong]})


def test_what_is_stored_is_of_the_study_on_the_page():
    text = (ROOT / "docs" / "plant_rivals.toml").read_text(encoding="utf-8")
    study = PlantStudy.from_mapping(read_toml(text, "plant_rivals.toml"))
    stored = pd.read_csv(ROOT / "figures" / "plants" / "rivals.csv")
    assert {*stored["plant"]} == {each.name for each in study.plants}
    assert {*stored["rival"]} == {CARRIERS, RESTORED, *study.rivals}
    assert {*stored["wanted_kl"].dropna()} == {*study.kl}
