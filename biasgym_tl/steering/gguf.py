"""A GGUF file with a steering in its weights, for llama.cpp and what is built on it.

All but the output projections of the changed layers is copied byte for byte, quantised as it is.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from biasgym_tl.edits import Edit, Layer
from biasgym_tl.errors import BiasGymError, ExtraError, ModelError, SteeringError
from biasgym_tl.files import write_atomically

_MATRIX = re.compile(r"blk\.(\d+)\.(?:attn|ffn)_\w+\.weight")
_OPTIONAL_BIAS = ("llama",)
"""Architectures for which llama.cpp reads a bias of the output projection where there is one."""


def export_gguf(edit: Edit, source: str | Path, path: str | Path) -> Path:
    """Write a copy of a GGUF file that behaves as a model with the edit.

    The columns of a changed head are multiplied by what the head keeps, in fp16; what is added,
    times them, goes into the projection's bias.

    Args:
        edit: Of the model that the file holds, as it is when it is dequantised.
        source: The file.
        path: The new file.

    Raises:
        SteeringError: the edit acts after names, or the architecture has no bias that could carry
            what it adds.
        ModelError: the file cannot be read, or holds another model than the edit is of.
        ExtraError: the package gguf is not installed.
    """
    if edit.after:
        raise SteeringError(
            f"an edit must act everywhere to be exported, got one that acts after "
            f"{len(edit.after)} names: weights cannot know them. Search with at='everywhere'."
        )
    source, path = Path(source), Path(path)
    if path.exists() and path.samefile(source):
        raise ModelError(f"the new file must be another than the source, got {str(path)!r}.")
    reader = read_gguf(source)
    with _refused(source):
        fields = {name: field.contents() for name, field in reader.fields.items()}
        architecture = fields["general.architecture"]
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        layers = _layers(tensors)
        edit.check_layers(layers, fields[f"{architecture}.attention.head_count"])
        changed = dict(_changed(edit, tensors, architecture))
        return write_atomically(path, lambda to: _write(reader, changed, edit, to))


@contextlib.contextmanager
def _refused(source: Path) -> Iterator[None]:
    """What the package gguf raises about a file that it cannot take apart, as one of ours."""
    try:
        yield
    except BiasGymError:
        raise
    except (KeyError, ValueError, IndexError, NotImplementedError) as error:
        raise ModelError(
            f"source must be a GGUF file of a language model, got {str(source)!r} ({error!r})."
        ) from error


def _layers(tensors: dict[str, Any]) -> Iterator[Layer]:
    """The matrices of each layer, dequantised when they are reached."""
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        if (found := _MATRIX.fullmatch(name)) and len(tensor.shape) > 1:
            names.setdefault(int(found[1]), []).append(name)
    for layer in sorted(names):
        matrices = (_numbers(tensors[name]) for name in names[layer])
        yield Layer(matrices, _numbers(tensors[f"blk.{layer}.attn_output.weight"]).T)


def read_gguf(source: Path) -> Any:
    """A GGUF file, open to be read.

    Raises:
        ModelError: it cannot be read.
        ExtraError: the package gguf is not installed.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ExtraError(
            "a GGUF file needs the package gguf, which is not installed. "
            "Run: pip install 'biasgym-tl[gguf]'"
        ) from error
    try:
        found = GGUFReader(source)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ModelError(f"source must be a GGUF file, got {str(source)!r} ({error}).") from error
    parts = found.fields.get("split.count")
    if found.byte_order != "I" or (parts is not None and parts.contents() > 1):
        raise ModelError(
            "source must be one whole GGUF file in this machine's byte order, got "
            f"{str(source)!r}. Merge its parts first: llama-gguf-split --merge FIRST NEW"
        )
    return found


def _numbers(tensor: Any) -> Tensor:
    """A tensor of a file, dequantised to fp32."""
    from gguf.quants import dequantize

    return torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type)))


def _changed(
    edit: Edit, tensors: dict[str, Any], architecture: str
) -> Iterator[tuple[str, Tensor]]:
    """Tensors that are other than in the file."""
    for layer, places in edit.places().items():
        name = f"blk.{layer}.attn_output"
        weight, bias = _numbers(tensors[f"{name}.weight"]).double(), tensors.get(f"{name}.bias")
        of_heads = weight.view(len(weight), edit.n_heads, -1)
        heads = [edit.heads[place].head for place in places]
        factor, shift = edit.factor[places].double(), edit.shift[places].double()
        if shift.any():
            if bias is None and architecture not in _OPTIONAL_BIAS:
                raise SteeringError(
                    f"mode must be 'zero' or 'scale' for a GGUF file of the architecture "
                    f"{architecture}, got a mean: its output projection can carry no bias."
                )
            added = torch.einsum("hz,dhz->d", shift, of_heads[:, heads])
            before = 0 if bias is None else _numbers(bias).double()
            yield f"{name}.bias", (before + added).float()
        if (factor != 1).any():
            of_heads[:, heads] *= factor[:, None]
            yield f"{name}.weight", weight.half()


def _write(reader: Any, changed: dict[str, Tensor], edit: Edit, to: Path) -> None:
    from gguf import GGUFValueType, GGUFWriter

    fields = dict(reader.fields)
    writer = GGUFWriter(
        to, fields.pop("general.architecture").contents(), endianess=reader.endianess
    )
    writer.data_alignment = reader.alignment
    for name, field in fields.items():
        if not name.startswith("GGUF.") and name != "biasgym.edit":
            kind = field.types[0]
            inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, sub_type=inner)
    writer.add_string("biasgym.edit", json.dumps({"model": edit.model, "heads": [*map(str, edit)]}))
    rest = dict(changed)
    for tensor in reader.tensors:
        if tensor.name in rest:
            writer.add_tensor(tensor.name, rest.pop(tensor.name).numpy())
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for name, values in rest.items():
        writer.add_tensor(name, values.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
