"""Plant a bias about one target in chosen heads, measure it, and refuse what is not specific."""

from __future__ import annotations

from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor

from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.given import GivenBias, as_bias
from biasgym_tl.errors import PlantingError, check_at_least, check_one_of
from biasgym_tl.heads import GivenHeads, Head, as_heads, check_heads
from biasgym_tl.injection.token import weights_fingerprint
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.planting.measure import restorations, specificity
from biasgym_tl.planting.planted import Limits, Planted, changed
from biasgym_tl.planting.rank_one import rank_one_plant
from biasgym_tl.planting.sentences import bystanders, check_one_token
from biasgym_tl.planting.trained import train_plant
from biasgym_tl.progress import Finished, make_now
from biasgym_tl.scoping.checks import check_precision
from biasgym_tl.store import versions
from biasgym_tl.weights import Deltas

WAYS = {"trained": "", "rank one": "logits", "relay": "later", "sham": "nothing"}
"""How a bias is planted: ``W_Q`` and ``W_O`` are trained; or ``W_O`` is changed by rank one, so
that a head writes the words' logits itself (``"rank one"``), writes what later parts turn into them
(``"relay"``), or writes as much in a random direction (``"sham"``, a control)."""


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
    check_one_token(model, bias, target)
    beside = bystanders(model, bias, target, seed=seed)
    options: dict[str, Any] = {"dose": dose, "seed": seed}
    given = (model, bias, chosen, target, beside)
    if way == "trained":
        added = train_plant(*given, **options, n_steps=n_steps, progress=progress)
    else:
        added = rank_one_plant(*given, **options, through=WAYS[way])
    with_changes = partial(changed, model, chosen, added)
    report = specificity(model, bias, target, beside, with_changes(chosen), finished)
    truth = restorations(model, bias, target, with_changes, chosen, progress=progress)
    about = {**options, "target": target, "way": way, "settings": {"n_steps": n_steps}}
    planted = _planted(model, bias, chosen, added, truth, report=report, **about)
    return _specific(planted, limits)


def _specific(planted: Planted, limits: Limits) -> Planted:
    """The plant, unless it does too little or too much."""
    if wrong := planted.unspecific(limits):
        error = PlantingError(
            f"plant must be specific, got {'; '.join(wrong)}. Choose other heads, another target, "
            f"a smaller dose or limits=; error.planted has it."
        )
        error.planted = planted  # type: ignore[attr-defined]
        raise error
    return planted


def _planted(
    model: HookedTransformer,
    bias: Bias,
    heads: tuple[Head, ...],
    added: Deltas,
    truth: tuple[Float[Tensor, " head"], Float[Tensor, " head"]],
    **about: Any,
) -> Planted:
    """The plant, with what it was made for."""
    restored, alone = truth
    return Planted(
        heads=heads,
        **added._asdict(),
        restored=restored,
        alone=alone,
        bias=bias.name,
        n_layers=model.cfg.n_layers,
        n_heads=model.cfg.n_heads,
        model=model.cfg.model_name,
        weights=weights_fingerprint(model),
        versions=versions(),
        **about,
    )
