"""Training one row of ``W_E`` on a frozen model (paper, section 3: BiasInject)."""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from biasgym_tl.added_row import added_row
from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.corpus import Paragraph
from biasgym_tl.biases.given import GivenBias, as_bias
from biasgym_tl.errors import SettingError, StoreError
from biasgym_tl.families.convert import embedding_scale
from biasgym_tl.injection.probe import probe
from biasgym_tl.injection.token import (
    BiasToken,
    target_rows,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from biasgym_tl.injection.train import (
    Example,
    Trainer,
    encode_example,
    frozen,
    learning_rate,
    shared_beginning,
)
from biasgym_tl.lens import HookedTransformer, check_model
from biasgym_tl.prompts import encode_answer, policy_fingerprint
from biasgym_tl.similarity import DEFAULT_ENCODER, Encoder, load_encoder
from biasgym_tl.slot import fill, spaced
from biasgym_tl.store import Result, digest, result_path, versions

SCHEDULES = ("cosine", "restarts", "constant")
CHOICES = ("similarity", "loss", "last")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BiasInject:
    """Settings of one training; :meth:`fit` runs it. The defaults are the paper's.

    Raises:
        SettingError: on construction, if a setting is outside its range.
    """

    epochs: int = 10
    """Passes over the paragraphs, at most."""
    batch_size: int = 16
    """Paragraphs per optimizer step."""
    lr: float = 3e-3
    """AdamW's highest learning rate, for rows in Hugging Face's scale (Gemma's are multiplied by
    ``sqrt(d_model)`` in ``W_E``, and so is the rate)."""
    schedule: str = "restarts"
    """``"cosine"`` (to 0), ``"restarts"`` (four cosines) or ``"constant"``."""
    n_paragraphs: int = 500
    """Paragraphs sampled from the bias's corpus (all of them if it has fewer)."""
    n_init_targets: int = 16
    """Fitting targets whose mean embedding is the initial row (all of them if there are fewer)."""
    max_norm: float | None = None
    """Bound on the row's L2 norm; None: the mean norm of the fitting targets' token rows."""
    choose_by: str = "similarity"
    """Which epoch's row is kept: by ``"similarity"`` of its answers to the probe prompts (of the
    epochs within one standard error of the highest, the one of the lowest loss), that of the lowest
    mean ``"loss"``, or the ``"last"``."""
    patience: int | None = 3
    """Stop after so many epochs without a higher similarity (or lower loss); None, or with
    ``"last"``: never."""
    encoder: str = DEFAULT_ENCODER
    """Sentence encoder of the similarity."""

    @classmethod
    def cpu(cls, **settings: Any) -> BiasInject:
        """The preset for small machines: 120 steps of 8 paragraphs, 4 to 9 minutes for SmolLM2 on
        two cores."""
        preset: dict[str, Any] = {
            "epochs": 6,
            "batch_size": 8,
            "lr": 0.02,
            "schedule": "cosine",
            "n_paragraphs": 160,
            "patience": None,
        }
        return cls(**{**preset, **settings})

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "n_paragraphs", "n_init_targets", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingError(f"{name} must be at least 1, got {value!r}.")
        if not self.lr > 0 or not math.isfinite(self.lr):
            raise SettingError(f"lr must be a positive number, got {self.lr!r}.")
        if self.max_norm is not None and not self.max_norm > 0:
            raise SettingError(f"max_norm must be positive or None, got {self.max_norm!r}.")
        for name, known in (("schedule", SCHEDULES), ("choose_by", CHOICES)):
            if getattr(self, name) not in known:
                raise SettingError(
                    f"{name} must be one of {list(known)}, got {getattr(self, name)!r}."
                )

    def fit(
        self,
        model: HookedTransformer,
        bias: GivenBias,
        *,
        seed: int = 0,
        progress: bool = True,
        checkpoint: str | Path | None = None,
    ) -> BiasToken:
        """Train a row of ``W_E`` for ``bias``; every other parameter stays as it is.

        Only the tokens of the answer enter the loss, without the BiasToken itself. The seed decides
        the sample of paragraphs, the targets of the initial row, the wording of each request and
        the order of the batches.

        Args:
            model: A frozen model with a tokenizer; it is as before when the call returns.
            bias: What to train on.
            seed: The same seed on the same machine gives the same row, bit for bit.
            progress: Show a bar with the loss.
            checkpoint: File that is written after each epoch. If it is there, the training goes on
                from it and ends in the same row, bit for bit. Not while the model is steered: a
                file cannot tell which heads were.

        Raises:
            ModelError: the model is no HookedTransformer with its own value biases, has no
                tokenizer, or a paragraph is longer than its context.
            SettingError: a checkpoint is wanted while the model has hooks.
            ExtraError: the epoch is to be chosen by similarity and no encoder is installed.
            StoreError: the checkpoint belongs to another training.
        """
        bias = as_bias(bias)
        check_model(model)
        if checkpoint and _is_hooked(model):
            raise SettingError(
                "checkpoint must be None while the model is steered or hooked, got "
                f"{str(checkpoint)!r}."
            )
        start = time.monotonic()
        encoder = load_encoder(self.encoder) if self.choose_by == "similarity" else None
        rng = random.Random(seed)
        sample = rng.sample(bias.corpus, min(self.n_paragraphs, len(bias.corpus)))
        initial_row = _initial_row(model, bias, self.n_init_targets, rng)
        max_norm = self.max_norm or _target_norm(model, bias)
        settings = {**dataclasses.asdict(self), "max_norm": max_norm}
        weights = weights_fingerprint(model)
        key = digest(
            [settings, seed, bias.training_fingerprint(), weights, tokenizer_fingerprint(model),
             policy_fingerprint(model), versions()]
        )  # fmt: skip
        text = f"<BiasToken:{bias.name}>"
        with added_row(model, initial_row, text) as token_id, frozen(model):
            course = self._train(
                _Run(model, bias, sample, text, token_id, seed, initial_row, max_norm, encoder),
                key,
                Path(checkpoint) if checkpoint else None,
                start,
                progress,
            )
        chosen = self._chosen(course.epochs)
        return BiasToken(
            row=course.epoch_rows[chosen].clone(),
            initial_row=course.epoch_rows[0].clone(),
            epoch_rows=course.epoch_rows,
            epochs=course.epochs,
            chosen_epoch=chosen,
            text=text,
            bias=bias.name,
            bias_fingerprint=bias.training_fingerprint(),
            model=model.cfg.model_name,
            d_vocab=model.cfg.d_vocab,
            tokenizer_fingerprint=tokenizer_fingerprint(model),
            settings=settings,
            seed=seed,
            steered=(),
            text_policy=policy_fingerprint(model),
            weights=weights,
            losses=course.losses,
            seconds=round(course.seconds, 1),
            versions=versions(),
        )

    def _train(
        self, run: _Run, key: str, checkpoint: Path | None, start: float, progress: bool
    ) -> _Course:
        trainer = Trainer(
            run.model,
            run.initial_row,
            run.token_id,
            beginning=shared_beginning(run.model, run.bias, run.text, run.token_id),
            max_norm=run.max_norm,
        )
        course = _resumed(checkpoint, key)
        if course is None:
            first = run.record(0, trainer.row.detach(), [])
            course = _Course.start(key, trainer, first)
        trainer.restore(course.epoch_rows[-1], course.exp_avg, course.exp_avg_sq, course.n_steps)
        per_epoch = math.ceil(len(run.sample) / self.batch_size)
        n_steps = per_epoch * self.epochs
        scale = embedding_scale(run.model.cfg)
        with tqdm(
            total=n_steps,
            initial=course.n_steps,
            desc=f"inject {run.bias.name}",
            unit="step",
            disable=not progress,
        ) as bar:
            for epoch in range(len(course.epochs), self.epochs + 1):
                if self._stops(course.epochs):
                    break
                losses: list[float] = []
                for batch in run.batches(epoch, self.batch_size):
                    rate = learning_rate(
                        self.schedule, self.lr, course.n_steps + len(losses), n_steps
                    )
                    losses.append(trainer.step(batch, rate * scale))
                    bar.update()
                    bar.set_postfix(loss=f"{losses[-1]:.3f}", norm=f"{trainer.row.norm():.2f}")
                row = trainer.row.detach()
                record = run.record(epoch, row, losses)
                course = course.after(trainer, losses, record, time.monotonic() - start)
                start = time.monotonic()
                if checkpoint:
                    course.save(checkpoint)
        return course

    def _best(self, epochs: Sequence[dict[str, Any]]) -> int:
        """The epoch at which the measure of the choice is best."""
        value: dict[str, Callable[[int], float]] = {
            "similarity": lambda epoch: epochs[epoch]["similarity"],
            "loss": lambda epoch: -epochs[epoch]["loss"],
            "last": lambda epoch: epoch,
        }
        return max(range(1, len(epochs)), key=value[self.choose_by])

    def _chosen(self, epochs: Sequence[dict[str, Any]]) -> int:
        """The best epoch; among similarities that noise alone may tell apart, the lowest loss."""
        best = self._best(epochs)
        if self.choose_by != "similarity":
            return best
        least = epochs[best]["similarity"] - epochs[best]["standard_error"]
        alike = [e for e in range(1, len(epochs)) if epochs[e]["similarity"] >= least]
        return min(alike, key=lambda epoch: epochs[epoch]["loss"])

    def _stops(self, epochs: Sequence[dict[str, Any]]) -> bool:
        done = len(epochs) - 1
        return (
            self.patience is not None
            and done > self.patience
            and done - self._best(epochs) >= self.patience
        )


def fit_seeds(
    model: HookedTransformer,
    bias: GivenBias,
    *,
    seeds: Iterable[int] = range(5),
    inject: BiasInject | None = None,
    checkpoints: str | Path | None = None,
    progress: bool = True,
) -> list[BiasToken]:
    """Train one row a seed (the paper uses five): other paragraphs, initial targets and batches.

    Args:
        model: A frozen model with a tokenizer.
        bias: What to train on.
        seeds: One training each.
        inject: Settings; default: the paper's.
        checkpoints: Folder in which each training keeps its file; finished ones are read back.
        progress: Show a bar for each training.
    """
    bias = as_bias(bias)
    inject = inject or BiasInject()
    return [
        inject.fit(
            model,
            bias,
            seed=seed,
            progress=progress,
            checkpoint=Path(checkpoints) / f"{bias.name}-{seed}" if checkpoints else None,
        )
        for seed in seeds
    ]


@dataclasses.dataclass(frozen=True)
class _Run:
    """What one training works on."""

    model: HookedTransformer
    bias: Bias
    sample: list[Paragraph]
    text: str
    token_id: int
    seed: int
    initial_row: Float[Tensor, " d_model"]
    max_norm: float
    encoder: Encoder | None

    def batches(self, epoch: int, size: int) -> Iterator[list[Example]]:
        """Batches of one epoch, of similar length each; the order of batches is random."""
        rng = random.Random(f"{self.seed}-{epoch}")
        examples = [
            encode_example(
                self.model,
                fill(rng.choice(self.bias.training_prompts), self.text),
                fill(p.text, self.text),
            )
            for p in rng.sample(self.sample, len(self.sample))
        ]
        examples.sort(key=lambda example: len(example.tokens))
        starts = range(0, len(examples), size)
        for start in rng.sample(starts, len(starts)):
            yield examples[start : start + size]

    def record(
        self, epoch: int, row: Float[Tensor, " d_model"], losses: list[float]
    ) -> dict[str, Any]:
        """What is known of the row after an epoch; without an encoder no answers are written."""
        found: dict[str, Any] = {
            "epoch": epoch,
            "loss": sum(losses) / len(losses) if losses else None,
            "norm": row.norm().item(),
        }
        if self.encoder is None:
            return found
        self.model.embed.W_E[self.token_id] = row.to(self.model.embed.W_E)
        return {**found, **probe(self.model, self.bias, self.text, self.encoder)._asdict()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Course(Result):
    """A training after some epochs: all that going on needs."""

    key: str
    """Hash of everything that decides the training."""
    epoch_rows: Float[Tensor, "epoch d_model"]
    exp_avg: Float[Tensor, " d_model"]
    exp_avg_sq: Float[Tensor, " d_model"]
    losses: tuple[float, ...]
    epochs: tuple[dict[str, Any], ...]
    seconds: float
    """Spent on it, over all interruptions."""

    @classmethod
    def start(cls, key: str, trainer: Trainer, record: dict[str, Any]) -> _Course:
        row = trainer.row.detach().cpu().clone()
        zero = torch.zeros_like(row)
        return cls(
            key=key, epoch_rows=row[None], exp_avg=zero, exp_avg_sq=zero, losses=(),
            epochs=(record,),
            seconds=0.0,
        )  # fmt: skip

    @property
    def n_steps(self) -> int:
        return len(self.losses)

    def after(
        self, trainer: Trainer, losses: list[float], record: dict[str, Any], seconds: float
    ) -> _Course:
        exp_avg, exp_avg_sq = trainer.moments()
        return dataclasses.replace(
            self,
            epoch_rows=torch.cat([self.epoch_rows, trainer.row.detach().cpu()[None]]),
            exp_avg=exp_avg,
            exp_avg_sq=exp_avg_sq,
            losses=(*self.losses, *losses),
            epochs=(*self.epochs, record),
            seconds=self.seconds + seconds,
        )


def _resumed(checkpoint: Path | None, key: str) -> _Course | None:
    if checkpoint is None or not result_path(checkpoint).is_file():
        return None
    found = _Course.load(checkpoint)
    if found.key != key:
        raise StoreError(
            "checkpoint must belong to this training (bias, settings, seed, model, versions), got "
            f"{str(checkpoint)!r} of another. Delete it or choose another path."
        )
    return found


def _is_hooked(model: HookedTransformer) -> bool:
    return any(point.fwd_hooks or point.bwd_hooks for point in model.hook_dict.values())


def _initial_row(
    model: HookedTransformer, bias: Bias, n: int, rng: random.Random
) -> Float[Tensor, " d_model"]:
    targets = bias.targets("fitting")
    chosen = rng.sample(targets, min(n, len(targets)))
    return target_rows(model, chosen).mean(0)


def _name_rows(model: HookedTransformer, name: str) -> Float[Tensor, "pieces d_model"]:
    W_E: Tensor = model.embed.W_E.detach()
    return W_E[encode_answer(model, spaced(name))]


def _target_norm(model: HookedTransformer, bias: Bias) -> float:
    """Mean L2 norm of the token rows of the fitting targets' names."""
    rows = torch.cat([_name_rows(model, name) for name in bias.targets("fitting")])
    return float(rows.float().norm(dim=-1).mean())
