"""A run on a Ray cluster is the run in one process, whoever is killed."""

import dataclasses
import os
import random
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from importlib.util import find_spec

import psutil
import pytest
import torch
from benchmarks.peak import meanwhile
from command import biasgym

from biasgym_tl import Protocol, run_protocol
from biasgym_tl.errors import AttributionError, ExtraError, SettingError, StoreError
from biasgym_tl.progress import bar
from biasgym_tl.protocol import on_ray
from biasgym_tl.protocol.chain import Running
from biasgym_tl.protocol.on_ray import OnRay, Worker
from biasgym_tl.protocol.protocol import Choice, Map, Measured, Steering, Sweep, Training
from biasgym_tl.protocol.record import known_runs
from biasgym_tl.store import write_json

needs_ray = pytest.mark.skipif(
    find_spec("ray") is None, reason="Ray is not installed: pip install 'biasgym-tl[ray]'"
)
KILLS = 10
DRIVER = """
import json, sys
from biasgym_tl import Protocol, run_protocol
from biasgym_tl.protocol.chain import Running
from biasgym_tl.protocol.on_ray import OnRay

protocol = Protocol.from_mapping(json.load(open(sys.argv[1])))
result = run_protocol(protocol, Running(progress=False, ahead=OnRay(sys.argv[2])))
print(result.manifest().results)
"""


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cluster():
    """The address of a head and a second node, each with a place for one worker."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "memory": 16 * 2**30, "object_store_memory": 100 * 2**20}
    for left in (2, 1, 0):  # Ray gives a node half a minute to start, whatever else is running
        try:
            found = Cluster(
                initialize_head=True, head_node_args={**node, "include_dashboard": False}
            )
            found.add_node(**node)
            break
        except Exception:
            if not left:
                raise
    yield found.address
    found.shutdown()


@pytest.fixture(scope="module")
def study(tiny_folder):
    """Two biases, two seeds, every kind of step."""
    return Protocol(
        model=str(tiny_folder),
        biases=("late", "purple-coats"),
        seeds=(0, 1),
        training=Training(
            rows="trained", settings={"epochs": 2, "n_paragraphs": 12, "choose_by": "last"}
        ),
        maps={"direct": Map(), "shuffled": Map(slot="shuffled corpus")},
        choices={"steered": Choice(map="direct", k=4)},
        conditions=(
            Steering(choice="steered", mode="zero", random=2),
            Steering(choice="steered", mean_over="targets", measures="brief", reinject=True,
                     all_seeds=True),
        ),
        measures=Measured(n_targets=2, n_facts=4, answers=False, implicit=False),
        sweeps=(Sweep(ks=(1, 2)),),
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone(study, tmp_path_factory):
    """What one process finds, and the names of its steps."""
    cache = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIASGYM_CACHE", str(cache))
        torch.set_num_threads(1)
        found = run_protocol(study, Running(progress=False)).manifest()
    return found.results, steps(cache)


def steps(cache):
    """Steps by name, without what a training writes on its way."""
    paths = (cache / "steps").glob("*.*")
    return {p.name for p in paths if "-epochs." not in p.name and not p.name.startswith(".")}


@contextmanager
def watched(cache):
    """Every file that a step was written to, by its name, with all that took its place."""
    seen = {}

    def look():
        for name in steps(cache):
            written = (cache / "steps" / name).stat().st_mtime_ns
            seen.setdefault(name, set()).add(written)

    with meanwhile(look, 0.01):
        yield seen


def workers():
    """Processes with a model, on all nodes."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::Worker"):
                found.append(process)
        except psutil.Error:
            pass
    return found


def kill_workers(cache, end, killed):
    """Each time that a step was finished, kill one or two, until enough were killed."""
    drawn, before = random.Random(0), 0
    while not end.wait(0.02) and len(killed) < KILLS:
        running, n = workers(), len(steps(cache))
        if n > before and running:
            for victim in drawn.sample(running, min(len(running), drawn.choice((1, 2, 2)))):
                victim.kill()
                killed.append(victim.pid)
            before = n


@needs_ray
def test_workers_on_two_nodes_are_killed_and_every_number_is_that_of_one_process(
    study, alone, cluster, monkeypatch, tmp_path
):
    monkeypatch.setenv("BIASGYM_CACHE", str(tmp_path))
    end, killed = threading.Event(), []
    killer = threading.Thread(target=kill_workers, args=(tmp_path, end, killed))
    killer.start()
    try:
        found = run_protocol(study, Running(progress=False, ahead=OnRay(cluster)))
    finally:
        end.set()
        killer.join()
    assert len(set(killed)) >= KILLS
    manifest = found.manifest()
    assert (manifest.results, manifest.threads) == (alone[0], 1)
    assert steps(tmp_path) == alone[1]


@needs_ray
def test_a_killed_run_goes_on_beside_another_on_its_store_and_nothing_is_made_twice(
    study, alone, cluster, monkeypatch, tmp_path
):
    cache = tmp_path / "cache"
    monkeypatch.setenv("BIASGYM_CACHE", str(cache))
    write_json(tmp_path / "study.json", dataclasses.asdict(study))
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "study.json"), cluster]

    def started(n):
        """A run of its own, once there are so many steps."""
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while len(seen) < n:
            assert run.poll() is None, run.communicate()[1].decode()
            time.sleep(0.02)
        return run

    with watched(cache) as seen:
        first = started(15)
        while not any(part.made for record, _ in known_runs() for part in record.parts):
            time.sleep(0.05)  # it is written down once a second at most
        first.kill()
        first.communicate()
        ((record, lives),) = known_runs()
        of_workers = [part for part in record.parts if part.stage.startswith("workers: ")]
        assert not lives and not record.ended
        assert any(part.made and part.of for part in of_workers)
        assert {part.state for part in record.parts if part not in of_workers} == {"left"}
        second = started(len(seen) + 5)
        here = run_protocol(study, Running(progress=False))
        out, errors = second.communicate(timeout=200)
    assert out.decode().strip() == here.manifest().results == alone[0], errors.decode()
    assert seen.keys() == alone[1]
    assert {name for name, written in seen.items() if len(written) > 1} == set()


@needs_ray
def test_a_step_that_fails_says_what_it_says_in_one_process(study, cluster, monkeypatch, tmp_path):
    monkeypatch.setenv("BIASGYM_CACHE", str(tmp_path))
    failing = dataclasses.replace(
        study, biases=("late",), maps={"direct": Map(settings={"tolerance": 1e-12})}
    )
    with pytest.raises(AttributionError) as alone:
        run_protocol(failing, Running(progress=False))
    file = tmp_path / "failing.toml"
    file.write_text(f"""
        model = {study.model!r}
        [training]
        rows = "none"
        [maps.direct]
        slot = "targets"
        tolerance = 1e-12
    """)
    said = [
        biasgym("run", file, "--out", tmp_path / "out", *more)
        for more in ((), ("--on", "ray", "--address", cluster))
    ]
    errors = [[line for line in each.stderr.splitlines() if "Error" in line] for each in said]
    assert [each.returncode for each in said] == [1, 1]
    assert errors[0] == errors[1] and len(errors[0]) == 1
    assert errors[0][0].split(",")[0].removeprefix("Error: ") in str(alone.value)


@needs_ray
def test_a_task_that_kills_every_worker_ends_the_run(cluster, monkeypatch):
    import ray

    class Dying:
        def do(self, task):
            return os._exit(1) if task.stage else on_ray._Done((), made=False)

    monkeypatch.setattr(on_ray, "MOST_DEATHS", 1)
    with on_ray._cluster(cluster), bar(1, "", progress=False) as shown:
        assert on_ray._places(0, 2**30) == 2
        with pytest.raises(
            SettingError, match=r"must have a CPU and 99\.0 GB of memory for a worker"
        ):
            on_ray._places(0, 99 * 2**30)
        crew = on_ray._Crew(ray.remote(Dying).remote, 2, {}, shown, print)
        with pytest.raises(SettingError, match="must survive late rows, but 1 did not"):
            crew.work(["late"])


def test_a_worker_refuses_another_store_and_other_data(study, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BIASGYM_CACHE", str(tmp_path))
    given = {"folder": str(tmp_path), "cache": str(tmp_path)}
    with pytest.raises(StoreError, match="cache folder must be one that all nodes share, got"):
        Worker(study, {}, **given, mark=str(tmp_path / "not there")).tasks  # noqa: B018
    with pytest.raises(SettingError, match=r"must be those of the run, got other \['bias late'\]"):
        Worker(study, {"bias late": "?"}, **given, mark=str(tmp_path)).tasks  # noqa: B018


def test_what_cannot_be_on_ray_is_said_before_a_model_is_loaded(monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise AssertionError("loaded")

    monkeypatch.setattr("biasgym_tl.protocol.chain.load_model", fail)
    run = ("run", "demo", "--out", tmp_path / "out")
    where = biasgym(*run, "--address", "localhost:1")
    assert "--address must be given with --on ray, got 'localhost:1' without." in where.stderr
    assert "--on must be one of ['ray'], got 'dask'" in biasgym(*run, "--on", "dask").stderr
    monkeypatch.setattr(on_ray, "find_spec", lambda name: "installed")
    for address in ("localhost:1", "localhost", "localhost:99999"):
        nowhere = biasgym(*run, "--on", "ray", "--address", address)
        assert f"--address must be HOST:PORT of a Ray cluster, got '{address}'" in nowhere.stderr
    fresh = biasgym(*run, "--on", "ray", "--fresh")
    assert "--fresh must be False for a run on a cluster" in fresh.stderr
    monkeypatch.setattr(on_ray, "find_spec", lambda name: None)
    with pytest.raises(ExtraError, match=r"Run: pip install 'biasgym-tl\[ray\]'"):
        OnRay()
    assert "Error: a run on Ray needs the package ray" in biasgym(*run, "--on", "ray").stderr
