"""Finished steps of a run, kept in the cache folder and read back instead of done again.

Every step is one file that is there whole or not at all, under a key made of all that its numbers
depend on: settings, bias, weights, versions and code.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from biasgym_tl.errors import StoreError
from biasgym_tl.injection.token import (
    BiasToken,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.prompts import policy_fingerprint
from biasgym_tl.steering.selection import Selection
from biasgym_tl.store import (
    TensorResult,
    cache_dir,
    digest,
    file_name,
    read_kind,
    versions,
    write_kind,
)

Result = TypeVar("Result")
Saved = TypeVar("Saved", bound=TensorResult)


@dataclasses.dataclass(frozen=True)
class Steps:
    """Finished steps on one model, each a file under a key of all that it uses, shared by runs."""

    folder: Path
    model: Mapping[str, Any]
    """What every step depends on, of :func:`fingerprint`."""
    fresh: bool = False
    made: set[Path] = dataclasses.field(default_factory=set)
    """What was made in this run, which ``fresh`` does not make twice."""

    @classmethod
    def of(cls, model: HookedTransformer, *, fresh: bool = False) -> Steps:
        """In the cache folder."""
        return cls(cache_dir() / "steps", fingerprint(model), fresh)

    def tensors(
        self, name: str, uses: Any, kind: type[Saved], make: Callable[[], Saved], code: str
    ) -> Saved:
        """Read back a result that holds tensors, or make and keep it.

        Args:
            name: What it is called in the folder.
            uses: All that it depends on beside the model and the code, as JSON.
            kind: Its class.
            make: Makes it.
            code: Module whose code, with what that imports, it depends on.
        """
        path = self._path(name, uses, code, "safetensors")
        return self._kept(path, kind.load, lambda found: found.save(path), make)

    def trained(
        self, name: str, uses: Any, fit: Callable[[Path | None], BiasToken], code: str
    ) -> BiasToken:
        """A row whose training goes on from its last epoch where it was interrupted."""
        path = self._path(name, uses, code, "safetensors")
        epochs = path.with_name(f"{path.stem}-epochs.safetensors")

        def train() -> BiasToken:
            if self.fresh:
                epochs.unlink(missing_ok=True)
            try:
                return fit(epochs)
            except StoreError:
                epochs.unlink(missing_ok=True)  # broken from outside; made again
                return fit(epochs)

        return self._kept(path, BiasToken.load, lambda found: found.save(path), train)

    def measured(self, name: str, uses: Any, make: Callable[[], Any], code: str) -> Any:
        """Read back numbers and texts in lists and dictionaries, or make and keep them."""
        path = self._path(name, uses, code, "json")
        key = path.stem.rsplit("-", 1)[-1]

        def read(path: Path) -> Any:
            return read_kind(path, "Step", lambda found: _value(found, key), digested=True)

        def write(found: Any) -> Path:
            return write_kind(path, "Step", {"key": key, "name": name, "value": found})

        return self._kept(path, read, write, make)

    def selection(
        self, name: str, uses: Any, make: Callable[[], Selection], code: str
    ) -> Selection:
        """Read back a ``Selection``, or make it and write it down."""
        path = self._path(name, uses, code, "json")
        return self._kept(path, Selection.load, lambda found: found.save(path), make)

    def _path(self, name: str, uses: Any, code: str, ending: str) -> Path:
        key = digest([dict(self.model), code_of(code), uses])
        short = file_name(re.sub("[ ,:]+", "-", name))[:80]
        return self.folder / f"{short}-{key}.{ending}"

    def _kept(
        self,
        path: Path,
        read: Callable[[Path], Result],
        write: Callable[[Any], object],
        make: Callable[[], Result],
    ) -> Result:
        if path.exists() and (not self.fresh or path in self.made):
            try:
                return read(path)
            except StoreError:
                # Broken from outside; made again.
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        found = make()
        write(found)
        self.made.add(path)
        return found


def _value(step: dict[str, Any], key: str) -> Any:
    """What a step holds, if it is the one of this key and its checksum was found to be right."""
    if step["key"] != key:
        raise StoreError(f"it is the step {step['key']!r}, not {key!r}")
    return step["value"]


def fingerprint(model: HookedTransformer) -> dict[str, Any]:
    """What every step depends on: weights, configuration, tokenizer, versions."""
    return {
        "weights": weights_fingerprint(model),
        "cfg": {key: str(value) for key, value in model.cfg.to_dict().items()},
        "tokenizer": tokenizer_fingerprint(model),
        "text": policy_fingerprint(model),
        "versions": versions(),
    }


def named_inputs(model: HookedTransformer, **read: Any) -> dict[str, str]:
    """Fingerprints of the model, of the code, and of whatever else was read, by name."""
    parts = {**fingerprint(model), "code": code_fingerprint(), **read}
    ours = ("versions", "code")
    return {
        name if name in read or name in ours else f"model {name}": digest(value)
        for name, value in parts.items()
    }


@cache
def code_fingerprint() -> str:
    """Hash of the files that compute, so that what changed code would give is never read back."""
    package = Path(str(resources.files("biasgym_tl")))
    files = sorted(
        path
        for path in package.rglob("*")
        if path.suffix in (".py", ".toml", ".safetensors")
        and "cli" not in path.parts
        and "plots" not in path.parts
    )
    return digest(b"".join(path.read_bytes() for path in files))


def code_of(module: str) -> str:
    return code_fingerprint()
