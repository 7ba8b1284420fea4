"""What a plant does: to its target, to all else, and through which of its heads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.facts import evenly, load_facts
from biasgym_tl.elicitation import bias_log_odds, fact_margins
from biasgym_tl.heads import Head
from biasgym_tl.lens import HookedTransformer, Recording, replayed
from biasgym_tl.passages import load_passages
from biasgym_tl.planting.sentences import Bystanders
from biasgym_tl.progress import Finished, make_now
from biasgym_tl.text import mean_loss

N_PROMPTS, N_FACTS, N_TEXTS = 12, 48, 12
"""Held-out prompts, facts and texts that a plant is measured on."""

With = Callable[[Iterable[Head]], AbstractContextManager[None]]
"""The model with the changes of these heads alone."""


def specificity(
    model: HookedTransformer,
    bias: Bias,
    target: str,
    beside: Bystanders,
    planted: AbstractContextManager[None],
    finished: Finished = make_now,
) -> dict[str, float]:
    """Changes from the original to the planted model, by the names of ``Limits``; and ``log_p``,
    the change of the log-probability of the attribute words after the target.

    ``finished`` may look up what the original model does.
    """
    targets, n = [target, *beside.unseen_near, *beside.unseen_far], len(beside.unseen_near)
    levels = partial(_levels, model, bias, targets)
    before = finished(f"before a plant, {bias.name}", [bias.fingerprint(), targets], levels)
    with planted:
        after = levels()
    changed = {
        name: torch.tensor(after[name]) - torch.tensor(before[name])
        for name in ("log_odds", "log_p")
    }
    return {
        "target": changed["log_odds"][0].item(),
        "neighbours": changed["log_odds"][1 : 1 + n].mean().item(),
        "others": changed["log_odds"][1 + n :].mean().item(),
        "facts": after["facts"] - before["facts"],
        "loss": after["loss"] - before["loss"],
        "log_p": changed["log_p"][0].item(),
    }


def _levels(model: HookedTransformer, bias: Bias, targets: Sequence[str]) -> dict[str, Any]:
    """By target the log-odds and log P(A), means over prompts (nats); share of right facts; mean
    loss (nats per token)."""
    odds = bias_log_odds(model, bias, bias.evaluation_prompts[:N_PROMPTS], targets)
    margins = fact_margins(model, evenly(load_facts(), N_FACTS))
    return {
        "log_odds": odds.log_odds.double().mean(0).tolist(),
        "log_p": odds.log_p.double().mean(0).tolist(),
        "facts": (margins > 0).double().mean().item(),
        "loss": mean_loss(model, load_passages("damage")[:N_TEXTS]).double().mean().item(),
    }


def restorations(
    model: HookedTransformer, bias: Bias, target: str, planted: With, heads: Sequence[Head],
    *, progress: bool,
) -> tuple[Float[Tensor, " head"], Float[Tensor, " head"]]:  # fmt: skip
    """For each head, by how much the target's log-odds fall when it alone is restored, and by how
    much they rise when it alone is changed (nats, mean over held-out prompts).

    Exact: the model is run with these very weights, from the head's layer on.
    """
    prompts = bias.evaluation_prompts[:N_PROMPTS]
    layers = {head.layer for head in heads}

    def log_odds(changed: Sequence[Head], first: int, recording: Recording) -> float:
        with planted(changed), replayed(model, recording, first):
            return bias_log_odds(model, bias, prompts, [target]).log_odds.double().mean().item()

    of_planted, of_original = Recording(layers), Recording(layers)
    whole = log_odds(heads, model.cfg.n_layers, of_planted)
    none = log_odds((), model.cfg.n_layers, of_original)
    restored, alone = [], []
    for head in tqdm(heads, desc="truth", unit="head", delay=3, disable=not progress):
        rest = [other for other in heads if other != head]
        restored.append(whole - log_odds(rest, head.layer, of_planted))
        alone.append(log_odds([head], head.layer, of_original) - none)
    return torch.tensor(restored), torch.tensor(alone)
