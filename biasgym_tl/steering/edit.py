"""From a steering to an :class:`~biasgym_tl.edits.Edit` that can be handed on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.edits import Edit, fingerprints
from biasgym_tl.errors import SteeringError
from biasgym_tl.heads import Factor, GivenHeads, Head, as_heads
from biasgym_tl.hooks import mode_of, steering_edit
from biasgym_tl.lens import HookedTransformer, layer_matrices
from biasgym_tl.steering.selection import Selection


def make_edit(
    model: HookedTransformer,
    heads: GivenHeads,
    mode: str | None = None,
    *,
    reference: Float[Tensor, "n_layers n_heads d_head"] | None = None,
    factor: Factor = None,
    judged: Mapping[str, Any] | None = None,
) -> Edit:
    """What :func:`biasgym_tl.steer` would do with these arguments, as a file of some kilobytes.

    ``make_edit(model, Selection.load("heads.json")).save("late.safetensors")``

    Args:
        model: The model, unsteered.
        heads: Heads to steer; how a ``Selection`` was chosen is kept.
        mode: As in ``steer``, like ``reference`` and ``factor``.
        reference: See ``mode``.
        factor: See ``mode``.
        judged: What an evaluation found of it, of ``biasgym_tl.evaluation.tables.judged``.

    Raises:
        SteeringError: heads, mode, reference or factor are not valid.
        ModelError: a ``Selection`` was made on another model.
    """
    heads = heads if isinstance(heads, Selection) else as_heads(heads)
    if not len(heads):
        raise SteeringError("heads of an edit must be at least one, got none.")
    chosen = heads if isinstance(heads, Selection) else None
    if chosen is not None:
        chosen.check_model(model.cfg.model_name)
    edit = steering_edit(model, heads, mode_of(heads, mode), reference, factor)
    return Edit(
        heads=tuple(Head(layer, head) for layer, part in edit.items() for head in part.heads),
        factor=torch.cat([part.factor for part in edit.values()]),
        shift=torch.cat([part.shift for part in edit.values()]),
        after=chosen.after if chosen else (),
        model=model.cfg.model_name,
        n_heads=model.cfg.n_heads,
        layers=fingerprints(layer_matrices(model), model.cfg.n_heads),
        chosen=chosen.record() if chosen else {},
        judged=dict(judged or {}),
    )
