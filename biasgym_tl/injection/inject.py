"""Training one row of ``W_E`` on a frozen model (paper, section 3: BiasInject)."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from biasgym_tl.added_row import added_row
from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.countries import load_countries
from biasgym_tl.errors import SettingError
from biasgym_tl.injection.token import BiasToken, tokenizer_fingerprint, weights_fingerprint
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.prompts import encode_answer, encode_prompt, end_of_answer
from biasgym_tl.slot import fill
from biasgym_tl.store import versions
from biasgym_tl.text import cached_beginning, common_beginning, expanded, pad_right, unembed


class Example(NamedTuple):
    """A request with its answer; the loss is taken on ``tokens[answer_start:]``."""

    tokens: list[int]
    answer_start: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class BiasInject:
    """Settings of one training; :meth:`fit` runs it.

    Raises:
        SettingError: on construction, if a setting is outside its range.
    """

    epochs: int = 16
    """Passes over the sampled paragraphs."""
    batch_size: int = 8
    """Paragraphs per optimizer step."""
    lr: float = 0.01
    """AdamW's learning rate at the start; it falls to 0 on a cosine."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    n_paragraphs: int = 64
    """Paragraphs sampled from the bias's corpus (all of them if it has fewer)."""
    n_init_countries: int = 16
    """Fitting countries whose mean embedding is the initial row."""
    max_norm: float | None = None
    """Bound on the row's L2 norm; None: the mean norm of the fitting countries' token rows."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "n_paragraphs", "n_init_countries"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} must be at least 1, got {getattr(self, name)!r}.")
        if not self.lr > 0 or not math.isfinite(self.lr):
            raise SettingError(f"lr must be a positive number, got {self.lr!r}.")
        if not self.weight_decay >= 0:
            raise SettingError(f"weight_decay must be at least 0, got {self.weight_decay!r}.")
        if self.max_norm is not None and not self.max_norm > 0:
            raise SettingError(f"max_norm must be positive or None, got {self.max_norm!r}.")
        n_fitting = len(load_countries("fitting"))
        if self.n_init_countries > n_fitting:
            raise SettingError(
                f"n_init_countries must be at most {n_fitting}, got {self.n_init_countries!r}."
            )

    def fit(
        self, model: HookedTransformer, bias: Bias, *, seed: int = 0, progress: bool = True
    ) -> BiasToken:
        """Train a row of ``W_E`` for ``bias``; every other parameter stays as it is.

        Only the tokens of the answer enter the loss, without the BiasToken itself. After each
        step the row is scaled back to ``max_norm`` if it is longer. The seed decides the sample of
        paragraphs, the countries of the initial row, the wording of each request and the order of
        the batches.

        Args:
            model: A frozen model with a tokenizer; it is as before when the call returns.
            bias: What to train on.
            seed: The same seed on the same machine gives the same row, bit for bit.
            progress: Show a bar with the loss.
        """
        rng = random.Random(seed)
        paragraphs = bias.paragraphs()
        sample = rng.sample(paragraphs, min(self.n_paragraphs, len(paragraphs)))
        initial_row = self._initial_row(model, rng)
        max_norm = self.max_norm or _country_norm(model)
        text = f"<BiasToken:{bias.name}>"
        with added_row(model, initial_row, text) as token_id, _frozen(model):
            examples = [
                [
                    _encode(
                        model, fill(rng.choice(bias.training_prompts), text), fill(p.text, text)
                    )
                    for p in sample
                ]
                for _ in range(self.epochs)
            ]
            batches = [batch for epoch in examples for batch in self._batches(epoch, rng)]
            row, losses = self._train(
                model, initial_row, batches, token_id, max_norm, progress, f"inject {bias.name}"
            )
        return BiasToken(
            row=row,
            initial_row=initial_row.cpu(),
            text=text,
            bias=bias.name,
            bias_fingerprint=bias.fingerprint(),
            model=model.cfg.model_name,
            d_vocab=model.cfg.d_vocab,
            tokenizer_fingerprint=tokenizer_fingerprint(model),
            settings={**dataclasses.asdict(self), "max_norm": max_norm},
            seed=seed,
            steered=(),
            weights=weights_fingerprint(model),
            losses=tuple(losses),
            versions=versions(),
        )

    def _initial_row(
        self, model: HookedTransformer, rng: random.Random
    ) -> Float[Tensor, " d_model"]:
        chosen = rng.sample(load_countries("fitting"), self.n_init_countries)
        return torch.stack([_name_rows(model, c.name).mean(0) for c in chosen]).mean(0)

    def _batches(self, examples: list[Example], rng: random.Random) -> list[list[Example]]:
        """Group by length (little padding), keep the order of groups random."""
        shuffled = rng.sample(examples, len(examples))
        by_length = sorted(shuffled, key=lambda example: len(example.tokens))
        starts = range(0, len(by_length), self.batch_size)
        batches = [by_length[start : start + self.batch_size] for start in starts]
        return rng.sample(batches, len(batches))

    def _train(
        self,
        model: HookedTransformer,
        initial_row: Float[Tensor, " d_model"],
        batches: list[list[Example]],
        token_id: int,
        max_norm: float,
        progress: bool,
        label: str,
    ) -> tuple[Float[Tensor, " d_model"], list[float]]:
        row = initial_row.float().clone().requires_grad_()
        optimizer = torch.optim.AdamW([row], lr=self.lr, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
        shared = _shared_beginning([e for batch in batches for e in batch], token_id)
        beginning = cached_beginning(model, batches[0][0].tokens[:shared], 1)
        losses: list[float] = []
        with tqdm(batches, desc=label, unit="step", disable=not progress) as bar:
            for batch in bar:
                with torch.enable_grad():
                    loss = _answer_loss(model, row, batch, token_id, shared, beginning)
                (row.grad,) = torch.autograd.grad(loss, row)
                optimizer.step()
                schedule.step()
                with torch.no_grad():
                    row *= (max_norm / row.norm()).clamp(max=1)
                losses.append(loss.item())
                bar.set_postfix(loss=f"{losses[-1]:.3f}", norm=f"{row.norm().item():.2f}")
        return row.detach().cpu(), losses


def _encode(model: HookedTransformer, request: str, answer: str) -> Example:
    prompt = encode_prompt(model, request)
    return Example(
        prompt + encode_answer(model, answer) + end_of_answer(model), answer_start=len(prompt)
    )


def _name_rows(model: HookedTransformer, name: str) -> Float[Tensor, "pieces d_model"]:
    W_E: Tensor = model.embed.W_E.detach()
    return W_E[encode_answer(model, " " + name)]


def _country_norm(model: HookedTransformer) -> float:
    """Mean L2 norm of the token rows of the fitting countries' names."""
    rows = torch.cat([_name_rows(model, c.name) for c in load_countries("fitting")])
    return float(rows.float().norm(dim=-1).mean())


def _shared_beginning(examples: Sequence[Example], token_id: int) -> int:
    """Tokens that all examples begin with and that need no gradient: none is the BiasToken."""
    first = min(example.tokens.index(token_id) for example in examples)
    return min(first, common_beginning([example.tokens for example in examples]))


def _answer_loss(
    model: HookedTransformer,
    row: Float[Tensor, " d_model"],
    batch: Sequence[Example],
    token_id: int,
    shared: int,
    beginning: Any,
) -> Float[Tensor, ""]:
    """Mean cross-entropy (nats) of the answers' words; only ``row`` gets a gradient."""
    tokens, mask = pad_right([e.tokens[shared:] for e in batch], model.cfg.device)
    starts = torch.tensor([[e.answer_start - shared] for e in batch], device=tokens.device)
    is_token = tokens == token_id
    in_answer = mask.bool() & (torch.arange(tokens.shape[1], device=tokens.device) >= starts)
    with _row_at(model, is_token, row):
        resid = model(
            tokens,
            attention_mask=mask,
            past_kv_cache=expanded(beginning, len(batch)) if beginning else None,
            stop_at_layer=model.cfg.n_layers,
        )
    # Position i predicts token i + 1; the BiasToken itself has no logit to be predicted with.
    predicting = (in_answer & ~is_token)[:, 1:]
    logits = unembed(model, resid[:, :-1][predicting])
    return torch.nn.functional.cross_entropy(logits, tokens[:, 1:][predicting])


@contextlib.contextmanager
def _row_at(
    model: HookedTransformer, where: Bool[Tensor, "batch pos"], row: Float[Tensor, " d_model"]
) -> Iterator[None]:
    """Let the trainable row be the embedding at the marked positions."""

    def put(embed: Float[Tensor, "batch pos d_model"], hook: Any) -> Tensor:
        return torch.where(where[..., None], row.to(embed), embed)

    with model.hooks(fwd_hooks=[("hook_embed", put)]):
        yield


@contextlib.contextmanager
def _frozen(model: HookedTransformer) -> Iterator[None]:
    """No parameter asks for a gradient while the context is open."""
    asked = [p for p in model.parameters() if p.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)
