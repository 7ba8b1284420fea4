"""The layer of a vector, chosen on fitting data alone: where the bias falls furthest at one KL."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.biases.bias import Bias
from biasgym_tl.errors import SteeringError
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.passages import load_passages
from biasgym_tl.rivals.damage import Damage, to_kl
from biasgym_tl.rivals.intervention import ResidEdit
from biasgym_tl.rivals.samples import Between, Odds, States, seen, states

N_LAYERS = 6
"""Layers that are tried."""
EVERY = 3
"""One of so many budget texts is read for it."""
AT_KL = 0.03
"""Nats per token at which they are compared."""


def best_layer(
    model: HookedTransformer,
    bias: Bias,
    tokens: Sequence[BiasToken],
    make: Callable[[int], ResidEdit],
    layer: int | None = None,
) -> ResidEdit:
    """The edit of the layer at which log-odds on scoping prompts fall furthest at KL 0.03.

    Args:
        model: The model, unchanged.
        bias: Gives scoping prompts and fitting targets.
        tokens: BiasTokens, which count as much as the targets.
        make: The edit at a layer.
        layer: Chosen already; nothing is tried.

    Returns:
        The edit, with ``layer`` and ``path`` among its settings: of each layer that was tried its
        number, the strength at that KL, and the log-odds there minus those before (nats).

    Raises:
        SteeringError: at no layer that is tried the edit reaches that KL.
    """
    if layer is not None:
        return make(layer)
    damage = Damage(model, load_passages("budget")[::EVERY])
    odds = Odds(model, bias, tokens)
    before, path = odds.mean(), list[tuple[int, float, float]]()
    n, strength, refusals = model.cfg.n_layers, 1.0, []
    for at in sorted({round(i) for i in torch.linspace(0, n - 1, min(N_LAYERS, n)).tolist()}):
        try:
            edit = to_kl(model, make(at).at(strength), AT_KL, damage=damage, tolerance=0.2)
        except SteeringError as error:
            refusals.append(error)
            continue
        strength = edit.strength
        path.append((at, strength, odds.mean(edit) - before))
    if not path:
        raise refusals[-1]
    (chosen, _, _) = min(path, key=lambda tried: tried[2])
    found = make(chosen)
    return dataclasses.replace(found, settings={**found.settings, "path": list(map(list, path))})


def erasing(
    reader: Callable[[Tensor, Tensor], Tensor],
) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
    """``parts`` of :func:`vector` that take away what is read along the difference of the means.

    Args:
        reader: What is read, of that difference (biased minus neutral) and all states.
    """

    def parts(
        biased: Float[Tensor, "n d_model"], neutral: Float[Tensor, "m d_model"]
    ) -> dict[str, Tensor]:
        delta, states = biased.mean(0) - neutral.mean(0), torch.cat([biased, neutral])
        read = reader(delta, states)
        return {"read": read[None], "write": -delta[None], "mean": states.mean(0)}

    return parts


def vector(
    model: HookedTransformer,
    bias: Bias,
    tokens: Sequence[BiasToken],
    method: str,
    between: Between,
    parts: Callable[..., dict[str, torch.Tensor]],
    layer: int | None = None,
    found: States | None = None,
) -> ResidEdit:
    """An edit of the residual stream, made of states after a layer.

    Args:
        model: The model, unchanged.
        bias: Gives scoping prompts and fitting targets.
        tokens: BiasTokens.
        method: Its name.
        between: What the two classes differ in.
        parts: Of the biased and neutral states at a layer, ``read``, ``write``, ``mean`` and
            ``added``; what is left out is 0.
        layer: Default: :func:`best_layer`.
        found: Those states, of every layer; default: run here.
    """
    if found is None:
        found = states(model, bias, tokens, "hook_resid_post", between)

    def make(at: int) -> ResidEdit:
        values = found.values[:, at]
        none, zero = values.new_zeros(0, values.shape[1]), values.new_zeros(values.shape[1])
        made = {"read": none, "write": none, "mean": zero, "added": zero}
        made |= parts(values[found.biased], values[~found.biased])
        tensors: dict[str, Any] = {name: value.float() for name, value in made.items()}
        return ResidEdit(
            method=method,
            bias=bias.name,
            model=model.cfg.model_name,
            data=seen(bias),
            settings={"between": between, "layer": at},
            layer=at,
            **tensors,
        )

    return best_layer(model, bias, tokens, make, layer)
