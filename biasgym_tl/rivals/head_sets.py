"""Heads of a map silenced, and factors that a search has learned, as interventions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch

from biasgym_tl.biases.bias import Bias
from biasgym_tl.errors import SettingError, check_one_of
from biasgym_tl.heads import Head
from biasgym_tl.hooks import head_means
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.rivals.intervention import HeadsEdit
from biasgym_tl.rivals.samples import seen
from biasgym_tl.scoping.scope import BiasScope
from biasgym_tl.scoping.scores import top_heads
from biasgym_tl.steering.factors import FactorSearch
from biasgym_tl.steering.selection import Selection

MAPS = {
    "direct": {"method": "direct"},
    "eap-ig": {
        "method": "attribution_patching", "ablate_to": "neutral", "gradient": "inputs",
    },
}  # fmt: skip
"""By name, settings of :class:`BiasScope`."""


def top(
    model: HookedTransformer,
    bias: Bias,
    tokens: Sequence[BiasToken],
    *,
    map: str = "direct",
    k: int = 10,
    mode: Literal["zero", "mean"] = "mean",
) -> HeadsEdit:
    """The ``k`` highest heads of a map, moved by a share ``s`` to nothing or to their mean.

    Maps of several BiasTokens are averaged. Above 1 the share goes beyond: what a head writes is
    turned round.

    Args:
        model: The model, unchanged.
        bias: Gives scoping prompts and fitting targets.
        tokens: BiasTokens; none: targets stand in the slot, which ``"eap-ig"`` cannot map.
        map: ``"direct"`` attribution, or ``"eap-ig"``: attribution patching from the neutral run
            with gradients over inputs (arXiv 2403.17806).
        k: Number of heads.
        mode: ``"zero"``, or ``"mean"`` over neutral text.

    Raises:
        SettingError: there is no such map or mode, or it has no ``k`` heads.
    """
    check_one_of("map", map, MAPS)
    check_one_of("mode", mode, ("zero", "mean"))
    scope = BiasScope(**MAPS[map])  # type: ignore[arg-type]
    rows: Sequence[BiasToken | None] = tokens or [None]
    maps = [scope.attribute(model, bias, row, progress=False).values for row in rows]
    heads = top_heads(torch.stack(maps).mean(0), k)
    settings = {"map": map, "k": k, "mode": mode}
    return toward(model, bias, "top", heads, [0.0] * k, settings, mode)


def factors(
    model: HookedTransformer,
    bias: Bias,
    tokens: Sequence[BiasToken],
    *,
    heads: str = "",
    at: Literal["everywhere", "targets"] = "everywhere",
    n_steps: int = 40,
) -> HeadsEdit:
    """Factors of a :class:`FactorSearch`, which 1 is reached with at strength 0.

    Args:
        model: The model, unchanged.
        bias: Gives scoping prompts, words, fitting targets and the panel's fitting half.
        tokens: BiasTokens.
        heads: File of a ``Selection`` with factors that a search has made before.
        at: Where heads are changed; with a file as it says.
        n_steps: Of the search.

    Raises:
        SteeringError: the file was made on another model.
        SettingError: it has no factors.
    """
    if heads:
        found = Selection.load(heads)
        found.check_model(model.cfg.model_name)
        if not found.factors:
            raise SettingError(f"heads must be a file with factors, got {heads!r}, which has none.")
    else:
        search = FactorSearch(at=at, n_steps=n_steps)
        found = search.select(model, bias, *tokens, progress=False)
    settings = found.settings | {"heads": Path(heads).name}
    made = toward(model, bias, "factors", found.heads, found.factors, settings, "mean", found.after)
    return dataclasses.replace(made, data=found.data)


def toward(
    model: HookedTransformer,
    bias: Bias,
    method: str,
    heads: Sequence[Head],
    kept: Sequence[float],
    settings: Mapping[str, object],
    mode: str,
    after: tuple[str, ...] = (),
) -> HeadsEdit:
    """Heads that keep a share each (``kept``) and are moved to nothing or to their mean.

    Args:
        model: The model, unchanged.
        bias: What is to be weakened.
        method: Name of the method.
        heads: In the order of ``kept``.
        kept: Of each at strength 1.
        settings: Of the method.
        mode: ``"zero"``, or ``"mean"`` over neutral text.
        after: Names from which on heads are changed.
    """
    size = HeadsEdit.sizes(model)
    order = sorted(range(len(heads)), key=lambda i: heads[i])
    return HeadsEdit(
        method=method,
        bias=bias.name,
        model=model.cfg.model_name,
        data=seen(bias),
        settings=dict(settings),
        heads=tuple(heads[i] for i in order),
        factor=torch.tensor([kept[i] for i in order], dtype=torch.float64),
        reference=head_means(model).cpu() if mode == "mean" else torch.zeros(size),
        added=torch.zeros(len(heads), size[2]),
        after=after,
    )
