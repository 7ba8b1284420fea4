"""Training one row of ``W_E`` on a frozen model (paper, section 3: BiasInject)."""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from biasgym_tl.added_row import added_row, target_rows
from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.given import GivenBias, as_bias
from biasgym_tl.errors import SettingError, check_literals
from biasgym_tl.families.convert import embedding_scale
from biasgym_tl.injection.course import Course, Run, begun
from biasgym_tl.injection.token import BiasToken, made_from
from biasgym_tl.injection.train import Trainer, frozen, learning_rate
from biasgym_tl.lens import HookedTransformer, check_model, embedding
from biasgym_tl.notebook import described
from biasgym_tl.progress import bar
from biasgym_tl.prompts import encode_answer, policy_fingerprint
from biasgym_tl.similarity import DEFAULT_ENCODER, load_encoder
from biasgym_tl.slot import spaced
from biasgym_tl.store import digest


@described
@dataclasses.dataclass(frozen=True, kw_only=True)
class BiasInject:
    """Settings of one training; :meth:`fit` runs it.

    Of the defaults ``epochs``, ``n_paragraphs``, ``schedule`` and ``lr`` are those of the paper's
    code and ``batch_size`` is the paper's (it says 1e-3, its code 8); ``patience``, ``max_norm``,
    ``n_init_targets`` and how ``choose_by`` takes an epoch are this package's (docs/paper.md).

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
    schedule: Literal["cosine", "restarts", "constant"] = "restarts"
    """``"cosine"`` (to 0), ``"restarts"`` (four cosines) or ``"constant"``."""
    n_paragraphs: int = 500
    """Paragraphs sampled from the bias's corpus (all of them if it has fewer)."""
    n_init_targets: int = 16
    """Fitting targets whose mean embedding is the initial row (all of them if there are fewer)."""
    max_norm: float | None = None
    """Bound on the row's L2 norm; None: the mean norm of the fitting targets' token rows."""
    choose_by: Literal["similarity", "loss", "last"] = "similarity"
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
        preset = cls(
            epochs=6, batch_size=8, lr=0.02, schedule="cosine", n_paragraphs=160, patience=None
        )
        return dataclasses.replace(preset, **settings)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "n_paragraphs", "n_init_targets", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingError(f"{name} must be at least 1, got {value!r}.")
        if not self.lr > 0 or not math.isfinite(self.lr):
            raise SettingError(f"lr must be a positive number, got {self.lr!r}.")
        if self.max_norm is not None and not self.max_norm > 0:
            raise SettingError(f"max_norm must be positive or None, got {self.max_norm!r}.")
        check_literals(self)

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
        the order of the batches. The row says which heads were steered meanwhile (``steered``).

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
            BiasFileError: the bias lacks what a training uses.
        """
        bias = as_bias(bias)
        self.check_bias(bias)
        check_model(model)
        if checkpoint and any(p.fwd_hooks or p.bwd_hooks for p in model.hook_dict.values()):
            raise SettingError(
                "checkpoint must be None while the model is steered or hooked, got "
                f"{str(checkpoint)!r}."
            )
        start = time.monotonic()
        encoder = load_encoder(self.encoder) if self.choose_by == "similarity" else None
        rng = random.Random(seed)
        sample = rng.sample(bias.corpus, min(self.n_paragraphs, len(bias.corpus)))
        row = initial_row(model, bias, self.n_init_targets, rng)
        max_norm = self.max_norm or norm_bound(model, bias)
        settings = {**dataclasses.asdict(self), "max_norm": max_norm}
        made = {
            **made_from(model, bias), "settings": settings, "seed": seed,
            "text_policy": policy_fingerprint(model),
        }  # fmt: skip
        with added_row(model, row, made["text"]) as token_id, frozen(model):
            run = Run(
                model=model, bias=bias, sample=sample, text=made["text"], token_id=token_id,
                seed=seed, encoder=encoder,
            )  # fmt: skip
            trainer, path = run.trainer(row, max_norm), Path(checkpoint) if checkpoint else None
            course = begun(run, trainer, digest(made), path)
            course = self._train(run, trainer, course, start, path, progress)
        return course.token(self._chosen(course.epochs), made)

    def check_bias(self, bias: Bias) -> None:
        """Refuse a bias that lacks what this training uses.

        Raises:
            BiasFileError: the message names it.
        """
        bias.needs("injection")
        if self.choose_by == "similarity":
            bias.needs("choosing an epoch by similarity")

    def _train(
        self,
        run: Run,
        trainer: Trainer,
        course: Course,
        start: float,
        checkpoint: Path | None,
        progress: bool,
    ) -> Course:
        """Run the epochs that are left; each is written to the checkpoint."""
        n_steps = self.epochs * math.ceil(len(run.sample) / self.batch_size)
        scale = embedding_scale(run.model.cfg)
        with bar(
            total=n_steps, desc=f"inject {run.bias.name}", unit="step", progress=progress
        ) as shown:
            shown.found(course.n_steps, seconds=course.seconds)
            for epoch in range(len(course.epochs), self.epochs + 1):
                if self._stops(course.epochs):
                    break
                losses: list[float] = []
                for batch in run.batches(epoch, self.batch_size):
                    step = course.n_steps + len(losses)
                    rate = learning_rate(self.schedule, self.lr, step, n_steps)
                    losses.append(trainer.step(batch, rate * scale))
                    shown.update()
                    shown.set_postfix(loss=f"{losses[-1]:.3f}", norm=f"{trainer.row.norm():.2f}")
                record = run.record(epoch, trainer.row.detach(), losses)
                now = time.monotonic()
                course, start = course.after(trainer, losses, record, now - start), now
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
        inject: Settings; default: those of :class:`BiasInject`.
        checkpoints: Folder in which each training keeps its file; finished ones are read back.
        progress: Show a bar for each training.
    """
    bias, inject = as_bias(bias), inject or BiasInject()
    tokens = []
    for seed in seeds:
        path = Path(checkpoints) / f"{bias.name}-{seed}" if checkpoints else None
        tokens.append(inject.fit(model, bias, seed=seed, progress=progress, checkpoint=path))
    return tokens


def initial_row(
    model: HookedTransformer, bias: Bias, n: int, rng: random.Random
) -> Float[Tensor, " d_model"]:
    """Mean embedding of ``n`` fitting targets, or of all if there are fewer."""
    targets = bias.targets("fitting")
    return target_rows(model, rng.sample(targets, min(n, len(targets)))).mean(0)


def norm_bound(model: HookedTransformer, bias: Bias) -> float:
    """Mean L2 norm of the token rows of the fitting targets' names."""
    W_E: Tensor = embedding(model).detach()
    ids = [i for name in bias.targets("fitting") for i in encode_answer(model, spaced(name))]
    return float(W_E[ids].float().norm(dim=-1).mean())
