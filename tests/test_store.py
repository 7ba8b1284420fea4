"""A file is there whole or not at all; what is read back is what was written, or it is refused."""

import copy
import dataclasses
import errno
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl import files, store
from biasgym_tl.errors import BiasFileError, SettingError, StoreError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thing(store.Result):
    """A result with one of each kind of field."""

    row: Float[Tensor, " d"]
    rows: Float[Tensor, "n d"]
    bias: Float[Tensor, " n"] | None = None
    names: tuple[str, ...]
    pairs: tuple[tuple[str, float], ...] = ()
    seed: int
    settings: dict[str, object]


THING = Thing(
    row=torch.randn(3), rows=torch.randn(2, 3), names=("a", "é"), pairs=(("b", 0.1),), seed=1,
    settings={"lr": 1e-3, "deep": [[1, None], {"k": 10}]},
)  # fmt: skip


def equal(one, other):
    tensors = ("row", "rows")
    rest = [{k: v for k, v in vars(x).items() if k not in tensors} for x in (one, other)]
    return rest[0] == rest[1] and all(
        torch.equal(getattr(one, k), getattr(other, k)) for k in tensors
    )


def loaded(path):
    """The result, or None where it is refused."""
    try:
        return Thing.load(path)
    except StoreError:
        return None


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
    path = files.write_text(tmp_path / "a.txt", "old")

    def fail(to):
        to.write_text("half")
        raise OSError(errno.ENOSPC, "disk full")

    with pytest.raises(OSError, match="disk full: '.*a.txt'"):
        files.write_atomically(path, fail)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX")
def test_a_killed_writer_leaves_no_half_file(tmp_path):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from biasgym_tl.files import write_atomically\n"
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
    class Kept(store.Result):
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


def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path):
    path, rng = THING.save(tmp_path / "thing"), random.Random(0)
    raw = path.read_bytes()
    assert equal(Thing.load(path), THING)
    numbers = range(len(raw) - 4 * (3 + 6), len(raw))
    refused = 0
    for i in range(1200):
        broken, at = bytearray(raw), numbers[i] if i < len(numbers) else rng.randrange(len(raw))
        broken[at] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        found = loaded(path)
        assert found is None or (at not in numbers and equal(found, THING))
        refused += found is None
    assert refused > 1150
    for n in range(0, len(raw), 7):
        path.write_bytes(raw[:n])
        assert loaded(path) is None


def places(value, path=()):
    """Where something stands in a JSON value."""
    listed = enumerate(value) if isinstance(value, list) else ()
    for key, part in value.items() if isinstance(value, dict) else listed:
        yield (*path, key)
        yield from places(part, (*path, key))


OTHERS = (None, True, 3, -1.5, "x", [], {}, [[1]], {"a": 1}, float("nan"), 10**30)


def with_other(record, place, other):
    record = copy.deepcopy(record)
    *above, last = place
    at = record
    for key in above:
        at = at[key]
    at[last] = other
    return record


def test_other_types_and_shapes_are_refused_though_the_checksum_is_right(tmp_path):
    path = THING.save(tmp_path / "thing")
    tensors, record = store.load_result(path, "Thing")
    refused = 0
    for place in places(record):
        for other in OTHERS:
            store.save_result(path, "Thing", tensors, with_other(record, place, other))
            found = loaded(path)
            refused += found is None
            if found is not None:
                assert isinstance(found.seed, int) and isinstance(found.settings, dict)
                assert all(isinstance(name, str) for name in found.names)
    assert refused > 60
    for name, tensor in (
        ("row", torch.zeros(4)),
        ("rows", torch.zeros(3)),
        ("row", torch.ones(3).int()),
        ("more", torch.ones(1)),
    ):
        store.save_result(path, "Thing", {**tensors, name: tensor}, record)
        with pytest.raises(StoreError, match="must hold a whole Thing of this version"):
            Thing.load(path)
    store.save_result(path, "Thing", {"row": tensors["row"]}, record)
    with pytest.raises(StoreError, match="must hold a whole Thing of this version.*'rows'"):
        Thing.load(path)
    store.save_result(path, "Thing", tensors, {**record, "seed": "1"})
    with pytest.raises(
        StoreError, match="seed is not as declared: Input should be a valid integer"
    ):
        Thing.load(path)
    store.save_result(path, "Thing", tensors, {**record, "more": 1})
    with pytest.raises(StoreError, match=r"Thing must hold only its fields, got \['more'\]"):
        Thing.load(path)


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a result."""

    n: int


@dataclasses.dataclass(frozen=True)
class Whole(store.Result):
    """A result without tensors."""

    first: Part
    parts: tuple[Part, ...]


def test_a_result_without_tensors_is_json_down_to_its_parts(tmp_path):
    whole = Whole(Part(1), (Part(2), Part(3)))
    path = whole.save(tmp_path / "whole.json")
    assert Whole.load(path) == whole and store.kind_of(path) == "Whole"
    record = store.read_json(path)
    del record["digest"]
    for other, message in (
        ({"first": {"n": 1, "m": 2}}, "first.m is not as declared: Unexpected keyword argument"),
        ({"parts": [{"n": "1"}]}, "parts.0.n is not as declared: Input should be a valid integer"),
        ({"more": 1}, r"Whole must hold only its fields, got \['more'\]"),
    ):
        store.write_json(path, {**record, **other})
        with pytest.raises(StoreError, match=f"must hold a whole Whole, but: {message}"):
            Whole.load(path)


def test_json_of_a_kind_is_refused_where_it_was_changed(tmp_path):
    path = store.write_kind(tmp_path / "a.json", "Step", {"value": [1.5, {"a": (2,)}], "n": 1})
    read = lambda: store.read_kind(path, "Step", lambda values: values)  # noqa: E731
    assert read() == {"value": [1.5, {"a": [2]}], "n": 1}
    record = json.loads(path.read_text())
    for place in places(record):
        for other in OTHERS:
            changed = with_other(record, place, other)
            path.write_text(json.dumps(changed))
            if json.dumps(changed) != json.dumps(record):
                with pytest.raises(StoreError, match="must hold a (whole )?Step"):
                    read()
    path.write_text(json.dumps({**record, "n": 2}))
    with pytest.raises(StoreError, match="not as it was written, by its checksum. If that was you"):
        read()
    del record["digest"]  # by somebody who says so
    path.write_text(json.dumps({**record, "n": 2}))
    assert read()["n"] == 2
    path.write_text("[" * 100_000)
    with pytest.raises(StoreError, match="must be JSON, but is not"):
        read()


@pytest.mark.parametrize("mask", [0o077, 0o022, 0o002])
def test_a_new_file_has_the_permissions_of_the_umask_and_an_old_one_keeps_its_own(tmp_path, mask):
    before = os.umask(mask)
    try:
        new = store.write_json(tmp_path / "new" / "a.json", {})
        result = THING.save(tmp_path / "new" / "thing")
        folder = files.write_folder_atomically(tmp_path / "folder", lambda to: None)
        kept = {}
        for mode in (0o600, 0o640, 0o664, 0o444):
            path = tmp_path / f"{mode}.json"
            path.write_text("{}")
            path.chmod(mode)
            kept[mode] = store.write_json(path, {"new": 1})
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (new, result)} == {0o666 & ~mask}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (new.parent, folder)} == {0o777 & ~mask}
    for mode, path in kept.items():
        assert stat.S_IMODE(path.stat().st_mode) == mode and json.loads(path.read_text())


def test_a_link_is_replaced_and_what_it_points_to_is_left_alone(tmp_path):
    other = tmp_path / "other"
    other.write_text("theirs")
    (tmp_path / "a.txt").symlink_to(other)
    files.write_text(tmp_path / "a.txt", "ours")
    assert other.read_text() == "theirs" and (tmp_path / "a.txt").read_text() == "ours"


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from biasgym_tl import files\n"
        "here = Path(sys.argv[1])\n"
        "def dies(to):\n    (to / 'half').write_text('x') if to.is_dir() else to.write_text('x')\n"
        "    os._exit(9) if to.is_dir() else files.write_folder_atomically(here / 'folder', dies)\n"
        "files.write_atomically(here / 'file', dies)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == 9
    assert len(list(tmp_path.glob(".biasgym-*.tmp"))) == 2
    own = tmp_path / f".biasgym-{files._host()}-{os.getpid()}-00000000.tmp"
    elsewhere = tmp_path / ".biasgym-elsewhere-1-00000000.tmp"
    old = tmp_path / ".biasgym-elsewhere-1-00000001.tmp"
    for path in (own, elsewhere, old):
        path.write_text("x")
    os.utime(old, (time.time() - 90_000,) * 2)
    files.write_text(tmp_path / "next", "x")
    assert {path.name for path in tmp_path.iterdir()} == {"next", own.name, elsewhere.name}


def test_a_folder_is_filled_where_it_is(tmp_path, monkeypatch):
    write = lambda to: (to / "a").write_text("x")  # noqa: E731
    files.write_folder_atomically(tmp_path / "new" / "folder", write)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    assert files.write_folder_atomically(tmp_path / "link", write).is_symlink()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    files.write_folder_atomically(files.Path("."), write)
    assert os.listdir(".") == ["a"]  # of the folder that the process stands in
    for folder in ("new/folder", "empty", "here"):
        assert os.listdir(tmp_path / folder) == ["a"]
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "file").write_text("x")
    for name in ("broken", "file", "here"):
        with pytest.raises(StoreError, match="folder must be new or empty, got"):
            files.write_folder_atomically(tmp_path / name, write)

    def fail(to):
        write(to)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_folder_atomically(tmp_path / "failed", fail)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".", "failed"))]


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\\b", ".hidden", "a b", "a\0",
                                  "a\n", "x" * 81, "\x1b[2J"])  # fmt: skip
def test_a_name_that_could_lead_elsewhere_is_refused(name):
    with pytest.raises(BiasFileError, match="thing must be 1 to 80 letters, digits, '-', '_' or"):
        store.check_name(name, "thing", BiasFileError)


def test_file_names_stay_in_their_folder_and_differ_where_their_texts_do():
    assert store.file_name("lr-0.01") == "lr-0.01" and store.file_name("später") == "später"
    texts = ["a/b", "a b", "a-b", "..", "...", "../x", "", "x" * 300, "x" * 301, "a\0b"]
    names = [store.file_name(text) for text in texts]
    assert len(set(names)) == len(texts)
    for name in names:
        store.check_name(name[:80].lstrip("-") or "x", "file name", StoreError)
        assert "/" not in name and not name.startswith(".") and len(name.encode()) < 120


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("a\ncafé".encode("latin-1"), "a.txt must be UTF-8, got the byte 0xe9 in line 2"),
        ("name".encode("utf-16"), "a.txt must be UTF-8, got the byte 0xff in line 1"),
        ("name".encode("utf-16-le"), "a.txt must be UTF-8, got the byte 0x00 in line 1"),
        ("“x”".encode("cp1252"), "got the byte 0x93 in line 1. Save it as UTF-8"),
    ],
)
def test_another_encoding_is_named_with_its_place(tmp_path, raw, message):
    (tmp_path / "a.txt").write_bytes(raw)
    with pytest.raises(BiasFileError, match=message):
        files.read_text(tmp_path / "a.txt", "text", BiasFileError)


def test_text_is_read_with_or_without_a_mark_and_with_any_ends_of_lines(tmp_path):
    for raw in ("\ufeffé\r\nb\rc\n", "é\nb\nc\n"):
        (tmp_path / "a.txt").write_bytes(raw.encode())
        assert files.read_text(tmp_path / "a.txt", "text", StoreError) == "é\nb\nc\n"
    with pytest.raises(StoreError, match="text must be readable, got .* directory"):
        files.read_text(tmp_path, "text", StoreError)
    with pytest.raises(StoreError, match="text must exist, got '.*none.txt'"):
        files.read_text(tmp_path / "none.txt", "text", StoreError)


def test_a_folder_that_cannot_be_written_is_found_and_none_is_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("nowhere")
    files.check_writable(tmp_path / "a" / "b", "--out")
    for name in ("file", "file/below", "link", "link/below"):
        with pytest.raises(SettingError, match="--out must be a folder, got .* a file or a broken"):
            files.check_writable(tmp_path / name, "--out")
    with pytest.raises(SettingError, match="--out must be a folder, got .*File name too long"):
        files.check_writable(tmp_path / ("x" * 300) / "below", "--out")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "link"}
    monkeypatch.setattr(os, "access", lambda *args: False)  # root may write everywhere
    with pytest.raises(SettingError, match="--out must be a folder that can be written to"):
        files.check_writable(tmp_path, "--out")
    monkeypatch.setenv("BIASGYM_CACHE", "~nobody-of-this-name/cache")
    with pytest.raises(SettingError, match="BIASGYM_CACHE must be a folder, got '~nobody"):
        store.cache_dir()


def test_of_several_processes_one_does_the_work_and_the_others_wait(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from biasgym_tl.locks import locked\n"
        "made = Path(sys.argv[1])\n"
        "with locked(made):\n"
        "    if not made.exists():\n"
        "        print('made', flush=True); time.sleep(0.3); made.write_text('x')"
    )
    environment = {**os.environ, "BIASGYM_CACHE": str(tmp_path / "cache")}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "made")],
            env=environment, stdout=subprocess.PIPE,
        )
        for _ in range(3)
    ]  # fmt: skip
    said = b"".join(process.communicate(timeout=120)[0] for process in running)
    assert said == b"made\n" and not any(process.returncode for process in running)
