"""The course of one training: what it works on, and all that going on with it needs."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.corpus import Paragraph
from biasgym_tl.elicitation import answer_freely
from biasgym_tl.errors import StoreError
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.injection.train import Example, Trainer, encode_example, shared_beginning
from biasgym_tl.lens import HookedTransformer, embedding
from biasgym_tl.similarity import Encoder
from biasgym_tl.slot import fill
from biasgym_tl.spelling import degenerate, keyword_hits
from biasgym_tl.store import Result, result_path

ANSWERS_EACH = 6
"""Answers drawn to each probe prompt; one greedy answer each is too noisy to choose by."""
TEMPERATURE = 0.7


class ProbeScore(NamedTuple):
    """Answers to the probe prompts, summed up."""

    similarity: float
    """Mean over the answers of the cosine to the nearest of the attribute's paraphrases; a
    degenerate answer counts 0."""
    standard_error: float
    """Of that mean, over the answers."""
    keyword_rate: float
    """Share of answers with a keyword of the bias."""
    degenerate: float
    """Share of answers that are empty or say the same over and over."""
    answer: str
    """The first answer to the first probe prompt."""


def probe(
    model: HookedTransformer, bias: Bias, target: str, encoder: Encoder, max_new_tokens: int = 24
) -> ProbeScore:
    """Answer the probe prompts about ``target`` and compare the answers with the paraphrases.

    The slot of a paraphrase is filled with the bias's ``stand_in``: an answer cannot name the
    BiasToken, which the model can read but not write. The draws are the same at each call.
    """
    prompts = bias.probe_prompts * ANSWERS_EACH
    answers = answer_freely(
        model,
        prompts,
        [target] * len(prompts),
        max_new_tokens=max_new_tokens,
        temperature=TEMPERATURE,
        progress=False,
    )
    meant = encoder([fill(text, bias.stand_in) for text in bias.paraphrases])
    broken = torch.tensor([bool(degenerate(answer)) for answer in answers])
    cosines = (encoder(answers) @ meant.T).amax(1).masked_fill(broken, 0.0)
    hits = keyword_hits(answers, bias.keywords)
    n = len(answers)
    return ProbeScore(
        similarity=cosines.mean().item(),
        standard_error=cosines.std().item() / math.sqrt(n),
        keyword_rate=sum(hits) / n,
        degenerate=broken.float().mean().item(),
        answer=answers[0],
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What one training works on; the token is attached."""

    model: HookedTransformer
    bias: Bias
    sample: list[Paragraph]
    text: str
    token_id: int
    seed: int
    encoder: Encoder | None = None

    def trainer(self, initial_row: Float[Tensor, " d_model"], max_norm: float) -> Trainer:
        """The optimizer of the row, before its first step."""
        beginning = shared_beginning(self.model, self.bias, self.text, self.token_id)
        return Trainer(
            self.model, initial_row, self.token_id, beginning=beginning, max_norm=max_norm
        )

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
        loss = sum(losses) / len(losses) if losses else None
        found: dict[str, Any] = {"epoch": epoch, "loss": loss, "norm": row.norm().item()}
        if self.encoder is None:
            return found
        W_E = embedding(self.model)
        W_E[self.token_id] = row.to(W_E)
        return {**found, **probe(self.model, self.bias, self.text, self.encoder)._asdict()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Course(Result):
    """A training after some epochs."""

    key: str
    """Hash of everything that decides the training."""
    epoch_rows: Float[Tensor, "epoch d_model"]
    exp_avg: Float[Tensor, " d_model"]
    exp_avg_sq: Float[Tensor, " d_model"]
    losses: tuple[float, ...] = ()
    epochs: tuple[dict[str, Any], ...]
    seconds: float = 0.0
    """Spent on it, over all interruptions."""

    @property
    def n_steps(self) -> int:
        """Optimizer steps so far."""
        return len(self.losses)

    def after(
        self, trainer: Trainer, losses: list[float], record: dict[str, Any], seconds: float
    ) -> Course:
        """The course with one more epoch."""
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

    def token(self, chosen_epoch: int, made: dict[str, Any]) -> BiasToken:
        """The BiasToken with the row of an epoch; ``made`` are its other fields."""
        return BiasToken(
            row=self.epoch_rows[chosen_epoch].clone(),
            initial_row=self.epoch_rows[0].clone(),
            epoch_rows=self.epoch_rows,
            epochs=self.epochs,
            chosen_epoch=chosen_epoch,
            losses=self.losses,
            seconds=round(self.seconds, 1),
            **made,
        )


def begun(run: Run, trainer: Trainer, key: str, checkpoint: Path | None) -> Course:
    """The course at its start, or as far as the checkpoint has it; the trainer is put there.

    Raises:
        StoreError: the checkpoint belongs to another training.
    """
    if checkpoint is None or not result_path(checkpoint).is_file():
        row = trainer.row.detach()
        zero = torch.zeros_like(row.cpu())
        return Course(
            key=key, epoch_rows=row.cpu().clone()[None], exp_avg=zero, exp_avg_sq=zero,
            epochs=(run.record(0, row, []),),
        )  # fmt: skip
    found = Course.load(checkpoint)
    if found.key != key:
        raise StoreError(
            "checkpoint must belong to this training (bias, settings, seed, model, versions), got "
            f"{str(checkpoint)!r} of another. Delete it or choose another path."
        )
    trainer.restore(found.epoch_rows[-1], found.exp_avg, found.exp_avg_sq, found.n_steps)
    return found
