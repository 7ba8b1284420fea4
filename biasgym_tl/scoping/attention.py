"""Where the heads look from the answer position, and what they move from there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.batches import answer_batches
from biasgym_tl.errors import AttributionError
from biasgym_tl.hooks import collected
from biasgym_tl.lens import HookedTransformer, attention_weight, unembed_difference
from biasgym_tl.scoping.checks import check_exact
from biasgym_tl.scoping.direct import attention_direction, final_direction, head_logits, written_at


@torch.inference_mode()
def answer_attention(
    model: HookedTransformer, sequence: Sequence[int]
) -> Float[Tensor, "n_layers n_heads pos"]:
    """Attention of every head from the last position to each position; sums to 1 over them.

    Args:
        model: The model, with the BiasToken attached if the sequence contains it.
        sequence: Token ids; the last position is the answer position.
    """
    (batch,) = answer_batches(model, [sequence], shared=0)
    with collected(model, "attn.hook_pattern") as patterns:
        model(**batch.arguments)
    return torch.stack([pattern[0, :, -1].cpu() for pattern in patterns])


@torch.inference_mode()
def position_attribution(
    model: HookedTransformer, sequence: Sequence[int], biased_id: int, neutral_id: int
) -> Float[Tensor, "n_layers n_heads pos"]:
    """Each head's direct contribution, split by the position that it was moved from (logits).

    ``out[l, h, p] = pattern[l, h, answer, p] * P(v[l, h, p] @ W_O[l, h]) . d``; the sum over ``p``
    is the head's value in :func:`direct_attribution`.

    Args:
        model: A model in fp32, unsteered, with the BiasToken attached if the sequence contains it.
        sequence: Token ids; the last position is the answer position.
        biased_id: ``b``.
        neutral_id: ``n``.

    Raises:
        AttributionError: the model is not supported, or is steered.
    """
    check_exact(model)
    (batch,) = answer_batches(model, [sequence], shared=0)
    with (
        collected(model, "attn.hook_v") as all_values,
        collected(model, "attn.hook_pattern") as patterns,
        written_at(model, batch.last) as written,
    ):
        resid = model(**batch.arguments)[:, -1]
    ids = (torch.tensor([token], device=resid.device) for token in (biased_id, neutral_id))
    direction = final_direction(model, resid, unembed_difference(model, *ids)[0].double())
    found = []
    for layer in range(model.cfg.n_layers):
        values, pattern = all_values[layer][0].double(), patterns[layer][0].double()
        values = values.repeat_interleave(model.cfg.n_heads // values.shape[1], dim=1)
        W_O = attention_weight(model, layer, "W_O").double()
        at_attention = attention_direction(model, layer, written, direction)
        each = head_logits(values, W_O, at_attention.expand(len(values), -1))
        found.append((pattern[:, -1] * each.T).cpu())
        whole = head_logits(written[f"{layer}.z"].double(), W_O, at_attention)[0].cpu()
        if not torch.allclose(found[-1].sum(-1), whole, rtol=1e-4, atol=1e-4):
            raise AttributionError(
                f"pattern times values must give hook_z in layer {layer}, and do not: the model is "
                "steered there, or clips its values. Leave the steering first."
            )
    return torch.stack(found)
