"""On which models the numbers of an attribution are exact; others are refused."""

from __future__ import annotations

import torch

from biasgym_tl.errors import AttributionError
from biasgym_tl.lens import HookedTransformer, check_model


def check_exact(model: HookedTransformer) -> None:
    """Refuse models on which the equations of direct attribution do not hold.

    Raises:
        ModelError: the model is no HookedTransformer with its own value biases.
        AttributionError: the model has positions outside the residual stream or weights of less
            than 32 bits, or is on a device without 64-bit floats.
    """
    check_model(model)
    check_positions(model)
    if torch.device(model.cfg.device or "cpu").type == "mps":
        raise AttributionError(
            "device must have 64-bit floats, got 'mps'. Move the model: model.to('cpu')."
        )
    check_precision(model)


def check_positions(model: HookedTransformer) -> None:
    """Refuse positions outside the residual stream: its parts, and late starts, lack them."""
    if model.cfg.positional_embedding_type == "shortformer":
        raise AttributionError(
            "positional_embedding_type must be in the residual stream, got 'shortformer': no part "
            "of it holds these positions. Use another model, or silence heads with steer(...)."
        )


def check_precision(model: HookedTransformer) -> None:
    """Refuse weights of less than 32 bits: effects of single heads need more."""
    if model.cfg.dtype not in (torch.float32, torch.float64):
        raise AttributionError(
            f"dtype must be torch.float32 or torch.float64 for attribution, got {model.cfg.dtype}. "
            "Load the model with dtype=torch.float32, or with exact=True, which computes in fp32 "
            "whatever weights are kept in."
        )
