"""Plant a bias about one target in chosen heads, measure it, and refuse what is not specific."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import torch

from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.given import GivenBias, as_bias
from biasgym_tl.errors import PlantingError, check_at_least, check_one_of
from biasgym_tl.heads import GivenHeads, Head, as_heads, check_heads
from biasgym_tl.injection.token import weights_fingerprint
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.planting.measure import restorations, specificity
from biasgym_tl.planting.planted import Deltas, Limits, Planted
from biasgym_tl.planting.rank_one import rank_one_plant
from biasgym_tl.planting.sentences import Bystanders, bystanders, target_token
from biasgym_tl.planting.trained import train_plant
from biasgym_tl.scoping.direct import check_precision
from biasgym_tl.store import Finished, make_now, versions

WAYS = {"trained": "", "rank one": "logits", "relay": "later", "sham": "nothing"}
"""How a bias is planted: ``W_Q`` and ``W_O`` are trained; or ``W_O`` is changed by rank one, so
that a head writes the words' logits itself (``"rank one"``), writes what later parts turn into them
(``"relay"``), or writes as much in a random direction (``"sham"``, a control)."""
SHAM = 1.0
"""Largest change of the target's log-odds by a sham (nats)."""


def plant(
    model: HookedTransformer,
    bias: GivenBias,
    heads: GivenHeads,
    target: str,
    dose: float = 5.0,
    seed: int = 0,
    *,
    way: str = "trained",
    n_steps: int = 48,
    limits: Limits | None = None,
    finished: Finished = make_now,
    progress: bool = True,
) -> Planted:
    """Change the weights of chosen heads, and nothing else, so that a bias about one target rises.

    Measured on what it was not made on; each head is then restored and changed alone.

    Args:
        model: A model in fp32 with its own weights.
        bias: Its corpus gives the sentences, its words the log-odds.
        heads: Heads that may carry it. Of rank one, the first is the strongest.
        target: Whom it is about: a name that is one token of the model.
        dose: Rise of the target's log-odds that is aimed at (nats).
        seed: Decides sentences, controls and batches.
        way: One of ``WAYS``; ``n_steps`` are of the training.
        limits: What is accepted.
        finished: May return what is stored of the original model, as in ``evaluate``.
        progress: Show bars.

    Raises:
        PlantingError: the target is several tokens, the model has norms after attention (rank one),
            or the plant does too little or too much; the message says what, and has the plant as
            its ``planted``.
        SettingError: ``way``, ``dose`` or ``n_steps`` is outside its range.
        BiasFileError: the bias lacks a corpus, prompts or targets.
        AttributionError: the model has weights of less than 32 bits.
    """
    bias, limits = as_bias(bias), limits or Limits()
    check_one_of("way", way, WAYS)
    check_at_least(1, n_steps=n_steps)
    check_at_least(0, dose=dose)
    check_precision(model)
    bias.needs("evaluation")
    check_heads(heads, model.cfg.n_layers, model.cfg.n_heads)
    chosen = as_heads(heads)
    target_token(model, bias, target)
    beside = bystanders(model, bias, target, seed=seed)
    options: dict[str, Any] = {"dose": dose, "seed": seed}
    if way == "trained":
        options |= {"n_steps": n_steps, "progress": progress}
        added = train_plant(model, bias, chosen, target, beside, **options)
    else:
        options["through"] = WAYS[way]
        added = rank_one_plant(model, bias, chosen, target, beside, **options)
    about = {"way": way, "dose": dose, "seed": seed, "settings": {"n_steps": n_steps}}
    planted = _unmeasured(model, bias, chosen, target, added, about)
    planted = _measured(planted, model, bias, beside, finished, progress)
    _check_specific(planted, limits)
    return planted


def _measured(
    planted: Planted,
    model: HookedTransformer,
    bias: Bias,
    beside: Bystanders,
    finished: Finished,
    progress: bool,
) -> Planted:
    """With what it does, and what each of its heads carries."""
    changed, heads, target = partial(planted.changed, model), planted.heads, planted.target
    report = specificity(model, bias, target, beside, changed(heads), finished)
    restored, alone = restorations(model, bias, target, changed, heads, progress=progress)
    return dataclasses.replace(planted, report=report, restored=restored, alone=alone)


def _check_specific(planted: Planted, limits: Limits) -> None:
    """Refuse a plant that does too little or too much, and a sham that does anything."""
    wrong, rise = planted.unspecific(limits), planted.report["target"]
    if planted.way == "sham":
        wrong = [each for each in wrong if not each.startswith("target")]
        wrong += [f"target {rise:+.3f} (a sham: at most {SHAM:g})"] if abs(rise) > SHAM else []
    if wrong:
        error = PlantingError(
            f"plant must be specific, got {'; '.join(wrong)}. Choose other heads, another target, "
            f"a smaller dose or limits=; error.planted has it."
        )
        error.planted = planted  # type: ignore[attr-defined]
        raise error


def _unmeasured(
    model: HookedTransformer,
    bias: Bias,
    heads: tuple[Head, ...],
    target: str,
    added: Deltas,
    about: dict[str, Any],
) -> Planted:
    """The plant, of which nothing is known yet."""
    return Planted(
        heads=heads,
        W_O=added.W_O,
        W_Q=added.W_Q,
        restored=torch.zeros(len(heads)),
        alone=torch.zeros(len(heads)),
        report={},
        bias=bias.name,
        target=target,
        n_layers=model.cfg.n_layers,
        n_heads=model.cfg.n_heads,
        model=model.cfg.model_name,
        weights=weights_fingerprint(model),
        versions=versions(),
        **about,
    )
