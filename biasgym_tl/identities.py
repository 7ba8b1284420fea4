"""What must hold of a model before any number is read from it, checked when it is loaded."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from biasgym_tl.errors import ModelError
from biasgym_tl.heads import Head
from biasgym_tl.lens import (
    HookedTransformer,
    attention_weight,
    empty_cache,
    final_resid,
    replaced_weight,
    unembed,
)


class Identity(NamedTuple):
    """Two ways to the same number, how far they are apart, and what to do where they differ."""

    name: str
    error: float
    advice: str


def check_identities(
    model: HookedTransformer, tokens: Int[Tensor, "1 pos"], tolerance: float
) -> None:
    """Refuse a model of which one of the identities does not hold to a share of its size.

    Raises:
        ModelError: that is so; the message names the identity.
    """
    for identity in identities(model, tokens):
        if not identity.error <= tolerance:
            raise ModelError(
                f"{identity.name} must hold for a {model.cfg.original_architecture}, got a "
                f"difference of {identity.error:.2g} of its size (accepted: {tolerance:g}). "
                f"{identity.advice}"
            )


@torch.no_grad()
def identities(model: HookedTransformer, tokens: Int[Tensor, "1 pos"]) -> list[Identity]:
    """Those that do not need a tokenizer, on one sequence of at least two tokens."""
    cfg, half = model.cfg, tokens.shape[1] // 2
    layer, head = cfg.n_layers // 2, cfg.n_heads - 1
    resid = final_resid(model, tokens)
    cache = empty_cache(model, 1)
    first = final_resid(model, tokens[:, :half], cache=cache)
    rest = final_resid(model, tokens[:, half:], cache=cache)
    start, _, _, mask = model.input_to_embed(tokens, attention_mask=torch.ones_like(tokens))
    run = partial(model, attention_mask=mask)
    middle = run(start, start_at_layer=0, stop_at_layer=layer) if layer else start
    resumed = run(middle, start_at_layer=layer, stop_at_layer=cfg.n_layers)

    def silence(z: Tensor, hook: Any) -> Tensor:
        z = z.clone()
        z[:, :, head] = 0
        return z

    with model.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_z", silence)]):
        silenced = final_resid(model, tokens)
    with without_output(model, Head(layer, head)):
        zeroed = final_resid(model, tokens)

    found = model(tokens, attention_mask=torch.ones_like(tokens))[0]
    return [
        Identity("unembedded final residual = logits", _share(unembed(model, resid[0]), found),
                 "Its logits are scaled in a way that the equations lack."),
        Identity("cached = uncached", _share(torch.cat([first, rest], 1), resid),
                 "Its key-value cache changes what it computes."),
        Identity("run in two parts = run at once", _share(resumed, resid),
                 "Something enters its layers beside the residual stream."),
        Identity("silenced head = zeroed W_O", _share(silenced, zeroed),
                 "hook_z is not what W_O reads."),
    ]  # fmt: skip


def without_output(model: HookedTransformer, head: Head) -> contextlib.AbstractContextManager[None]:
    """Context in which ``W_O`` of one head is zero; the parameter itself is left alone."""
    without = attention_weight(model, head.layer, "W_O").detach().clone()
    without[head.head] = 0
    return replaced_weight(model, head.layer, "W_O", without)


def _share(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())
