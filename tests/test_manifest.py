"""The files of a run come into their folder together: killed at any step, one run is there."""

import json
import os
import subprocess
import sys

import pytest

from biasgym_tl.errors import StoreError
from biasgym_tl.manifest import Manifest, settle, write_results

FIRST, SECOND = ("a", "b", "random"), ("a", "b", "c")
CODE = """
import os, sys
from pathlib import Path
from biasgym_tl.manifest import Manifest, write_results

def run(folder, which, names):
    manifest = Manifest(command="run", settings={}, inputs={}, results=which)
    write_results(folder, lambda to: [(to / name).write_text(which) for name in names], manifest)

def killed_at(step, folder):
    steps = iter(range(step))
    def counted(call):
        def do(*args, **kwargs):
            if next(steps, None) is None:
                os._exit(9)
            return call(*args, **kwargs)
        return do
    for name in ("replace", "rename", "unlink", "rmdir", "open", "mkdir", "scandir"):
        setattr(os, name, counted(getattr(os, name)))
    run(folder, "2", "abc")
    os._exit(0)

for step in range(100):
    folder = Path(sys.argv[1]) / str(step)
    run(folder, "1", ["a", "b", "random"])
    (folder / "notes").write_text("mine")
    child = os.fork()
    if not child:
        killed_at(step, folder)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
"""


def written(folder, which, names):
    manifest = Manifest(command="run", settings={}, inputs={}, results=which)
    write_results(folder, lambda to: [(to / name).write_text(which) for name in names], manifest)


def files(folder):
    found = {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}
    manifest = found.pop("manifest.json", None)
    return found, manifest and json.loads(manifest)["results"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BIASGYM_CACHE", str(tmp_path / "cache"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_second_run_killed_at_any_step_leaves_the_first_or_the_second(tmp_path):
    subprocess.run([sys.executable, "-c", CODE, str(tmp_path / "out")], check=True, timeout=300)
    folders = sorted((tmp_path / "out").iterdir(), key=lambda path: int(path.name))
    ends = []
    for folder in folders:
        found, run = files(folder)
        if run is not None:  # with a manifest all files are those of its run
            assert found == dict.fromkeys(FIRST if run == "1" else SECOND, run) | {"notes": "mine"}
        settle(folder)
        found, run = files(folder)
        assert found == dict.fromkeys(FIRST if run == "1" else SECOND, run) | {"notes": "mine"}
        ends.append(run)
        written(folder, "3", "a")
        assert files(folder) == ({"a": "3", "notes": "mine"}, "3")
        assert {path.name for path in folder.iterdir()} == {"a", "notes", "manifest.json"}
    assert ends == sorted(ends) and ends.count("1") > 5 and ends.count("2") > 5


def test_only_files_that_a_run_wrote_and_nobody_changed_go(tmp_path):
    out, other = tmp_path / "out", tmp_path / "other"
    other.write_text("1")
    written(out, "1", ["a", "b", "c"])
    (out / "b").write_text("changed")
    record = json.loads((out / "manifest.json").read_text())
    record["files"]["../other"] = record["files"]["a"]  # by somebody who means harm
    (out / "manifest.json").write_text(json.dumps(record))
    written(out, "2", ["c"])
    assert files(out) == ({"b": "changed", "c": "2"}, "2") and other.exists()
    (out / "manifest.json").write_text("[")
    written(out, "3", ["d"])
    assert files(out) == ({"b": "changed", "c": "2", "d": "3"}, "3")


def test_an_error_leaves_the_folder_as_it_was(tmp_path):
    written(tmp_path / "out", "1", FIRST)

    def fail(to):
        (to / "a").write_text("2")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_results(tmp_path / "out", fail)
    assert files(tmp_path / "out") == (dict.fromkeys(FIRST, "1"), "1")
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_a_manifest_of_other_types_is_refused(tmp_path):
    path = Manifest(command="run", settings={}, inputs={}, results="1").save(tmp_path / "m.json")
    assert Manifest.load(path).results == "1"
    record = json.loads(path.read_text())
    for wrong in ({"inputs": {"a": 1}}, {"settings": []}, {"results": None}, {"more": 1}):
        path.write_text(json.dumps({**record, **wrong}))
        with pytest.raises(StoreError, match="must hold a whole Manifest, but"):
            Manifest.load(path)


def test_a_link_in_a_handed_over_folder_is_not_followed(tmp_path):
    from biasgym_tl.manifest import settle

    private, results = tmp_path / "private", tmp_path / "results"
    private.mkdir()
    results.mkdir()
    (private / "mine.txt").write_text("mine")
    (results / ".biasgym-whole").symlink_to(private)
    with pytest.raises(StoreError, match="must be a folder of this package, got a link"):
        settle(results)
    with pytest.raises(StoreError, match="got a link"):
        write_results(results, lambda folder: (folder / "a.txt").write_text("a"))
    assert (private / "mine.txt").read_text() == "mine" and len(list(results.iterdir())) == 1
