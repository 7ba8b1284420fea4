"""A protocol with rivals: priced, run, kept, and the same numbers when it is run again."""

import dataclasses

import pandas as pd
import pytest

from biasgym_tl import Protocol, load_bias, load_protocol, run_protocol
from biasgym_tl.errors import SettingError
from biasgym_tl.protocol.chain import Running
from biasgym_tl.protocol.outputs import write_outputs
from biasgym_tl.protocol.parts import Choice, Map
from biasgym_tl.protocol.plan import plan
from biasgym_tl.protocol.protocol import Measured, Training
from biasgym_tl.protocol.steering import Rival, Steering
from biasgym_tl.rivals.damage import Damage
from biasgym_tl.rivals.intervention import Intervention, LogitShift

pytestmark = pytest.mark.usefixtures("few_facts")
QUIET = Running(progress=False)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr("biasgym_tl.figures.write_pngs", lambda figures: "no PNG here")
    monkeypatch.setenv("BIASGYM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def small(tiny_folder):
    rivals = {
        "shift": Rival(method="logit_shift"),
        "vector": Rival(method="caa", settings={"layer": 1, "between": "slot"}, natural=False),
    }
    conditions = (
        Steering(rival="shift", kl=0.01, measures="off target"),
        Steering(rival="shift", strength=2.0, measures="log-odds"),
        Steering(rival="vector", kl=0.03, measures="off target", random=1),
    )
    return Protocol(
        model=str(tiny_folder),
        training=Training(settings={"epochs": 1, "n_paragraphs": 8, "choose_by": "last"}),
        rivals=rivals,
        conditions=conditions,
        measures=Measured(n_targets=2, answers=False, implicit=False),
    )


def test_rivals_are_made_set_judged_and_kept(small, tmp_path, monkeypatch):
    first = run_protocol(small, QUIET)
    found = first.biases["late"]
    names = ["original", "injected", "shift, KL 0.01", "shift, strength 2.0", "vector, KL 0.03",
             "vector, KL 0.03: random 1"]  # fmt: skip
    assert [r.name for r in found.report.results] == names
    assert all(r.rival["kl"] == pytest.approx(kl, rel=0.05)
               for r, kl in ((found.report[names[2]], 0.01), (found.report[names[4]], 0.03),
                             (found.report[names[5]], 0.03)))  # fmt: skip
    fall = found.report.change(names[3], "target_log_odds", "original")
    assert fall.estimate == pytest.approx(-2.0, abs=1e-3)
    assert found.report.interval(names[4], "damage_kl").estimate > 0
    assert found.report.interval(names[0], "damage_kl").estimate == 0
    assert found.report.beyond_random("target_log_odds", names[4]).of == 2

    write_outputs(first, tmp_path / "out")
    kept = Intervention.load(tmp_path / "out" / "rival-shift.safetensors")
    assert isinstance(kept, LogitShift) and kept.uses() == found.rivals["shift"].uses()
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    assert {"damage_kl", "specificity"} <= set(table.measure)
    dials = table[table.measure == "strength"].set_index("condition")["mean"]
    assert list(dials.index) == names[2:5] and dials[names[3]] == 2.0

    def fail(*args, **kwargs):
        raise AssertionError("measured again")

    monkeypatch.setattr(Damage, "by_text", fail)
    again = run_protocol(small, QUIET)
    assert again.manifest().results == first.manifest().results


def test_a_rival_that_needs_a_row_is_left_out_where_there_is_none(small):
    natural, late = load_bias("wise"), load_bias("late")
    assert list(small.rivals_of(natural)) == ["shift"] and len(small.rivals_of(late)) == 2
    assert [c.rival for c in small.conditions_of(natural)] == ["shift", "shift"]


def test_a_plan_prices_rivals_and_their_dials(small):
    steps = {step.name: step.seconds for step in plan(small).steps}
    assert steps["late: rival shift, dials: 1"] > 0
    assert steps["late: rival vector, dials: 2"] > steps["late: rival shift, dials: 1"]
    more = dataclasses.replace(
        small, conditions=(*small.conditions, Steering(rival="shift", kl=1.0))
    )
    found = {step.name: step.seconds for step in plan(more).steps}
    once = steps["late: rival shift, dials: 1"]
    assert found["late: rival shift, dials: 2"] == pytest.approx(2 * once, rel=0.05)


def test_the_shipped_referee_has_three_damages_and_a_natural_bias():
    referee = load_protocol("referee")
    dials = {c.kl for c in referee.conditions if c.rival}
    assert dials == {0.01, 0.03, 0.1} and len(referee.rivals) >= 18
    natural = [load_bias(b) for b in referee.biases if not referee.injects(load_bias(b))]
    assert len(natural) == 1 and 0 < len(referee.rivals_of(natural[0])) < len(referee.rivals)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"choice": "top", "kl": 0.03}, "kl of the condition 'top, mean' must be left out without"),
        ({"rival": "shift", "kl": 0.03, "mode": "zero"}, "mode of a condition must be left out"),
        ({"rival": "shift", "kl": 0.03, "factor": 0.5}, "factor of a condition must be left out"),
    ],
)
def test_dials_and_modes_in_the_wrong_place_are_refused(given, message):
    with pytest.raises(SettingError, match=message):
        Protocol(
            choices={"top": Choice(k=3)}, maps={"direct": Map()},
            rivals={"shift": Rival(method="logit_shift")}, conditions=(Steering(**given),),
        )  # fmt: skip
