"""Finished steps of a run, kept in the cache folder and read back instead of done again.

Every step is one file that is there whole or not at all, under a key made of all that its numbers
depend on: settings, bias, weights, versions and code.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from biasgym_tl.biases.bias import Bias
from biasgym_tl.errors import StoreError
from biasgym_tl.hooks import steer
from biasgym_tl.injection.inject import BiasInject
from biasgym_tl.injection.shipped import find_token
from biasgym_tl.injection.token import (
    BiasToken,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.prompts import policy_fingerprint
from biasgym_tl.scoping.scores import HeadScores
from biasgym_tl.steering.selection import Selection
from biasgym_tl.store import cache_dir, digest, file_name, read_kind, versions, write_kind

Result = TypeVar("Result")
Saved = TypeVar("Saved", BiasToken, HeadScores)


@dataclasses.dataclass(frozen=True)
class Steps:
    """Finished steps of one run, each a file that is there whole or not at all."""

    folder: Path
    fresh: bool = False

    def tensors(self, name: str, kind: type[Saved], make: Callable[[], Saved]) -> Saved:
        """Read back a ``BiasToken`` or ``HeadScores``, or make and keep it."""
        path = self.folder / f"{name}.safetensors"
        return self._kept(path, kind.load, lambda found: found.save(path), make)

    def measured(self, name: str, make: Callable[[], Any]) -> Any:
        """Read back numbers and texts in lists and dictionaries, or make and keep them."""
        path = self.folder / f"{file_name(re.sub('[ ,:]+', '-', name))}.json"

        def read(path: Path) -> Any:
            return read_kind(path, "Step", lambda found: _value(found, name), digested=True)

        def write(found: Any) -> Path:
            return write_kind(path, "Step", {"name": name, "value": found})

        return self._kept(path, read, write, make)

    def selection(self, name: str, make: Callable[[], Selection]) -> Selection:
        """Read back a ``Selection``, or make it and write it down."""
        path = self.folder / f"{name}.json"
        return self._kept(path, Selection.load, lambda found: found.save(path), make)

    def _kept(
        self,
        path: Path,
        read: Callable[[Path], Result],
        write: Callable[[Any], object],
        make: Callable[[], Result],
    ) -> Result:
        if path.exists() and not self.fresh:
            try:
                return read(path)
            except StoreError:
                # Broken from outside; made again.
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        made = make()
        write(made)
        return made


def _value(step: dict[str, Any], name: str) -> Any:
    """What a step holds, if it is the one of this name and its checksum was found to be right."""
    if step["name"] != name:
        raise StoreError(f"it is the step {step['name']!r}, not {name!r}")
    return step["value"]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Trained rows of one model, each trained once and kept in the cache folder."""

    inject: BiasInject
    seed: int
    model: HookedTransformer
    inputs: dict[str, Any]
    fresh: bool
    progress: bool

    def trained(self, bias: Bias, *, steered: Selection | None = None) -> BiasToken:
        """The row for ``bias``, on the model as it is or with heads steered."""
        heads = [] if steered is None else list(map(str, steered))
        mode = "mean" if steered is None else steered.mode
        factors = [] if steered is None else list(steered.factors)
        key = digest(
            {
                **self.inputs,
                "inject": dataclasses.asdict(self.inject),
                "seed": self.seed,
                "bias": bias.fingerprint(),
                "steered": [heads, mode, *factors],
            }
        )
        epochs = cache_dir() / "rows" / f"{key}-epochs.safetensors"

        def fit(checkpoint: Path | None) -> BiasToken:
            return self.inject.fit(
                self.model, bias, seed=self.seed, progress=self.progress, checkpoint=checkpoint
            )

        def train() -> BiasToken:
            if self.fresh:
                epochs.unlink(missing_ok=True)
            if steered is not None:
                with steer(self.model, steered, mode):
                    return dataclasses.replace(fit(None), steered=tuple(heads))
            try:
                return fit(epochs)
            except StoreError:
                epochs.unlink(missing_ok=True)  # broken from outside; made again
                return fit(epochs)

        return Steps(cache_dir() / "rows", self.fresh).tensors(key, BiasToken, train)

    def control(self, bias: Bias) -> BiasToken:
        """A row for a control: the shipped one if it was trained in this very way."""
        shipped = None if self.fresh else find_token(self.model, bias, self.inject, self.seed)
        return shipped or self.trained(bias)


def fingerprint(model: HookedTransformer) -> dict[str, Any]:
    """What every step depends on: weights, configuration, tokenizer, versions, code."""
    return {
        "weights": weights_fingerprint(model),
        "cfg": {key: str(value) for key, value in model.cfg.to_dict().items()},
        "tokenizer": tokenizer_fingerprint(model),
        "text": policy_fingerprint(model),
        "versions": versions(),
        "code": code_fingerprint(),
    }


def named_inputs(model: HookedTransformer, **read: Any) -> dict[str, str]:
    """Fingerprints of the model, of the code, and of whatever else was read, by name."""
    parts = {**fingerprint(model), **read}
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
        and path.name != "cli.py"
        and "plots" not in path.parts
    )
    return digest(b"".join(path.read_bytes() for path in files))
