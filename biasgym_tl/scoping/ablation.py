"""Ablation sweep: what happens to a measure when one head is silenced, for every head.

A *total* effect: everything after the head reacts. A run without head ``(l, h)`` differs from the
plain run only from layer ``l`` on, so it starts from the cached residual stream before that layer,
all heads of the layer side by side in one batch, and what all sequences begin with is run once for
each head instead of once for each sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from biasgym_tl.batches import answer_batches, cached_beginning, common_beginning
from biasgym_tl.errors import AttributionError
from biasgym_tl.hooks import collected
from biasgym_tl.lens import (
    HookedTransformer,
    TransformerLensKeyValueCache,
    TransformerLensKeyValueCacheEntry,
    logit_difference,
    unembed,
)
from biasgym_tl.prompts import encode_text

ROWS_AT_ONCE = 128


class Ablated(NamedTuple):
    """Final residuals of some sequences, without each head of one layer in turn."""

    layer: int
    indices: list[int]
    """Which sequences."""
    last: Int[Tensor, " batch"]
    """Their answer positions, counted from the end of the common beginning."""
    resid: Float[Tensor, "n_heads batch pos d_model"]


@torch.inference_mode()
def ablated(
    model: HookedTransformer,
    sequences: Sequence[Sequence[int]],
    *,
    reference: Float[Tensor, "n_layers n_heads d_head"] | None = None,
    answer_only: bool = False,
    shared: int | None = None,
    rows_at_once: int = ROWS_AT_ONCE,
    progress: bool = False,
) -> Iterator[Ablated]:
    """Run ``sequences`` without each head in turn, layer by layer.

    Args:
        model: The model, with the BiasToken attached if a sequence contains it. A steering stays
            active in every run.
        sequences: Token ids.
        reference: What ``hook_z`` of the head is replaced with; None: zero.
        answer_only: Silence the head at the last position alone, not at all positions.
        shared: Length of the beginning that all sequences share; None: as long as it is.
        rows_at_once: Sequences times heads that are run side by side.
        progress: Show a bar over layers.

    Raises:
        AttributionError: the model's positions are outside the residual stream.
    """
    cfg = model.cfg
    if cfg.positional_embedding_type == "shortformer":
        raise AttributionError(
            "positional_embedding_type must be in the residual stream, got 'shortformer': a run "
            "cannot start in the middle. Silence the heads with steer(...) instead."
        )
    shared = common_beginning(sequences) if shared is None else shared
    beginning = list(sequences[0][:shared])
    run_beginning = partial(cached_beginning, model, beginning, 1)
    cache = run_beginning() if answer_only else None  # otherwise each head has one of its own
    before = _resid_pre(model, run_beginning) if shared and not answer_only else None
    batches = list(answer_batches(model, sequences, max(1, rows_at_once // cfg.n_heads), shared))
    residuals = [_resid_pre(model, partial(model, **batch.arguments)) for batch in batches]
    for layer in tqdm(range(cfg.n_layers), desc="ablate heads", unit="layer", disable=not progress):
        without = _Without(model, layer, reference, answer_only)
        if before is not None:
            cache = without.beginning(before[layer])
        for batch, resid in zip(batches, residuals, strict=True):
            mask = batch.arguments["attention_mask"]
            found = without.rest(resid[layer], mask, batch.last, cache)
            yield Ablated(layer, batch.indices, batch.last, found)


@torch.inference_mode()
def ablated_deltas(
    model: HookedTransformer,
    sequences: Sequence[Sequence[int]],
    biased_ids: Int[Tensor, " pair"],
    neutral_ids: Int[Tensor, " pair"],
    **options: Any,
) -> Float[Tensor, "pair n_layers n_heads"]:
    """Logit difference ``b - n`` (before a final soft cap) after each sequence, without each head.

    Options as in :func:`ablated`.
    """
    n = model.cfg.n_layers, model.cfg.n_heads
    found = torch.zeros(len(sequences), *n, dtype=torch.float64)
    for layer, indices, last, resid in ablated(model, sequences, **options):
        at_answer = resid[:, torch.arange(len(last)), last]
        ids = biased_ids[indices], neutral_ids[indices]
        for head, rows in enumerate(at_answer):
            found[indices, layer, head] = logit_difference(model, rows, *ids).double().cpu()
    return found


@torch.inference_mode()
def ablated_losses(
    model: HookedTransformer, texts: Sequence[str], **options: Any
) -> Float[Tensor, "text n_layers n_heads"]:
    """Mean next-token loss of each text (nats per token) without each head; see :func:`ablated`."""
    n = model.cfg.n_layers, model.cfg.n_heads
    found = torch.zeros(len(texts), *n, dtype=torch.float64)
    for i, text in enumerate(texts):
        tokens = encode_text(model, text)
        wanted = torch.tensor(tokens[1:], device=model.cfg.device)[:, None]
        for layer, _, _, resid in ablated(model, [tokens], shared=0, **options):
            for head in range(model.cfg.n_heads):
                log_probs = unembed(model, resid[head, 0, :-1]).log_softmax(-1)
                found[i, layer, head] = -log_probs.gather(-1, wanted).double().mean().cpu()
    return found


class _Without:
    """Runs from one layer on, one copy for each of its heads, that head silenced."""

    def __init__(
        self,
        model: HookedTransformer,
        layer: int,
        reference: Float[Tensor, "n_layers n_heads d_head"] | None,
        answer_only: bool,
    ) -> None:
        self.model, self.layer, self.answer_only = model, layer, answer_only
        self.value = None if reference is None else reference[layer]
        self.n_heads = model.cfg.n_heads

    def beginning(self, resid: Float[Tensor, "1 pos d_model"]) -> Any:
        """Key-value cache of the common beginning, one row for each head."""
        cfg, n = self.model.cfg, self.n_heads
        cache = TransformerLensKeyValueCache.init_cache(cfg, cfg.device, n)
        mask = torch.ones(n, resid.shape[1], dtype=torch.long, device=resid.device)
        self._run(resid.expand(n, -1, -1), mask, slice(None), cache)
        cache.freeze()
        return cache

    def rest(
        self,
        resid: Float[Tensor, "batch pos d_model"],
        mask: Int[Tensor, "batch pos"],
        last: Int[Tensor, " batch"],
        cache: Any,
    ) -> Float[Tensor, "n_heads batch pos d_model"]:
        """Final residuals after the common beginning that ``cache`` holds, head by head."""
        n, batch = self.n_heads, len(resid)
        mask = mask.repeat(n, 1)
        if cache is not None:
            cache = _one_row_each(cache, n, batch)
            shared = cache.entries[self.layer].past_keys.shape[1]
            mask = torch.cat([mask.new_ones(n * batch, shared), mask], 1)
        where = last.repeat(n) if self.answer_only else slice(None)
        found = self._run(resid.repeat(n, 1, 1), mask, where, cache)
        return found.view(n, batch, *found.shape[1:])

    def _run(
        self,
        resid: Float[Tensor, "row pos d_model"],
        mask: Int[Tensor, "row key"],
        where: slice | Int[Tensor, " row"],
        cache: Any,
    ) -> Float[Tensor, "row pos d_model"]:
        rows = torch.arange(len(resid), device=resid.device)
        heads = rows // (len(resid) // self.n_heads)
        value = 0 if self.value is None else self.value[heads]

        def silence(z: Float[Tensor, "row pos n_heads d_head"], hook: Any) -> Tensor:
            z = z.clone()
            if isinstance(where, slice):
                z[rows, :, heads] = value if isinstance(value, int) else value[:, None].to(z)
            else:
                z[rows, where, heads] = value if isinstance(value, int) else value.to(z)
            return z

        layer = self.layer
        with self.model.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_z", silence)]):
            found: Tensor = self.model(
                resid,
                attention_mask=mask,
                past_kv_cache=cache,
                start_at_layer=layer,
                stop_at_layer=self.model.cfg.n_layers,
            )
        return found


def _one_row_each(cache: Any, n_heads: int, batch: int) -> Any:
    """The cache of one sequence, or of one a head, for ``batch`` sequences a head."""

    def rows(values: Tensor) -> Tensor:
        values = values[:, None].expand(-1, batch * n_heads // len(values), -1, -1, -1)
        return values.flatten(0, 1)

    entries = [
        TransformerLensKeyValueCacheEntry(rows(e.past_keys), rows(e.past_values), frozen=True)
        for e in cache.entries
    ]
    mask = cache.previous_attention_mask[:1].expand(n_heads * batch, -1)
    return TransformerLensKeyValueCache(entries, mask, frozen=True)


def _resid_pre(model: HookedTransformer, run: Callable[[], object]) -> list[Tensor]:
    """The residual stream before each layer while ``run`` runs the model."""
    with collected(model, "hook_resid_pre") as found:
        run()
    return found
