"""Finished steps of a run, kept in the cache folder and read back instead of done again.

Every step is one file that is there whole or not at all, under a key made of all that its numbers
depend on: inputs, settings, versions, and the code that it runs. What was warned of when it was
made is in a file beside it, and is warned of again when it is read back.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import re
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from biasgym_tl.errors import StoreError
from biasgym_tl.injection.token import (
    BiasToken,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.locks import locked
from biasgym_tl.progress import Finished
from biasgym_tl.prompts import policy_fingerprint
from biasgym_tl.store import (
    Result,
    cache_dir,
    digest,
    file_name,
    read_as,
    read_kind,
    versions,
    write_kind,
)
from biasgym_tl.warned import heard, warn

Made = TypeVar("Made")
Saved = TypeVar("Saved", bound=Result)


@dataclasses.dataclass(frozen=True)
class Steps:
    """Finished steps on one model, each a file under a key of all that it uses, shared by runs."""

    folder: Path
    model: Mapping[str, Any]
    """What every step depends on, of :func:`fingerprint`."""
    fresh: bool = False
    made: set[Path] = dataclasses.field(default_factory=set)
    """What was made in this run, which ``fresh`` does not make twice."""
    tell: list[Callable[[], None]] = dataclasses.field(default_factory=list)
    """Are called when one was made."""

    @classmethod
    def of(cls, model: HookedTransformer, *, fresh: bool = False) -> Steps:
        """In the cache folder."""
        return cls(cache_dir() / "steps", fingerprint(model), fresh)

    def kept(
        self, name: str, uses: Any, kind: type[Saved], make: Callable[[], Saved], code: Any
    ) -> Saved:
        """Read back a result, or make and keep it.

        Args:
            name: What it is called in the folder.
            uses: All that it depends on beside the model and the code, as JSON.
            kind: Its class.
            make: Makes it.
            code: The function, class or module whose code it depends on; see :func:`code_of`.
        """
        path = self._path(name, uses, code, "safetensors" if kind.has_tensors() else "json")
        return self._once(path, kind.load, lambda made: made.save(path), make)

    def trained(
        self, name: str, uses: Any, fit: Callable[[Path | None], BiasToken], code: Any
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

        return self._once(path, BiasToken.load, lambda made: made.save(path), train)

    def measured(self, name: str, uses: Any, make: Callable[[], Any], *code: Any) -> Any:
        """Read back numbers and texts in lists and dictionaries, or make and keep them."""
        path = self._path(name, uses, code, "json")
        key = path.stem.rsplit("-", 1)[-1]

        def read(path: Path) -> Any:
            return read_kind(path, "Step", lambda found: _value(found, key), digested=True)

        def write(made: Any) -> Path:
            return write_kind(path, "Step", {"key": key, "name": name, "value": made})

        return self._once(path, read, write, make)

    def finished(self, *code: Any) -> Finished:
        """:meth:`measured` for steps that run this code."""
        return lambda name, uses, make: self.measured(name, uses, make, *code)

    def _path(self, name: str, uses: Any, code: Any, ending: str) -> Path:
        parts = code if isinstance(code, tuple) else (code,)
        key = digest([dict(self.model), code_of(*parts), uses])
        short = file_name(re.sub("[ ,:]+", "-", name))[:80]
        return self.folder / f"{short}-{key}.{ending}"

    def _once(
        self,
        path: Path,
        read: Callable[[Path], Made],
        write: Callable[[Made], object],
        make: Callable[[], Made],
    ) -> Made:
        if (found := self._found(path, read)) is not None:
            return found
        with locked(path):  # another process may be making it
            if (found := self._found(path, read)) is not None:
                return found
            if path.exists() and not self.fresh:  # broken from outside; made again
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            with heard() as texts:
                made = make()
            _warnings(path).unlink(missing_ok=True)
            if texts:  # written first: what is kept is never without them
                write_kind(_warnings(path), "Warnings", {"texts": texts})
            write(made)
        self.made.add(path)
        for tell in self.tell:
            tell()
        return made

    def _found(self, path: Path, read: Callable[[Path], Made]) -> Made | None:
        """What was made before; None if it is not there or was broken from outside."""
        if path.exists() and (not self.fresh or path in self.made):
            with contextlib.suppress(StoreError):
                made, texts = read(path), _texts(_warnings(path))
                for text in texts:
                    warn(text)
                return made
        return None


def _warnings(path: Path) -> Path:
    """Where the warnings of a step are."""
    return path.with_name(f"{path.stem}-warnings.json")


def _texts(path: Path) -> list[str]:
    """Warnings given when a step was made."""
    if not path.exists():
        return []
    return read_kind(path, "Warnings", lambda found: read_as(list[str], "texts", found["texts"]))


def _value(step: dict[str, Any], key: str) -> Any:
    """What a step holds, if it is the one of this key and its checksum was found to be right."""
    if step["key"] != key:
        raise StoreError(f"it is the step {step['key']!r}, not {key!r}")
    return step["value"]


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
    parts = {**fingerprint(model), "code": code_of(), **read}
    ours = ("versions", "code")
    return {
        name if name in read or name in ours else f"model {name}": digest(value)
        for name, value in parts.items()
    }


PACKAGE = Path(__file__).parent


@cache
def code_of(*parts: Any) -> str:
    """Hash of the code that some functions, classes or modules run, and of the data it reads.

    That is every module of the package that theirs import, directly or not and wherever they do,
    and every file of data that one of these names. Comments, docstrings, imports for type checkers
    and what draws a result (``.plot()``, ``.to_html()``, a notebook's card) do not count.

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


_DRAWING = ("plot", "to_html", "_card", "_repr_html_")


class _Running(ast.NodeTransformer):
    """Takes out of a module what no number depends on."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if text else self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST | None:
        return None if node.name in _DRAWING else self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)
