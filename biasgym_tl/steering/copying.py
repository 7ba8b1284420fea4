"""A checkpoint written again with some tensors changed: one tensor is in memory at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from biasgym_tl.checkpoint import BUFFERS, WHOLE
from biasgym_tl.families.convert import FAMILIES
from biasgym_tl.hooks import LayerEdit
from biasgym_tl.store import write_json

Shape = tuple[int, ...]
_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


class Other(NamedTuple):
    """A tensor that is changed or new."""

    shape: Shape
    make: Callable[[], Tensor]
    beside: str
    """The tensor in whose file it stands."""


class Checkpoint:
    """The tensors of some safetensors files, read in one dtype when they are asked for."""

    def __init__(self, files: Iterable[Path], dtype: torch.dtype) -> None:
        """Read their headers."""
        from safetensors import safe_open

        self.dtype, self.files, self.shapes = dtype, dict[str, Path](), dict[str, Shape]()
        for path in files:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    self.files[name] = path
                    self.shapes[name] = tuple(file.get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        """One tensor. The file is opened for it alone: what was read stays mapped until then."""
        from safetensors import safe_open

        with safe_open(self.files[name], framework="pt") as file:
            return file.get_tensor(name).to(self.dtype)  # type: ignore[no-any-return]

    def copy(self, to: Path, others: Mapping[str, Other]) -> None:
        """Write the same files into a folder, with some tensors changed or added."""
        shards: dict[str, dict[str, Shape]] = {file.name: {} for file in self.files.values()}
        for name, shape in self.shapes.items():
            if not name.endswith(BUFFERS):
                shards[self.files[name].name][name] = shape
        for name, other in others.items():
            shards[self.files[other.beside].name][name] = other.shape

        def tensor(name: str) -> Tensor:
            return others[name].make() if name in others else self.read(name)

        size = 0
        for shard, shapes in shards.items():
            size += write_shard(to / shard, shapes, self.dtype, tensor)
        if [*shards] != [WHOLE]:
            places = {name: shard for shard, shapes in shards.items() for name in shapes}
            index = {"metadata": {"total_size": size}, "weight_map": places}
            write_json(to / f"{WHOLE}.index.json", index)


def write_shard(
    path: Path, shapes: Mapping[str, Shape], dtype: torch.dtype, tensor: Callable[[str], Tensor]
) -> int:
    """Write a safetensors file, each tensor when its turn comes.

    The format: https://github.com/huggingface/safetensors#format, whose package writes only what is
    in memory as a whole.

    Returns:
        Bytes of its tensors.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in shapes:
            file.write(_bytes(tensor(name)))
    return end


def _bytes(tensor: Tensor) -> Any:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()


def write_edited(
    hf_model: Any, weights: Checkpoint, edit: Mapping[int, LayerEdit], to: Path
) -> None:
    """Write a checkpoint with an edit, and the configuration that belongs to it.

    Args:
        hf_model: Of the type and with the biases that it is to have, on the meta device.
        weights: Of the model without the edit; biases that it lacks are zero.
        edit: The edit.
        to: A folder.
    """
    weights.copy(to, _others(hf_model, weights, edit))
    hf_model.config.dtype = str(weights.dtype).removeprefix("torch.")
    hf_model.config.architectures = [type(hf_model).__name__]
    hf_model.config.save_pretrained(to)
    hf_model.generation_config.save_pretrained(to)


def _others(hf_model: Any, found: Checkpoint, edit: Mapping[int, LayerEdit]) -> dict[str, Other]:
    """What is other than in a checkpoint, by its name there."""
    prefix = f"{hf_model.base_model_prefix}."

    def known(name: str) -> str:  # a checkpoint may leave out the prefix of the whole model
        return name if name in found.shapes else name.removeprefix(prefix)

    others = {}
    for name, bias in hf_model.named_parameters():
        weight = known(name.removesuffix("bias") + "weight")
        new = weight.removesuffix("weight") + "bias"
        if name.endswith(".bias") and weight in found.shapes and new not in found.shapes:
            zeros = partial(torch.zeros, bias.shape, dtype=found.dtype)
            others[new] = Other(tuple(bias.shape), zeros, weight)
    output = FAMILIES[hf_model.config.model_type].output
    for layer, part in edit.items():
        module = hf_model.get_submodule(output.format(layer))
        weight = known(f"{output.format(layer)}.weight")
        # [z, d_model]; Conv1D stores it so, Linear the other way round.
        change = partial(_changed, part, found, weight, type(module).__name__ != "Conv1D")
        others[weight] = Other(found.shapes[weight], change, weight)
        if part.shift.any():
            bias = weight.removesuffix("weight") + "bias"
            beside = bias if bias in found.shapes else weight
            others[bias] = Other(tuple(module.bias.shape), partial(change, bias), beside)
    return others


@torch.no_grad()
def _changed(
    edit: LayerEdit, found: Checkpoint, name: str, turned: bool, bias: str | None = None
) -> Tensor:
    """The weight of an output projection with an edit, or its bias where that is named."""
    weight = found.read(name)
    by_z = weight.T if turned else weight
    of_heads = by_z.reshape(-1, edit.shift.shape[1], by_z.shape[1])
    chosen = of_heads[edit.heads].double()
    if bias:  # all heads at once, so that 16 bits are rounded to once
        before = found.read(bias) if bias in found.shapes else 0
        added: Tensor = torch.einsum("hz,hzd->d", edit.shift, chosen)
        return (added + before).to(weight)
    of_heads = of_heads.clone()  # a reshape may be a view of the file
    of_heads[edit.heads] = (edit.factor[:, None, None] * chosen).to(weight)
    changed = of_heads.flatten(0, 1)
    return changed.T if turned else changed
