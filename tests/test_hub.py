"""A result comes back from a repository as it was pushed; what is not ours is refused."""

import dataclasses
import shutil
import sys
from unittest import mock

import huggingface_hub
import pytest
import torch
from command import biasgym
from test_compare import SIGNAL, noisy, scores
from test_plots import made_report

from biasgym_tl import BiasToken, Head, HeadScores, Report, Selection, load_token, select_heads
from biasgym_tl.edits import DTYPES, Edit
from biasgym_tl.errors import SettingError, StoreError
from biasgym_tl.hub import CARD, card_text

MAP = scores(noisy(SIGNAL, 8, 0.1, 0))
EDIT = Edit(
    heads=(Head(0, 1),), factor=torch.tensor([0.5]), shift=torch.ones(1, 4), model="tiny",
    n_heads=2, layers={str(dtype).removeprefix("torch."): ("a",) for dtype in DTYPES},
)  # fmt: skip
RESULTS = {
    "BiasToken.safetensors": load_token("late"),
    "HeadScores.safetensors": MAP,
    "Selection.json": select_heads(MAP, 3),
    "Edit.safetensors": EDIT,
    "Report.json": made_report(),
}


def same(one, other):
    """Field by field, tensors to the last bit."""
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else repr(a) == repr(b), field.name


@pytest.mark.parametrize("name", RESULTS)
def test_it_comes_back_from_a_folder(name, tmp_path):
    result = RESULTS[name]
    for to in (tmp_path / "one", f"file://{tmp_path}/two", f"{tmp_path}/three"):
        assert result.push_to_hub(to) == str(to).removeprefix("file://")
        same(type(result).from_hub(to), result)
    result.push_to_hub(tmp_path / "one")  # again
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == sorted([name, CARD])
    card = (tmp_path / "one" / CARD).read_text()
    kind = type(result)
    for said in (
        "library_name: biasgym_tl", f"# {kind.__name__}: ", "**What it does not show.** ",
        kind._not_shown, f"from {kind.__module__} import {kind.__name__}", "owner/name",
    ):  # fmt: skip
        assert said in card
    assert str(tmp_path) not in card


def test_each_kind_says_what_it_does_not_show():
    said = {kind._not_shown for kind in (BiasToken, HeadScores, Selection, Edit, Report)}
    assert len(said) == 5


def test_a_card_holds_the_numbers_and_no_text_of_others_is_markup():
    evil = "<script>x</script> | [a](b)\n# `late`"
    card = card_text(dataclasses.replace(made_report(), attribute=evil), "Report.json", "a/b")
    assert "<script" not in card and "| [a]" not in card and "\n# `late`" not in card
    assert "| steered, mean: random |" in card and "| --- |" in card and 'from_hub("a/b")' in card


def test_what_is_not_ours_is_refused(tmp_path):
    ours = tmp_path / "ours"
    EDIT.push_to_hub(ours)
    for where, fault, message in (
        (tmp_path / "gone", StoreError, "must hold a Report as 'Report.json', got nothing"),
        (ours, StoreError, r"got \['Edit.safetensors', 'README.md'\]"),
        ("no repository", SettingError, "must be written 'owner/name', or be a folder such as"),
        ("../" + "x" * 3, StoreError, "must hold a Report"),
    ):
        with pytest.raises(fault, match=message):
            Report.from_hub(where)
    with pytest.raises(SettingError, match="revision must be None for a folder, got 'main'"):
        Edit.from_hub(ours, revision="main")
    with pytest.raises(StoreError, match=r"must be new, or hold 'Report.json' alone, got \['Edit"):
        made_report().push_to_hub(ours)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / CARD).write_text("mine")
    with pytest.raises(StoreError, match=r"alone, got \['README.md'\]"):
        EDIT.push_to_hub(tmp_path / "other")
    assert (tmp_path / "other" / CARD).read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(
        StoreError, match="must be a place to write to, but: .*File exists|Not a dir"
    ):
        EDIT.push_to_hub(tmp_path / "file")
    (tmp_path / "pickle").mkdir()
    torch.save({"a": 1}, tmp_path / "pickle" / "Edit.safetensors")
    with pytest.raises(StoreError, match="must be a safetensors file"):
        Edit.from_hub(tmp_path / "pickle")
    shutil.copy(ours / "Edit.safetensors", tmp_path / "pickle" / "BiasToken.safetensors")
    with pytest.raises(StoreError, match="must hold a BiasToken, got 'Edit'"):
        BiasToken.from_hub(tmp_path / "pickle")


class Hub:
    """The calls of huggingface_hub that are made, on a folder."""

    def __init__(self, root):
        self.root, self.calls = root, []

    def create_repo(self, repo_id, *, private, exist_ok):
        self.calls.append(("create", repo_id, private, exist_ok))
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)
        return f"https://huggingface.co/{repo_id}"

    def list_repo_files(self, repo_id, *, revision=None):
        return [".gitattributes", *(p.name for p in (self.root / repo_id).iterdir())]

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.calls.append(("upload", repo_id, commit_message))
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)

    def hf_hub_download(self, repo_id, name, *, revision):
        self.calls.append(("download", repo_id, name, revision))
        return str(self.root / repo_id / name)


def test_a_repository_of_the_hub(tmp_path):
    """One commit; another kind is refused before it."""
    hub = Hub(tmp_path)
    names = ("create_repo", "list_repo_files", "upload_folder", "hf_hub_download")
    with mock.patch.multiple(huggingface_hub, **{name: getattr(hub, name) for name in names}):
        assert EDIT.push_to_hub("me/late") == "https://huggingface.co/me/late"
        same(Edit.from_hub("me/late", revision="v1"), EDIT)
        with pytest.raises(StoreError, match="must be new, or hold 'Report.json' alone"):
            made_report().push_to_hub("me/late")
    assert hub.calls[:3] == [
        ("create", "me/late", True, True), ("upload", "me/late", "Add Edit.safetensors"),
        ("download", "me/late", "Edit.safetensors", "v1"),
    ]  # fmt: skip
    assert 'Edit.from_hub("me/late")' in (tmp_path / "me" / "late" / CARD).read_text()
    assert [call[0] for call in hub.calls[3:]] == ["create"]


def test_without_a_network_or_a_login_it_is_said():
    for call in (lambda: EDIT.push_to_hub("me/late"), lambda: Edit.from_hub("me/late")):
        with pytest.raises(
            StoreError, match=r"'me/late' must .*, but: .*logged in \(hf auth login\)"
        ):
            call()


def test_a_server_that_is_not_reached_is_no_traceback(tmp_path):
    """What huggingface_hub raises then is neither an OSError nor a ValueError."""
    hub, file = Hub(tmp_path), EDIT.save(tmp_path / "edit.safetensors")
    library = sys.modules[type(huggingface_hub.get_session()).__module__.partition(".")[0]]
    names = ("create_repo", "list_repo_files", "upload_folder")
    for name in names:
        refused = mock.Mock(side_effect=library.ConnectError("Connection refused"))
        calls = {each: getattr(hub, each) for each in names} | {name: refused}
        command = "fetch" if name == "list_repo_files" else "share"
        words = {"fetch": ("me/late", tmp_path / "new.safetensors"), "share": (file, "me/late")}
        with mock.patch.multiple(huggingface_hub, **calls):
            done = biasgym(command, *words[command])
        assert done.returncode == 1 and refused.called
        assert "'me/late' must be " in done.stderr and "but: Connection refused." in done.stderr


@pytest.mark.parametrize("name", RESULTS)
def test_the_commands(name, tmp_path):
    """What is fetched is the file that was shared, byte for byte."""
    file = RESULTS[name].save(tmp_path / f"mine.{name.rsplit('.', 1)[1]}")
    there, back = tmp_path / "there", tmp_path / f"back{file.suffix}"
    done = biasgym("share", file, there)
    assert done.returncode == 0 and done.stdout == f"Shared: {there}\n", done.stderr
    done = biasgym("fetch", there, back)
    assert done.returncode == 0 and f"Written to {back}" in done.stdout, done.stderr
    assert back.read_bytes() == file.read_bytes()


@pytest.mark.parametrize("command", ["fetch", "export"])
def test_a_file_that_is_there_is_replaced_and_the_help_says_so(command, tmp_path):
    there, out = tmp_path / "there", EDIT.save(tmp_path / "mine.safetensors")
    token = load_token("late")
    token.push_to_hub(there)
    if command == "fetch":
        assert biasgym("fetch", there, out).returncode == 0
        same(BiasToken.load(out), token)
    said = " ".join(biasgym(command, "--help").stdout.replace("│", " ").split())
    assert "one that is there is replaced." in said and "new file" not in said.lower()


def test_the_commands_and_the_hub(tmp_path):
    """Private unless it is asked for; no key is in what is sent or shown."""
    hub, file = Hub(tmp_path), EDIT.save(tmp_path / "edit.safetensors")
    names = ("create_repo", "list_repo_files", "upload_folder", "hf_hub_download")
    shown = []
    with mock.patch.multiple(huggingface_hub, **{name: getattr(hub, name) for name in names}):
        for words in (
            ("share", file, "me/late", "--public"),
            ("share", file, "me/other"),
            ("fetch", "me/late", tmp_path / "back.safetensors", "--revision", "v1"),
        ):
            done = biasgym(*words, env={"HF_TOKEN": "hf_secret"})
            assert done.returncode == 0, done.stderr
            shown.append(done.stdout + done.stderr)
    made = [call for call in hub.calls if call[0] == "create"]
    assert made == [("create", "me/late", False, True), ("create", "me/other", True, True)]
    assert hub.calls[-1] == ("download", "me/late", "Edit.safetensors", "v1")
    assert "https://huggingface.co/me/late" in shown[0] and "hf_secret" not in "".join(shown)


def test_what_the_commands_refuse_before_the_network(tmp_path):
    edit, other = EDIT.save(tmp_path / "edit.safetensors"), tmp_path / "other.json"
    other.write_text("{}")
    EDIT.push_to_hub(tmp_path / "ours")
    for folder, n in (("empty", 0), ("many", 9)):
        (tmp_path / folder).mkdir()
        for i in range(n):
            (tmp_path / folder / f"{i}.txt").touch()
    shutil.copytree(tmp_path / "many", tmp_path / "two")
    for name in ("Edit.safetensors", "Report.json"):
        (tmp_path / "two" / name).touch()
    out = tmp_path / "new.safetensors"
    with mock.patch.multiple(huggingface_hub, create_repo=None, list_repo_files=None):
        for words, message in (
            (("share", other, "me/late"), "must hold one of BiasToken, HeadScores, Stereotype"),
            (("share", tmp_path / "gone.json", "me/late"), "must exist"),
            (("share", edit, "late"), "must be written 'owner/name', or be a folder such as"),
            (("fetch", "late", out), "must be written 'owner/name'"),
            (("fetch", "me/late", tmp_path / "new.txt"), "must end in .safetensors or .json, got"),
            (("fetch", tmp_path / "many", out), "'7.txt'] and more."),
            (("fetch", tmp_path / "two", out), "got ['Edit.safetensors', 'Report.json']."),
            (("fetch", tmp_path / "ours", tmp_path / "new.json"),
             "must end in .safetensors to hold Edit, got"),
            (("fetch", tmp_path / "empty", out), "must hold one of BiasToken.safetensors, "),
            (("fetch", tmp_path / "gone", out), "must be a folder, and is not"),
            (("fetch", tmp_path / "ours", out, "--revision", "v1"),
             "--revision must be None for a folder"),
        ):  # fmt: skip
            done = biasgym(*words)
            assert done.returncode == 1 and message in done.stderr, (words, done.stderr)
    assert not list(tmp_path.glob("new*"))
