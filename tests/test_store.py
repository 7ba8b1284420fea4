"""A file is there whole or not at all; what is read back is what was written."""

import dataclasses
import os
import signal
import subprocess
import sys

import pytest
import torch

from biasgym_tl import store
from biasgym_tl.errors import StoreError


def test_tensors_and_record_come_back(tmp_path):
    tensor = torch.randn(3, 4).T  # not contiguous
    path = store.save_result(tmp_path / "lr-0.01", "Thing", {"x": tensor}, {"a": [1, "é"]})
    tensors, record = store.load_result(tmp_path / "lr-0.01", "Thing")
    assert path.name == "lr-0.01.safetensors" and torch.equal(tensors["x"], tensor)
    assert record == {"a": [1, "é"]}


def test_equal_results_are_equal_files(tmp_path):
    tensors = {name: torch.arange(3) for name in "cab"}
    files = [
        store.save_result(tmp_path / str(i), "Thing", tensors, {"seed": 0}).read_bytes()
        for i in range(20)
    ]
    assert len(set(files)) == 1


def test_wrong_files_are_named(tmp_path):
    store.save_result(tmp_path / "thing", "Thing", {"x": torch.zeros(1)}, {})
    (tmp_path / "broken.safetensors").write_bytes(b"not tensors")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(StoreError, match="must hold a BiasToken, got 'Thing'"):
        store.load_result(tmp_path / "thing", "BiasToken")
    with pytest.raises(StoreError, match="must be a safetensors file"):
        store.load_result(tmp_path / "broken", "Thing")
    with pytest.raises(StoreError, match="must exist"):
        store.load_result(tmp_path / "none", "Thing")
    with pytest.raises(StoreError, match="must be JSON"):
        store.read_json(tmp_path / "broken.json")
    with pytest.raises(StoreError, match="must exist"):
        store.read_json(tmp_path / "none.json")


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    path = store.write_text(tmp_path / "a.txt", "old")

    def fail(to):
        to.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.write_atomically(path, fail)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX")
def test_a_killed_writer_leaves_no_half_file(tmp_path):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from biasgym_tl.store import write_atomically\n"
        "def slow(to):\n    to.write_text('half'); print('half', flush=True); time.sleep(60)\n"
        "write_atomically(Path(sys.argv[1]), slow)"
    )
    target = tmp_path / "result.json"
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout.readline() == "half\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert not target.exists()


def test_cache_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("BIASGYM_CACHE", str(tmp_path))
    assert store.cache_dir() == tmp_path
    monkeypatch.delenv("BIASGYM_CACHE")
    assert store.cache_dir().name == "biasgym_tl"


def test_a_result_of_another_version_is_refused(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Kept(store.TensorResult):
        x: torch.Tensor
        n: int

    store.save_result(tmp_path / "a", "Kept", {"x": torch.ones(2)}, {"n": 1, "m": 2})
    with pytest.raises(StoreError, match="must hold a whole Kept of this version.*'m'"):
        Kept.load(tmp_path / "a")


def test_digest_is_stable_and_sensitive():
    assert store.digest({"a": 1, "b": 2}) == store.digest({"b": 2, "a": 1})
    assert store.digest({"a": 1}) != store.digest({"a": 2})
    assert store.digest(b"x") != store.digest("x") and len(store.digest(b"x")) == 16


def test_versions_name_what_numbers_depend_on():
    assert {"python", "biasgym-tl", "torch", "transformer-lens"} <= set(store.versions())
