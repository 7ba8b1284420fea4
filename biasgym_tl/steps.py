"""Finished steps of a run, kept in the cache folder and read back instead of done again.

Every step is one file that is there whole or not at all, under a key made of all that its numbers
depend on: inputs, settings, versions, and the code that it runs.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import shutil
from collections.abc import Callable
from functools import cache
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
from biasgym_tl.steering.selection import Selection
from biasgym_tl.store import (
    Result,
    cache_dir,
    digest,
    file_name,
    read_kind,
    versions,
    write_kind,
)

Made = TypeVar("Made")
Saved = TypeVar("Saved", bound=Result)


@dataclasses.dataclass(frozen=True)
class Steps:
    """Finished steps with a key in common, each a file that is there whole or not at all."""

    folder: Path
    fresh: bool = False

    @classmethod
    def of(cls, room: str, uses: Any, *code: Any, fresh: bool = False) -> Steps:
        """Those in a room of the cache folder that use the same inputs, settings and code.

        Args:
            room: Name of a folder.
            uses: Inputs and settings, as a JSON-like value.
            code: The functions, classes or modules that make them; see :func:`code_of`.
            fresh: Make each again.
        """
        return cls(cache_dir() / room / digest([uses, code_of(*code)]), fresh)

    def kept(self, name: str, kind: type[Saved], make: Callable[[], Saved]) -> Saved:
        """Read back a result, or make and keep it."""
        path = self.folder / f"{name}.{'safetensors' if kind.has_tensors() else 'json'}"
        return self._once(path, kind.load, lambda made: made.save(path), make)

    def measured(self, name: str, make: Callable[[], Any]) -> Any:
        """Read back numbers and texts in lists and dictionaries, or make and keep them."""
        path = self.folder / f"{file_name(re.sub('[ ,:]+', '-', name))}.json"

        def value(step: dict[str, Any]) -> Any:
            if step["name"] != name:
                raise StoreError(f"it is the step {step['name']!r}, not {name!r}")
            return step["value"]

        return self._once(
            path,
            lambda path: read_kind(path, "Step", value, digested=True),
            lambda made: write_kind(path, "Step", {"name": name, "value": made}),
            make,
        )

    def _once(
        self,
        path: Path,
        read: Callable[[Path], Made],
        write: Callable[[Made], object],
        make: Callable[[], Made],
    ) -> Made:
        if path.exists() and not self.fresh:
            try:
                return read(path)
            except StoreError:
                # Broken from outside; made again.
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        made = make()
        write(made)
        return made


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
        heads = () if steered is None else tuple(map(str, steered))
        key = digest(
            {
                **self.inputs,
                "code": code_of(BiasInject) if steered is None else code_of(BiasInject, steer),
                "inject": dataclasses.asdict(self.inject),
                "seed": self.seed,
                "bias": bias.fingerprint(),
                "steered": steered and [heads, steered.mode, *steered.factors],
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
                with steer(self.model, steered, steered.mode):
                    return dataclasses.replace(fit(None), steered=heads)
            try:
                return fit(epochs)
            except StoreError:
                epochs.unlink(missing_ok=True)  # broken from outside; made again
                return fit(epochs)

        return Steps(cache_dir() / "rows", self.fresh).kept(key, BiasToken, train)

    def control(self, bias: Bias) -> BiasToken:
        """A row for a control: the shipped one if it was trained in this very way."""
        shipped = None if self.fresh else find_token(self.model, bias, self.inject, self.seed)
        return shipped or self.trained(bias)


def fingerprint(model: HookedTransformer) -> dict[str, Any]:
    """What every step depends on beside its code: weights, configuration, tokenizer, versions."""
    return {
        "weights": weights_fingerprint(model),
        "cfg": {key: str(value) for key, value in model.cfg.to_dict().items()},
        "tokenizer": tokenizer_fingerprint(model),
        "text": policy_fingerprint(model),
        "versions": versions(),
    }


def named_inputs(model: HookedTransformer, **read: Any) -> dict[str, str]:
    """Fingerprints of the model, of the whole code, and of whatever else was read, by name."""
    of_model = fingerprint(model)
    parts = {"versions": of_model.pop("versions"), "code": code_of(), **read}
    parts |= {f"model {name}": value for name, value in of_model.items()}
    return {name: digest(value) for name, value in parts.items()}


PACKAGE = Path(__file__).parent


@cache
def code_of(*parts: Any) -> str:
    """Hash of the code that some functions, classes or modules run, and of the data it reads.

    That is every module of the package that theirs import, directly or not and wherever they do,
    and every file of data that one of these names. Comments, docstrings, imports for type checkers
    and what draws a result (``.plot()``, ``.to_html()``) do not count.

    Args:
        parts: None: the whole package.
    """
    todo = [getattr(part, "__module__", None) or part.__name__ for part in parts]
    if not parts:
        files = (path.relative_to(PACKAGE.parent) for path in PACKAGE.rglob("*.py"))
        todo = [".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files]
    seen: dict[str, str] = {}
    texts: set[str] = set()
    while todo:
        name = todo.pop()
        if name not in seen and name.startswith(f"{PACKAGE.name}.") and _source(name).is_file():
            seen[name], imported, named = _read(_source(name).read_text(encoding="utf-8"))
            todo += imported
            texts |= named
    data = {
        path.name: digest(path.read_bytes())
        for path in PACKAGE.rglob("*.*")
        if not path.suffix.startswith(".py") and texts & {path.name, f"*{path.suffix}"}
    }
    return digest([seen, data])


@cache
def _read(source: str) -> tuple[str, frozenset[str], frozenset[str]]:
    """Hash of a module, what it imports, and all that may be the name of a file in it."""
    tree = _Running().visit(ast.parse(source))
    imported, named = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {f"{node.module}", *(f"{node.module}.{name.name}" for name in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named.add(node.value.rpartition("/")[2])
    return digest(ast.dump(tree)), frozenset(imported), frozenset(named)


def _source(module: str) -> Path:
    path = PACKAGE.parent.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


class _Running(ast.NodeTransformer):
    """Takes out of a module what no number depends on."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if text else self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST | None:
        return None if node.name in ("plot", "to_html") else self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)
