"""On which models the equations of an attribution hold, and how far off one in 16 bits is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from biasgym_tl.errors import AttributionError
from biasgym_tl.lens import HookedTransformer, check_model
from biasgym_tl.precision import SHORT, computed_in
from biasgym_tl.scoping.compare import rank_correlation, top_overlap
from biasgym_tl.scoping.pairs import Pairs

if TYPE_CHECKING:
    from biasgym_tl.scoping.scores import HeadScores

COMPARED = 24
"""Pairs on which a map in 16 bits is compared with the exact one."""
TOP = 10
"""Heads whose overlap is told."""


def check_exact(model: HookedTransformer) -> None:
    """Refuse models on which direct attribution is not exact.

    Raises:
        ModelError: as :func:`check_equations`.
        AttributionError: as :func:`check_equations`, or the model computes in 16 bits.
    """
    check_equations(model)
    check_precision(model)


def check_equations(model: HookedTransformer) -> None:
    """Refuse models on which the equations of direct attribution do not hold.

    Raises:
        ModelError: the model is no HookedTransformer with its own value biases.
        AttributionError: the model has positions outside the residual stream, or is on a device
            without 64-bit floats.
    """
    check_model(model)
    check_positions(model)
    if torch.device(model.cfg.device or "cpu").type == "mps":
        raise AttributionError(
            "device must have 64-bit floats, got 'mps'. Move the model: model.to('cpu')."
        )


def check_positions(model: HookedTransformer) -> None:
    """Refuse positions outside the residual stream: its parts, and late starts, lack them."""
    if model.cfg.positional_embedding_type == "shortformer":
        raise AttributionError(
            "positional_embedding_type must be in the residual stream, got 'shortformer': no part "
            "of it holds these positions. Use another model, or silence heads with steer(...)."
        )


def check_precision(model: HookedTransformer) -> None:
    """Refuse what is computed in 16 bits: effects of single heads need more."""
    if model.cfg.dtype not in (torch.float32, torch.float64):
        raise AttributionError(
            f"dtype must be torch.float32 or torch.float64 for attribution, got {model.cfg.dtype}. "
            "Load the model with dtype=torch.float32, or with exact=True, which computes in fp32 "
            "whatever weights are kept in."
        )


def with_precision(
    model: HookedTransformer, pairs: Pairs, found: HeadScores, score: Callable[[Pairs], HeadScores]
) -> HeadScores:
    """A map of a model that computes in 16 bits, with how it agrees with the exact one.

    Args:
        model: It computes in fp32, layer by layer, while the exact map is made.
        pairs: The first :data:`COMPARED` of them are scored in both ways.
        found: The map of all pairs, in 16 bits.
        score: Makes a map.

    Returns:
        The map, in whose settings ``"precision"`` has ``dtype``, ``n_pairs``, and of both maps over
        them Spearman's ``rank_correlation`` over heads and the share of the ``k`` highest that they
        have in common, ``overlap``; or of a model that computes in 32 or 64 bits, as it is.
    """
    if model.cfg.dtype not in SHORT:
        return found
    few, dtype = pairs.first(COMPARED), str(model.cfg.dtype).removeprefix("torch.")
    with computed_in(model, torch.float32):
        exact = score(few)
    coarse = found.by_pair[:COMPARED].mean(0)
    a, b = (values.flatten()[None].double() for values in (coarse, exact.values))
    k = min(TOP, a.numel())
    precision = {
        "dtype": dtype,
        "n_pairs": len(few.prompts),
        "rank_correlation": rank_correlation(a, b).item(),
        "k": k,
        "overlap": top_overlap(a, b, k).item(),
    }
    return dataclasses.replace(found, settings={**found.settings, "precision": precision})
