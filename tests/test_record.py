"""How far a run is: what it writes down while it runs, and what is said of it."""

import dataclasses
import json
import time

import pytest
from command import biasgym

from biasgym_tl import Protocol, run_protocol
from biasgym_tl.errors import StoreError
from biasgym_tl.protocol import record as module
from biasgym_tl.protocol.chain import Running
from biasgym_tl.protocol.parts import Map, Measured, Training
from biasgym_tl.protocol.plan import PlannedStep
from biasgym_tl.protocol.record import Part, Recorder, RunRecord, known_runs, recorded

PLANNED = [
    PlannedStep("late", "maps", "map", 10.0, 1.0),
    PlannedStep("late", "maps", "another map", 20.0, 1.0),
    PlannedStep("late", "conditions", "original", 60.0, 1.0),
    PlannedStep("math", "maps", "map", 30.0, 1.0),
]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("BIASGYM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when a test says so."""
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def saved():
    ((found, _),) = known_runs()
    return found


def states():
    return [(part.bias, part.stage, part.state, part.made) for part in saved().parts]


def test_stages_are_left_then_under_way_then_done(tmp_path, clock):
    with recorded(Protocol(), tmp_path / "out", PLANNED) as recorder:
        assert [part.planned for part in saved().parts] == [30.0, 60.0, 30.0]
        assert recorder.begins("late", "rows") is None  # which ship
        said = recorder.begins("late", "maps")
        assert said.startswith("late (1 of 2): step 1 of 2, maps; about 2 min left")
        clock[0] += 60  # twice as long as planned
        recorder.step()
        said = recorder.begins("late", "conditions")
        assert states() == [
            ("late", "maps", "done", 1), ("late", "conditions", "now", 0),
            ("math", "maps", "left", 0),
        ]  # fmt: skip
        assert saved().parts[0].taken == 60 and saved().left == (60 + 60) / (60 + 30) * 90
        assert "about 2 min left" in said
        words = saved().told(lives=True)
        assert "runs for 60 s: 2 min left, about." in words
        assert "done  late: maps, 1 steps made, in 60 s" in words
        assert "left  math: maps, planned 30 s" in words
    assert saved().ended == "finished"


def test_it_is_written_at_most_once_a_second(tmp_path, clock, monkeypatch):
    written, save = [], RunRecord.save
    monkeypatch.setattr(RunRecord, "save", lambda self, path: written.append(save(self, path)))
    with recorded(Protocol(), tmp_path / "out", PLANNED) as recorder:
        recorder.begins("late", "maps")
        before = len(written)
        for _ in range(100):
            clock[0] += 0.05
            recorder.step()
        assert len(written) - before <= 6
    assert states()[0][3] == 100 and len(set(written)) == 1


def test_workers_do_all_of_it_first(tmp_path, clock):
    with recorded(Protocol(), tmp_path / "out", PLANNED) as recorder:
        recorder.expects({("late", "workers: maps"): 100.0, ("math", "workers: maps"): 100.0})
        recorder.counts("late", "workers: maps", 0, 4)
        clock[0] += 10
        recorder.counts("late", "workers: maps", 1, 4)  # a quarter of a half in 10 s
        assert saved().left == pytest.approx((60 + 10) / (60 + 25) * 175)
        assert "now  late: workers: maps, 1 of 4 tasks, for 10 s" in saved().told(lives=True)
        clock[0] += 10
        recorder.counts("late", "workers: maps", 4, 4)
        recorder.counts("late", "workers: unplanned", 4, 4)
        clock[0] += 2
        assert recorder.begins("late", "maps") is None  # nothing is planned to be left of it
        assert [state[2] for state in states()] == ["done", "left", "now", "left", "left"]


def test_a_run_says_how_far_it_is_and_that_it_is_finished(tiny_folder, tmp_path):
    """In the middle of a run and after it, by its folder or its protocol."""
    protocol = Protocol(
        name="mine",
        model=str(tiny_folder),
        training=Training(rows="none"),
        maps={"direct": Map(slot="targets", n_prompts=2)},
        measures=Measured(n_targets=1, n_facts=2, off_target=False, answers=False, implicit=False),
    )
    out, said = tmp_path / "out", []

    def look(line):
        said.append(biasgym("status", out).stdout)

    run_protocol(protocol, Running(progress=False, out=out, say=look))
    assert f"mine on {tiny_folder}, results in {out}\n" in said[-1]
    assert "runs for" in said[-1] and "now  late: conditions" in said[-1]
    assert "done  late: maps, 2 steps made" in said[-1]  # the labels, and the map with them
    after = biasgym("status", "mine")
    assert after.returncode == 0 and "finished, last heard of" in after.stdout
    assert "run the same command" not in after.stdout
    ((found,),) = [json.loads(biasgym("status", "--json").stdout)]
    assert found["ended"] == "finished" and found["lives"] is False and found["out"] == str(out)
    assert not out.exists()


def test_a_run_that_fails_says_why_and_another_at_once_goes_unrecorded(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(StoreError), recorded(Protocol(), out, PLANNED) as first:
        first.begins("late", "maps")
        ((_, lives),) = known_runs()
        assert lives
        with recorded(Protocol(name="other"), out, []) as second:
            second.begins("late", "maps")
            assert second.path is None and saved().protocol == "own"
        raise StoreError("the disk is full.\nAnd more.")
    ((found, lives),) = known_runs()
    assert found.ended == "the disk is full." and not lives
    words = found.told(lives)
    assert "the disk is full., last heard of" in words and "run the same command to go on" in words


def test_a_disk_that_takes_nothing_does_not_end_a_run(tmp_path, monkeypatch):
    def full(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunRecord, "save", full)
    with recorded(Protocol(), tmp_path / "out", PLANNED) as recorder:
        recorder.begins("late", "maps")
    assert recorder.parts["late", "maps"].state == "done" and known_runs() == []


def test_no_such_run_and_a_broken_record_are_one_line(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in ((), ("out",), ("demo",)):
        found = biasgym("status", *words)
        assert found.returncode == 1 and len(found.stderr.splitlines()) == 1
        assert "run must be one that was begun with this cache folder" in found.stderr
    missing = biasgym("status", "gone.toml")
    assert missing.returncode == 1 and "protocol must exist" in missing.stderr
    assert not cache.exists()
    with recorded(Protocol(), tmp_path / "out", PLANNED):
        pass
    (path,) = (cache / "runs").glob("*.json")
    path.write_text(path.read_text().replace("finished", "ended"))
    broken = biasgym("status")
    assert broken.returncode == 1 and "got none" in broken.stderr
    with recorded(Protocol(), tmp_path / "out", PLANNED):
        pass
    whole = biasgym("status")
    assert whole.returncode == 0 and "finished" in whole.stdout, "what is broken hides nothing"


def test_a_record_is_read_as_it_was_written(tmp_path):
    part = Part(bias="late", stage="maps", planned=1.5, made=3, of=6, began=2.0, state="now")
    one = RunRecord(
        protocol="x", model="m", out="", host="h", began=1.0, saved=2.0, parts=(part,)
    )  # fmt: skip
    assert RunRecord.load(one.save(tmp_path / "x.json")) == one and part.share == 0.5
    assert dataclasses.replace(one, parts=()).left == 0 == len(Recorder(one, None).path or "")
    assert module.SECONDS >= 1
