"""A steering as a file of some kilobytes, which any copy of its model can be given.

On what ``load_model`` returns, ``steer(model, edit)`` does it. On a model of transformers
``with edit.attached(hf_model)`` does, and nothing of TransformerLens is imported or needed.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.errors import ModelError, SteeringError
from biasgym_tl.families.convert import FAMILIES
from biasgym_tl.heads import Head
from biasgym_tl.notebook import Card
from biasgym_tl.precision import SHORT, layers_of
from biasgym_tl.store import Result, digest, versions

SHOWN = 8
"""Heads that are named in a line."""
DTYPES = (torch.float32, *SHORT)
"""What weights may be rounded to where an edit is used."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Edit(Result):
    """What a steering does to ``z``, of which model, and what was found about it.

    ``z[:, :, h] := factor * z + shift`` at every position, or from names on. Iterates over its
    heads.
    """

    _then = ("steer(model, edit)", ".attached(hf_model)", ".save(path)")
    _not_shown = (
        "Steering hides a stereotype: it can lower the word instead, cost other abilities, and be "
        "undone by training. Evaluate before use."
    )
    mode: ClassVar[str] = "edit"

    heads: tuple[Head, ...]
    """In order."""
    factor: Float[Tensor, " head"]
    """Share of its own output that each head keeps."""
    shift: Float[Tensor, "head d_head"]
    """What is added to it."""
    after: tuple[str, ...] = ()
    """Names from which on heads are changed; empty: everywhere."""
    model: str
    """Its name when the edit was made."""
    n_heads: int
    """Heads in a layer."""
    layers: dict[str, tuple[str, ...]]
    """By dtype that weights may be rounded to, the fingerprint of each layer's matrices, of
    :func:`layer_fingerprint`. Norms, biases and embeddings are not compared."""
    chosen: dict[str, Any] = dataclasses.field(default_factory=dict)
    """How the heads were chosen: the record of their ``Selection``."""
    judged: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What an evaluation found: by measure, changes with their intervals and controls."""
    versions: dict[str, str] = dataclasses.field(default_factory=versions)

    def __post_init__(self) -> None:
        n, known = len(self.heads), len(set(self.heads))
        if not n or known != n or len(self.factor) != n or len(self.shift) != n:
            raise SteeringError(
                f"an edit must have a factor and a shift for each of its heads, got {n} heads of "
                f"which {known} differ, {len(self.factor)} factors and {len(self.shift)} shifts."
            )
        if not all(h.layer < self.n_layers and h.head < self.n_heads for h in self.heads):
            raise SteeringError(
                f"heads of an edit must be in its {self.n_layers} layers of {self.n_heads} "
                f"heads, got {', '.join(map(str, self.heads))}."
            )
        if not bool(self.factor.isfinite().all() and self.shift.isfinite().all()):
            raise SteeringError("factors and shifts of an edit must be numbers, got NaN or inf.")

    def __iter__(self) -> Iterator[Head]:
        return iter(self.heads)

    def __len__(self) -> int:
        return len(self.heads)

    @property
    def n_layers(self) -> int:
        """Layers of its model."""
        return len(self.layers["float32"])

    def places(self) -> dict[int, list[int]]:
        """By layer, where its heads stand in the edit."""
        found: dict[int, list[int]] = {}
        for place, head in enumerate(self.heads):
            found.setdefault(head.layer, []).append(place)
        return found

    def check_layers(self, layers: Iterable[Layer], n_heads: int) -> None:
        """Refuse another model than the edit is of.

        Args:
            layers: The matrices of each layer; one at a time is held.
            n_heads: Heads in a layer.

        Raises:
            ModelError: there are more or fewer layers or heads, or one holds other numbers, which
                are not those of the model rounded to 16 bits either.
        """
        found = [layer_fingerprint(layer, self.n_heads) for layer in layers]
        known = self.layers.values()
        least = min(sum(a != b for a, b in zip(found, of, strict=False)) for of in known)
        what = f"other weights in {least} of them" if least else ""
        if len(found) != self.n_layers:
            what = f"{len(found)} layers"
        elif n_heads != self.n_heads:
            what = f"{n_heads} heads in each"
        if what:
            raise ModelError(
                f"model must be the one that the edit is of, {self.model!r} with {self.n_layers} "
                f"layers of {self.n_heads} heads, got {what}. Make the edit on this model."
            )

    @contextlib.contextmanager
    def attached(self, hf_model: Any) -> Iterator[None]:
        """Steer a model of transformers while the context is open, in its forward pass and in
        ``generate``; no weight is touched.

        Raises:
            ModelError: it is another model than the edit is of, or of a type whose output
                projections are not known.
            SteeringError: the edit acts after names, which such a model does not see.
        """
        if self.after:
            raise SteeringError(
                f"an edit of a model of transformers must act everywhere, got one that acts after "
                f"{len(self.after)} names. Pass the model to load_model, and steer it."
            )
        kind = getattr(getattr(hf_model, "config", None), "model_type", None)
        if kind not in FAMILIES or hasattr(hf_model, "hook_dict"):
            raise ModelError(
                f"model must be one of transformers of the types {', '.join(sorted(FAMILIES))}, "
                f"got {kind or type(hf_model).__name__}. On what load_model returns use steer."
            )
        if hasattr(hf_model, "_orig_mod") or getattr(hf_model, "_compiled_call_impl", None):
            raise ModelError(
                "model must not be compiled, since what is compiled runs without hooks, got one "
                "that is. Attach the edit to the model that it was made of."
            )
        try:
            outputs = [
                hf_model.get_submodule(FAMILIES[kind].output.format(layer))
                for layer in range(len(layers_of(hf_model)))
            ]
        except AttributeError as error:
            raise ModelError(
                f"model must be a whole language model, such as AutoModelForCausalLM gives, got a "
                f"{type(hf_model).__name__} ({error})."
            ) from error
        layers = map(_of_module, layers_of(hf_model), outputs)
        self.check_layers(layers, hf_model.config.num_attention_heads)
        acted: set[int] = set()
        with contextlib.ExitStack() as stack:
            for layer, places in self.places().items():
                hook = self._changing(places, partial(acted.add, layer))
                handle = outputs[layer].register_forward_pre_hook(hook)
                stack.callback(handle.remove)
            _run_once(hf_model)
            if acted != set(self.places()):
                raise ModelError(
                    f"model must call the output projections of layers {sorted(self.places())}, "
                    f"and does so in {sorted(acted)} alone. Use the usual way to run it."
                )
            yield

    def _changing(self, places: list[int], acts: Callable[[], None]) -> Any:
        """A hook before the output projection of a layer."""
        heads = [self.heads[place].head for place in places]

        def hook(module: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            acts()
            z = given[0].clone().view(*given[0].shape[:-1], self.n_heads, -1)
            factor, shift = (part[places].to(z) for part in (self.factor, self.shift))
            z[..., heads, :] = factor[:, None] * z[..., heads, :] + shift
            return z.flatten(-2), *given[1:]

        return hook

    def __repr__(self) -> str:
        where = f", after {len(self.after)} names" if self.after else ""
        shown = [*map(str, self.heads[:SHOWN]), *(["..."] if len(self) > SHOWN else [])]
        return f"Edit({len(self)} heads of {self.model}{where}: {', '.join(shown)})"

    def _card(self) -> Card:
        norms = self.shift.norm(dim=1).tolist()
        rows = [
            (str(head), f"{kept:.2f}", f"{norm:.2f}")
            for head, kept, norm in zip(self.heads, self.factor.tolist(), norms, strict=True)
        ]
        return repr(self), [("head", "keeps", "length of the shift"), *rows], ()


class Layer(NamedTuple):
    """Matrices of a layer, in any order and shape."""

    matrices: Iterable[Tensor]
    output: Float[Tensor, "z d_model"]
    """That of the output projection, which is among them: ``z`` of one head after the other."""


def _of_module(layer: Any, output: Any) -> Layer:
    """Of a layer of transformers."""
    matrices = [weight for weight in layer.parameters() if weight.ndim > 1]
    weight = getattr(output, "weight", None)
    if weight is None or weight.ndim != 2 or weight.is_meta or any(w.is_meta for w in matrices):
        raise ModelError(
            "model must hold its weights as plain matrices in memory, got others: quantised, "
            "offloaded, or on the meta device."
        )
    return Layer(matrices, weight if type(output).__name__ == "Conv1D" else weight.T)


@torch.no_grad()
def _run_once(hf_model: Any) -> None:
    device = hf_model.get_input_embeddings().weight.device
    hf_model(torch.zeros(1, 1, dtype=torch.long, device=device))


def fingerprints(layers: Iterable[Layer], n_heads: int) -> dict[str, tuple[str, ...]]:
    """What an edit knows its model by: not norms, biases and embeddings."""
    given = list(layers)
    return {
        str(dtype).removeprefix("torch."): tuple(
            layer_fingerprint(Layer((w.to(dtype) for w in ws), output.to(dtype)), n_heads)
            for ws, output in given
        )
        for dtype in DTYPES
    }


def layer_fingerprint(layer: Layer, n_heads: int) -> str:
    """Sums of the bits of all numbers, as fp32, modulo 2^64: of all matrices, the same however they
    are cut, turned and called, in 16 and in 32 bits; and of each head's part of the output."""
    sums = [sum(map(_bits, layer.matrices))]
    if len(layer.output) % n_heads == 0:
        sums += [_bits(part) for part in torch.split(layer.output, len(layer.output) // n_heads)]
    return digest([f"{each % 2**64:016x}" for each in sums])


def _bits(matrix: Tensor) -> int:
    exact = matrix.detach().float().contiguous().view(torch.int32)
    return int(exact.sum(dtype=torch.int64))
