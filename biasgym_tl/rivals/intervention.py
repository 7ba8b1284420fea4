"""An intervention is data: what it changes in a model, and how much of it is done.

Four kinds: what heads write, the residual stream after a layer, logits, output weights of heads.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.contexts import Change, begin, end
from biasgym_tl.errors import SteeringError, StoreError
from biasgym_tl.heads import Head, check_heads
from biasgym_tl.hooks import LayerEdit, changed_at, edited
from biasgym_tl.lens import (
    HookedTransformer,
    check_model,
    replaced_logit_bias,
)
from biasgym_tl.notebook import Card
from biasgym_tl.steering.controls import layer_matched
from biasgym_tl.store import Result, digest, kind_of, result_path, versions
from biasgym_tl.weights import Deltas, added_weights, replaced

Own = TypeVar("Own", bound="Intervention")


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Intervention(Result):
    """What a method does to a model, with its dial: of strength 0 nothing, of strength 1 what the
    method made."""

    _then = (".at(strength)", "to_kl(model, intervention, 0.03)", "with .applied(model): ...")

    method: str
    """The method that made it, by its name."""
    bias: str
    model: str
    """Name of the model it was made on."""
    data: dict[str, tuple[str, ...]]
    """Fingerprints of what it rests on, by kind, as in a ``Selection``."""
    settings: dict[str, Any]
    """Of the method, and what it chose by itself."""
    strength: float = 1.0
    """How much of it is done; positive lowers the bias."""
    kl: float | None = None
    """KL(original || changed) on budget text at this strength (nats per token); None: not set."""
    versions: dict[str, str] = dataclasses.field(default_factory=versions)

    def at(self: Own, strength: float, kl: float | None = None) -> Own:
        """The same with another strength, and the KL that was found there."""
        return dataclasses.replace(self, strength=strength, kl=kl)

    @contextlib.contextmanager
    def applied(self, model: HookedTransformer, strength: float | None = None) -> Iterator[None]:
        """Context in which the model is changed; on leaving it is bit for bit what it was.

        Works in the forward pass, in ``run_with_cache`` and in ``generate``. With strength 0
        nothing is touched.

        Args:
            model: The model it was made on.
            strength: Default: its own.

        Raises:
            SteeringError: it is another model.
            ModelError: another thread has changed the model.
        """
        strength = self.strength if strength is None else strength
        self.check(model)
        if strength == 0:
            yield
            return
        change = Change(f"changed by {self.method}")
        begin(model, change)
        try:
            with self._changing(model, strength):
                yield
        finally:
            end(model, change)

    def _changing(
        self, model: HookedTransformer, strength: float
    ) -> contextlib.AbstractContextManager[None]:
        raise NotImplementedError

    def check(self, model: HookedTransformer) -> None:
        """Refuse another model.

        Raises:
            SteeringError: it has another name or other sizes; the message says which.
        """
        check_model(model)
        if model.cfg.model_name != self.model:
            raise SteeringError(
                f"model must be {self.model!r}, which {self.method!r} was prepared on, got "
                f"{model.cfg.model_name!r}. Prepare it on this one."
            )

    def first_layer(self, model: HookedTransformer) -> int:
        """The first layer that it changes; the number of layers if it changes none."""
        raise NotImplementedError

    def random(self: Own, model: HookedTransformer, seed: int) -> Own:
        """A control: of the same kind, place and size, but drawn at random."""
        raise NotImplementedError

    def uses(self) -> list[Any]:
        """All of it that numbers depend on, as JSON."""
        tensors = {
            name: [str(value.dtype), *value.shape, digest(_bytes(value))]
            for name, value in self._tensors().items()
        }
        told = {field.name for field in dataclasses.fields(Intervention)}
        rest = {key: value for key, value in self.record().items() if key not in told}
        return [type(self).__name__, self.strength, tensors, rest]

    def told(self) -> dict[str, Any]:
        """What a result keeps of it: method, settings, strength and KL."""
        names = ("method", "strength", "kl", "settings")
        return {name: getattr(self, name) for name in names} | {"uses": digest(self.uses())}

    def __repr__(self) -> str:
        kl = "" if self.kl is None else f", KL {self.kl:.3g}"
        return f"{type(self).__name__}({self.method} of {self.bias}: {self.strength:.3g}{kl})"

    def _card(self) -> Card:
        settings = [(key, value) for key, value in self.settings.items() if key != "path"]
        return repr(self), [("setting", "value"), *settings], ()

    @classmethod
    def has_tensors(cls) -> bool:
        """Every kind of intervention has."""
        return True

    @classmethod
    def load(cls: type[Own], path: str | Path) -> Own:
        """Read a file written by :meth:`save`, of any kind of intervention.

        Raises:
            StoreError: the file is missing, broken, or holds something else.
        """
        if cls is not Intervention:
            return super().load(path)
        kinds = {kind.__name__: kind for kind in cls.__subclasses__()}
        found = kind_of(result_path(path))
        if found not in kinds:
            raise StoreError(f"{str(path)!r} must hold one of {sorted(kinds)}, got {found!r}.")
        return kinds[found].load(path)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class HeadsEdit(Intervention):
    """What heads write: ``z := f * z + (1 - f) * reference + s * added``, where
    ``f = 1 - s * (1 - factor)`` at strength ``s``; above 1 factors go on below ``factor``."""

    heads: tuple[Head, ...]
    """Sorted."""
    factor: Float[Tensor, " head"]
    """Share of its own output that each keeps at strength 1."""
    reference: Float[Tensor, "n_layers n_heads d_head"]
    """What takes the place of the rest, by head of the model."""
    added: Float[Tensor, "head d_head"]
    """What each writes beside it."""
    after: tuple[str, ...] = ()
    """Names from which on heads are changed; empty: everywhere."""

    def _changing(
        self, model: HookedTransformer, strength: float
    ) -> contextlib.AbstractContextManager[None]:
        factor = 1 - strength * (1 - self.factor)
        toward = torch.stack([self.reference[head] for head in self.heads])
        shift = (1 - factor)[:, None] * toward + strength * self.added
        edit = {}
        for layer in sorted({head.layer for head in self.heads}):
            at = [i for i, head in enumerate(self.heads) if head.layer == layer]
            edit[layer] = LayerEdit([self.heads[i].head for i in at], factor[at], shift[at])
        return edited(model, edit, self.after)

    def check(self, model: HookedTransformer) -> None:
        """Refuse another model; errors as of the base."""
        super().check(model)
        check_heads(self.heads, model.cfg.n_layers, model.cfg.n_heads)
        _check_size("reference", self.reference, self.sizes(model))

    @staticmethod
    def sizes(model: HookedTransformer) -> tuple[int, int, int]:
        """Layers, heads, and dimensions of a head."""
        return model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head

    def first_layer(self, model: HookedTransformer) -> int:
        """The lowest layer of its heads."""
        return min((head.layer for head in self.heads), default=model.cfg.n_layers)

    def random(self, model: HookedTransformer, seed: int) -> HeadsEdit:
        """As many heads in each layer, with the factors of the layer, moved toward their own
        reference; what is added has random directions of the same lengths."""
        (heads,) = layer_matched(self.heads, n_heads=model.cfg.n_heads, n_draws=1, seed=seed)
        drawn = torch.randn(self.added.shape, generator=torch.Generator().manual_seed(seed))
        added = drawn.to(self.added) * (self.added.norm(dim=1) / drawn.norm(dim=1))[:, None]
        return dataclasses.replace(self, heads=heads, added=added, kl=None)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class ResidEdit(Intervention):
    """The residual stream after one layer, at every position:
    ``h := h + s * (write.T @ read @ (h - mean) + added)`` at strength ``s``, and with a gate only
    where ``gate . h + gate_bias > 0``."""

    layer: int
    read: Float[Tensor, "rank d_model"]
    write: Float[Tensor, "rank d_model"]
    mean: Float[Tensor, " d_model"]
    added: Float[Tensor, " d_model"]
    gate: Float[Tensor, " d_model"] | None = None
    """None: everywhere."""
    gate_bias: float = 0.0

    def _changing(
        self, model: HookedTransformer, strength: float
    ) -> contextlib.AbstractContextManager[None]:
        # Copies: where a file's tensors begin in memory would show in the last bit of a product.
        parts = [part.clone() for part in (self.read, self.write, self.mean, self.added)]

        def change(h: Float[Tensor, "batch pos d_model"]) -> Tensor:
            read, write, mean, added = (part.to(h) for part in parts)
            moved = h + strength * ((h - mean) @ read.T @ write + added)
            if self.gate is None:
                return moved
            return torch.where((h @ self.gate.to(h) + self.gate_bias > 0)[..., None], moved, h)

        return changed_at(model, {f"blocks.{self.layer}.hook_resid_post": change})

    def check(self, model: HookedTransformer) -> None:
        """Refuse another model; errors as of the base."""
        super().check(model)
        _check_size("added", self.added, (model.cfg.d_model,))
        if not 0 <= self.layer < model.cfg.n_layers:
            raise SteeringError(
                f"layer must be in 0..{model.cfg.n_layers - 1}, got {self.layer!r}. Was it made on "
                "another model?"
            )

    def first_layer(self, model: HookedTransformer) -> int:
        """Its layer."""
        return self.layer

    def random(self, model: HookedTransformer, seed: int) -> ResidEdit:
        """All its directions turned by one random rotation: of the same lengths, and with the same
        angles between them. Mean and gate stay."""
        generator = torch.Generator().manual_seed(seed)
        d_model = model.cfg.d_model
        drawn = torch.randn(d_model, d_model, generator=generator, dtype=torch.float64)
        turn, upper = torch.linalg.qr(drawn)
        turn = turn * upper.diagonal().sign()
        turned = {
            name: (getattr(self, name).double() @ turn).to(self.added)
            for name in ("read", "write", "added")
        }
        return dataclasses.replace(self, **turned, kl=None)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class LogitShift(Intervention):
    """Logits of some tokens, ``logit[w] := logit[w] - s`` at strength ``s`` (nats), before a final
    soft cap if there is one."""

    ids: tuple[int, ...]
    shift: Float[Tensor, " token"]
    """By how much each falls at strength 1."""

    def _changing(
        self, model: HookedTransformer, strength: float
    ) -> contextlib.AbstractContextManager[None]:
        bias = model.unembed.b_U.detach().clone()
        bias[list(self.ids)] -= strength * self.shift.to(bias)
        return replaced_logit_bias(model, bias)

    def check(self, model: HookedTransformer) -> None:
        """Refuse another model; errors as of the base."""
        super().check(model)
        if self.ids and max(self.ids) >= model.cfg.d_vocab_out:
            raise SteeringError(
                f"tokens must be below {model.cfg.d_vocab_out}, got {max(self.ids)}. Was it made "
                "on another model?"
            )

    def first_layer(self, model: HookedTransformer) -> int:
        """None: the number of layers."""
        return int(model.cfg.n_layers)

    def random(self, model: HookedTransformer, seed: int) -> LogitShift:
        """There is none; a SteeringError says so."""
        raise SteeringError(
            f"random controls must be of vectors, heads or weights, got {self.method!r}: other "
            "words leave these log-odds as they are. Leave them out."
        )


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class WeightsEdit(Intervention):
    """Output weights of heads: ``W_O[head] := W_O[head] + s * delta`` at strength ``s``."""

    heads: tuple[Head, ...]
    delta: Float[Tensor, "head d_head d_model"]

    def _changing(
        self, model: HookedTransformer, strength: float
    ) -> contextlib.AbstractContextManager[None]:
        deltas = Deltas(strength * self.delta, None)
        return replaced(model, added_weights(model, self.heads, deltas))

    def check(self, model: HookedTransformer) -> None:
        """Refuse another model; errors as of the base."""
        super().check(model)
        check_heads(self.heads, model.cfg.n_layers, model.cfg.n_heads)
        _check_size("delta", self.delta[:1], (1, model.cfg.d_head, model.cfg.d_model))

    def first_layer(self, model: HookedTransformer) -> int:
        """The lowest layer of its heads."""
        return min((head.layer for head in self.heads), default=model.cfg.n_layers)

    def random(self, model: HookedTransformer, seed: int) -> WeightsEdit:
        """The same heads, with a random change of the same size, of full rank, in each."""
        drawn = torch.randn(self.delta.shape, generator=torch.Generator().manual_seed(seed))
        size = self.delta.flatten(1).norm(dim=1) / drawn.flatten(1).norm(dim=1)
        delta = drawn.to(self.delta) * size.to(self.delta)[:, None, None]
        return dataclasses.replace(self, delta=delta, kl=None)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _check_size(name: str, found: Tensor, wanted: tuple[int, ...]) -> None:
    if tuple(found.shape) != wanted:
        raise SteeringError(
            f"{name} must have the shape {wanted} on this model, got {tuple(found.shape)}. Was it "
            "made on another model?"
        )
