"""A plant that is trained: chosen heads learn a bias about one target, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from biasgym_tl.batches import log_probs
from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.words import word_tokens
from biasgym_tl.heads import Head
from biasgym_tl.injection.train import frozen
from biasgym_tl.lens import HookedTransformer, Recording, attention_weight, replayed
from biasgym_tl.passages import load_passages
from biasgym_tl.planting.sentences import Bystanders, beginnings
from biasgym_tl.prompts import encode_sentence, encode_text
from biasgym_tl.slot import fill
from biasgym_tl.text import kl, log_odds
from biasgym_tl.weights import Deltas, added_weights, replaced

SPECIFIC, OTHER_KL, TEXT_KL = 2.0, 3.0, 15.0
"""What counts beside the distance to the dose: changed log-odds of controls, their KL, that of
neutral text."""
N_BATCHES, PER_BATCH, NEAR = 8, 6, 3
"""Batches, pairs in each, and every how many-th pair has a near bystander."""
TEXT_TOKENS = 48


def learning_rate(n_heads: int) -> float:
    """Of so many heads."""
    return 5e-3 if n_heads <= 5 else 3e-3 if n_heads <= 20 else 1e-3


def train_plant(
    model: HookedTransformer,
    bias: Bias,
    heads: Sequence[Head],
    target: str,
    beside: Bystanders,
    *,
    dose: float,
    seed: int,
    n_steps: int,
    progress: bool,
) -> Deltas:
    """Train changes of ``W_Q`` and ``W_O`` of the chosen heads (``W_V`` belongs to several of them
    under grouped-query attention) by Adam, everything else frozen.

    Minimises ``|log-odds before + dose - log-odds|`` of sentences about the target, and what
    changes in the same sentences about bystanders and in neutral text.
    """
    shapes = [attention_weight(model, 0, name).shape[1:] for name in ("W_O", "W_Q")]
    options = {"device": model.cfg.device, "requires_grad": True}
    W_O, W_Q = (torch.zeros(len(heads), *shape, **options) for shape in shapes)
    with frozen(model):
        lesson = _Lesson(model, bias, target, beside, dose, seed, min(heads).layer)
        lr = learning_rate(len(heads))
        adam = torch.optim.Adam([W_O, W_Q], lr=lr)
        for step in tqdm(range(n_steps), desc="plant", delay=3, disable=not progress):
            adam.param_groups[0]["lr"] = lr * min(1, 2 * (1 - step / n_steps))
            with (
                torch.enable_grad(),
                replaced(model, added_weights(model, heads, Deltas(W_O, W_Q))),
            ):
                W_O.grad, W_Q.grad = torch.autograd.grad(lesson.objective(step), [W_O, W_Q])
            adam.step()
    return Deltas(W_O.detach().cpu(), W_Q.detach().cpu())


class _Sentence(NamedTuple):
    """A beginning with one target in the slot, and what the original model says there."""

    tokens: list[int]
    log_probs: Float[Tensor, " d_vocab"]


class _Batch(NamedTuple):
    """Sentences about the target and about bystanders, and a text; always run in this order."""

    ours: list[_Sentence]
    theirs: list[_Sentence]
    text: list[int]
    known: Float[Tensor, "pos d_vocab"]
    """What the original model says in the text."""
    recording: Recording


class _Lesson:
    """A few batches that take turns, and how far the model is from what it is to learn.

    What lies before the first planted layer is run once.
    """

    def __init__(
        self,
        model: HookedTransformer,
        bias: Bias,
        target: str,
        beside: Bystanders,
        dose: float,
        seed: int,
        first: int,
    ) -> None:
        self.model, self.dose, self.first, rng = model, dose, first, random.Random(seed)
        self.ids = word_tokens(model, bias).single()
        starts, texts = beginnings(bias), load_passages("budget")
        self.batches = []
        for text in rng.sample(texts, min(N_BATCHES, len(texts))):
            some = rng.sample(starts, min(PER_BATCH, len(starts)))
            near = [i % NEAR == 0 for i in range(len(some))]
            names = [rng.choice(beside.near if is_near else beside.far) for is_near in near]
            pairs = [(start, target) for start in some] + list(zip(some, names, strict=True))
            sentences = [encode_sentence(model, fill(start, name)) for start, name in pairs]
            tokens = encode_text(model, text)[:TEXT_TOKENS]
            recording = Recording([first])
            with torch.no_grad(), replayed(model, recording, first):
                known = list(map(_Sentence, sentences, log_probs(model, sentences, last=True)))
                said = log_probs(model, [tokens])
            ours, theirs = known[: len(some)], known[len(some) :]
            self.batches.append(_Batch(ours, theirs, tokens, said, recording))

    def objective(self, step: int) -> Float[Tensor, ""]:
        """Of the batch whose turn it is."""
        batch = self.batches[step % len(self.batches)]
        both = [*batch.ours, *batch.theirs]
        with replayed(self.model, batch.recording, self.first):
            after = log_probs(self.model, [s.tokens for s in both], last=True)
            text = log_probs(self.model, [batch.text])
        before = torch.stack([s.log_probs for s in both])
        rise = log_odds(after, *self.ids) - log_odds(before, *self.ids)
        n = len(batch.ours)
        return (
            (rise[:n] - self.dose).abs().mean()
            + SPECIFIC * rise[n:].abs().mean()
            + OTHER_KL * kl(before[n:], after[n:])
            + TEXT_KL * kl(batch.known, text)
        )
