"""The BiasToken: one trained row of ``W_E`` and the record of its training."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from biasgym_tl.added_row import added_row
from biasgym_tl.biases.bias import Bias
from biasgym_tl.contexts import steered_heads
from biasgym_tl.errors import SettingError, TokenError
from biasgym_tl.lens import HookedTransformer, check_kind, named_weights
from biasgym_tl.origin import ModelSizes
from biasgym_tl.precision import long
from biasgym_tl.prompts import policy_fingerprint
from biasgym_tl.store import Result, digest, versions

if TYPE_CHECKING:
    from biasgym_tl.biases.given import GivenBias
    from biasgym_tl.injection.report import InjectionReport


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class BiasToken(Result):
    """One trained embedding row, with what is needed to use it and to make it again."""

    _not_shown = (
        "A row acts only where its token stands and is an instrument of an experiment: it says "
        "nothing of people, nor how strongly the model holds the bias by itself."
    )

    row: Float[Tensor, " d_model"]
    """The trained row, in the scale of the model's ``W_E``."""
    initial_row: Float[Tensor, " d_model"]
    """The row before training: a mean of targets' embeddings."""
    epoch_rows: Float[Tensor, "epoch d_model"]
    """The row after each epoch; number 0 is the row before training."""
    epochs: tuple[dict[str, Any], ...]
    """For each of them: mean loss (nats per token), norm, and where the epoch was chosen by
    similarity the scores of its answers to the probe prompts (``ProbeScore``)."""
    chosen_epoch: int
    """The epoch whose row this is."""
    text: str
    """How the token is written in a prompt."""
    bias: str
    """Name of the bias."""
    bias_fingerprint: str
    """Hash of what it was trained on (``Bias.training_fingerprint``)."""
    model: str
    """``cfg.model_name`` of the model it was trained on."""
    d_vocab: int
    """Rows of that model's ``W_E``; the token's id while attached."""
    tokenizer_fingerprint: str
    """Hash of that model's vocabulary."""
    settings: dict[str, Any]
    """Fields of the ``BiasInject`` that trained it."""
    seed: int
    steered: tuple[str, ...]
    """Heads that were steered while it was trained; empty for the model as it is."""
    weights: str
    """Hash of the weights of that model."""
    losses: tuple[float, ...]
    """Mean loss of the answers' tokens at each step (nats per token), before the step."""
    versions: dict[str, str]
    text_policy: str = ""
    """Hash of the text around requests that it was trained with; empty if that is not known."""
    seconds: float = dataclasses.field(default=0.0, compare=False)
    """How long the training took."""

    def __repr__(self) -> str:
        loss = f", loss {self.losses[0]:.2f} -> {self.losses[-1]:.2f} nats" if self.losses else ""
        return (
            f"BiasToken({self.text!r} on {self.model}, seed {self.seed}{loss}, "
            f"norm {self.row.norm():.2f})"
        )

    def attached(self, model: HookedTransformer) -> AbstractContextManager[int]:
        """Context in which ``model`` knows the token; yields its id.

        On leaving, ``W_E``, ``cfg.d_vocab`` and the tokenizer are restored exactly.

        Raises:
            TokenError: the model has another ``d_model``, vocabulary or tokenizer than the one
                that the row was trained on, or writes other text around requests.
        """
        self.check(model)
        return added_row(model, self.row, self.text)

    @property
    def label(self) -> str:
        """Which row this is, in words."""
        remarks = ["untrained"] if self.chosen_epoch == 0 else []
        remarks += ["trained on the steered model"] if self.steered else []
        return ", ".join([self.bias, f"seed {self.seed}", *remarks])

    def untrained(self) -> BiasToken:
        """The same token with the row it had before training, as a control."""
        return dataclasses.replace(self.at_epoch(0), losses=())

    def at_epoch(self, epoch: int) -> BiasToken:
        """The same token with the row it had after another epoch.

        Raises:
            SettingError: the training had no such epoch.
        """
        if not 0 <= epoch < len(self.epochs):
            raise SettingError(f"epoch must be in 0..{len(self.epochs) - 1}, got {epoch!r}.")
        return dataclasses.replace(self, row=self.epoch_rows[epoch].clone(), chosen_epoch=epoch)

    def report(
        self, model: HookedTransformer, bias: GivenBias, *, progress: bool = True
    ) -> InjectionReport:
        """How well the injection worked, on prompts that it never saw, and what failed.

        See :func:`biasgym_tl.injection.report.injection_report`, which has more settings.
        """
        from biasgym_tl.injection.report import injection_report

        return injection_report(model, bias, self, progress=progress)

    def check_sizes(self, bias: Bias, sizes: ModelSizes | None) -> None:
        """Raise a :class:`TokenError` if the row was trained on another bias, or cannot fit a
        model of these sizes: what can be told before a model is loaded."""
        if self.bias != bias.name:
            raise TokenError(
                f"token must be a row of the bias {bias.name!r}, got one of {self.bias!r}. Name "
                "that bias, or train a row for this one."
            )
        found = self.row.shape[0], self.d_vocab
        if sizes and found != (sizes.d_model, sizes.d_vocab):
            raise TokenError(
                f"token must be a row of a model with d_model {sizes.d_model} and a vocabulary of "
                f"{sizes.d_vocab}, got one of {self.model!r} with {found[0]} and {found[1]}. Load "
                "that model, or train a row on this one."
            )

    def check(self, model: HookedTransformer) -> None:
        """Raise a :class:`TokenError` unless the row fits ``model``."""
        check_kind(model)
        checks: list[tuple[str, Any, Any]] = [
            ("d_model", self.row.shape[0], model.cfg.d_model),
            ("d_vocab", self.d_vocab, model.cfg.d_vocab),
            ("tokenizer", self.tokenizer_fingerprint, tokenizer_fingerprint(model)),
        ]
        if self.text_policy:
            checks.append(("text around a request", self.text_policy, policy_fingerprint(model)))
        for name, wanted, found in checks:
            if found != wanted:
                raise TokenError(
                    f"{name} of the model must be {wanted!r}, as on {self.model} where this "
                    f"BiasToken was trained, got {found!r}. Load that model or train again."
                )


def made_from(model: HookedTransformer, bias: Bias) -> dict[str, Any]:
    """Fields of a BiasToken for ``bias`` on ``model`` that say what it was made from."""
    return {
        "text": f"<BiasToken:{bias.name}>",
        "bias": bias.name,
        "bias_fingerprint": bias.training_fingerprint(),
        "model": model.cfg.model_name,
        "d_vocab": model.cfg.d_vocab,
        "tokenizer_fingerprint": tokenizer_fingerprint(model),
        "weights": weights_fingerprint(model),
        "steered": tuple(map(str, steered_heads(model))),
        "versions": versions(),
    }


def tokenizer_fingerprint(model: HookedTransformer) -> str:
    """Short hash of the model's vocabulary, or ``"none"`` without a tokenizer."""
    if model.tokenizer is None:
        return "none"
    vocabulary = model.tokenizer.get_vocab()
    known = _VOCABULARIES.get(model.tokenizer)
    if known is None or known[0] != vocabulary:  # hashing takes much longer than comparing
        known = _VOCABULARIES[model.tokenizer] = (vocabulary, digest(vocabulary))
    return known[1]


_VOCABULARIES: WeakKeyDictionary[Any, tuple[dict[str, int], str]] = WeakKeyDictionary()


def weights_fingerprint(model: HookedTransformer) -> str:
    """Short hash of every weight of the model, to the last bit, the same on both engines, and for
    the same numbers kept in 16 and in 32 bits.

    Each row of a matrix counts as the sum of its bits as integers times odd numbers, modulo their
    range: exact in any order, so that it matters neither how a matrix lies in memory nor on what
    machine it is. It is fast enough to be made anew each time: a kept one could be out of date.
    """
    found = {}
    for name, weight in named_weights(model):
        exact = long(weight.detach().cpu())
        bits = exact.view(_INTEGERS[exact.dtype.itemsize])
        rows = bits @ _odd_numbers(bits.shape[-1]).to(bits) if bits.ndim > 1 else bits
        if rows.any():  # a bias of zeros is as none, which the other engine may have
            found[name] = digest(rows.numpy().tobytes())
    return digest(found)


_INTEGERS = {4: torch.int32, 8: torch.int64}


def _odd_numbers(n: int) -> Int[Tensor, " n"]:
    """The same ones everywhere, and no pattern in them (as in splitmix64)."""
    found = torch.arange(1, n + 1) * -0x61C8864680B583EB
    found = (found ^ (found >> 30)) * -0x40A7B892E31B1A47
    return (found ^ (found >> 27)) | 1
