"""Ablation sweep: what happens to a measure when one head is silenced, for every head.

A *total* effect: everything after the head reacts. A run without head ``(l, h)`` differs from the
plain run only from layer ``l`` on, so it starts from the cached residual stream before that layer,
all heads of the layer side by side in one batch, and what all sequences begin with is run once for
each head instead of once for each sequence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from biasgym_tl.batches import (
    AnswerBatch,
    answer_batches,
    cached_beginning,
    common_beginning,
)
from biasgym_tl.heads import Head, all_heads
from biasgym_tl.hooks import collected
from biasgym_tl.lens import (
    HookedTransformer,
    TransformerLensKeyValueCache,
    TransformerLensKeyValueCacheEntry,
    empty_cache,
    logit_difference,
    unembed,
)
from biasgym_tl.prompts import encode_text
from biasgym_tl.scoping.checks import check_positions

ROWS_AT_ONCE = 128


class Ablated(NamedTuple):
    """Final residuals of some sequences, without each head of one layer in turn."""

    layer: int
    heads: list[int]
    """Which of its heads."""
    indices: list[int]
    """Which sequences."""
    last: Int[Tensor, " batch"]
    """Their answer positions, counted from the end of the common beginning."""
    resid: Float[Tensor, "head batch pos d_model"]


@torch.inference_mode()
def ablated(
    model: HookedTransformer,
    sequences: Sequence[Sequence[int]],
    *,
    heads: Iterable[Head] | None = None,
    reference: Float[Tensor, "n_layers n_heads d_head"] | None = None,
    answer_only: bool = False,
    shared: int | None = None,
    rows_at_once: int = ROWS_AT_ONCE,
    progress: bool = False,
) -> Iterator[Ablated]:
    """Run ``sequences`` without each head in turn (of ``heads``; None: of all), layer by layer; a
    steering stays active.

    The head's ``hook_z`` becomes its ``reference`` (None: zero) at all positions, or at the last
    alone (``answer_only``). All sequences begin with ``shared`` tokens in common (None: as many as
    they do); ``rows_at_once`` sequences times heads are run side by side.

    Raises:
        AttributionError: the model's positions are outside the residual stream.
    """
    cfg = model.cfg
    check_positions(model)
    if reference is None:
        reference = torch.zeros(cfg.n_layers, cfg.n_heads, cfg.d_head)
    shared = common_beginning(sequences) if shared is None else shared
    beginning = list(sequences[0][:shared])
    run_beginning = partial(cached_beginning, model, beginning, 1)
    cache = run_beginning() if answer_only else None  # otherwise each head has one of its own
    before = _resid_pre(model, run_beginning) if shared and not answer_only else None
    batches = list(answer_batches(model, sequences, max(1, rows_at_once // cfg.n_heads), shared))
    residuals = [_resid_pre(model, partial(model, **batch.arguments)) for batch in batches]
    by_layer: dict[int, list[int]] = {}
    for layer, head in sorted(all_heads(cfg.n_layers, cfg.n_heads) if heads is None else heads):
        by_layer.setdefault(layer, []).append(head)
    for layer, of_layer in tqdm(
        by_layer.items(), desc="ablate heads", unit="layer", delay=3, disable=not progress
    ):
        without = _Without(model, layer, of_layer, reference[layer, of_layer], answer_only)
        if before is not None:
            cache = without.beginning(before[layer])
        for batch, resid in zip(batches, residuals, strict=True):
            found = without.rest(resid[layer], batch, cache)
            yield Ablated(layer, of_layer, batch.indices, batch.last, found)


@torch.inference_mode()
def ablated_deltas(
    model: HookedTransformer,
    sequences: Sequence[Sequence[int]],
    biased_ids: Int[Tensor, "pair ..."],
    neutral_ids: Int[Tensor, "pair ..."],
    **options: Any,
) -> Float[Tensor, "pair n_layers n_heads"]:
    """Logit difference ``b - n`` (before a final soft cap) after each sequence, without each head;
    NaN for those that are not among the ``heads``.

    Options as in :func:`ablated`.
    """
    n = model.cfg.n_layers, model.cfg.n_heads
    found = torch.full((len(sequences), *n), torch.nan, dtype=torch.float64)
    for layer, heads, indices, last, resid in ablated(model, sequences, **options):
        at_answer = resid[:, torch.arange(len(last)), last]
        ids = biased_ids[indices], neutral_ids[indices]
        for head, rows in zip(heads, at_answer, strict=True):
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
        for layer, _, _, _, resid in ablated(model, [tokens], shared=0, **options):
            for head in range(model.cfg.n_heads):
                log_probs = unembed(model, resid[head, 0, :-1]).log_softmax(-1)
                found[i, layer, head] = -log_probs.gather(-1, wanted).double().mean().cpu()
    return found


@dataclasses.dataclass
class _Without:
    """Runs from one layer on, one copy for each of its heads, that head silenced."""

    model: HookedTransformer
    layer: int
    heads: list[int]
    reference: Float[Tensor, "head d_head"]
    answer_only: bool

    def beginning(self, resid: Float[Tensor, "1 pos d_model"]) -> Any:
        """Key-value cache of the common beginning, one row for each head."""
        n = len(self.reference)
        cache = empty_cache(self.model, n)
        mask = torch.ones(n, resid.shape[1], dtype=torch.long, device=resid.device)
        self._run(resid.expand(n, -1, -1), mask, slice(None), cache)
        cache.freeze()
        return cache

    def rest(
        self, resid: Float[Tensor, "batch pos d_model"], batch: AnswerBatch, cache: Any
    ) -> Float[Tensor, "head batch pos d_model"]:
        """Final residuals after the common beginning that ``cache`` holds, head by head."""
        n = len(self.reference)
        mask = batch.arguments["attention_mask"].repeat(n, 1)
        if cache is not None:
            cache = _one_row_each(cache, n, len(resid))
            shared = cache.entries[self.layer].past_keys.shape[1]
            mask = torch.cat([mask.new_ones(len(mask), shared), mask], 1)
        where = batch.last.repeat(n).cpu() if self.answer_only else slice(None)
        found = self._run(resid.repeat(n, 1, 1), mask, where, cache)
        return found.view(n, *resid.shape)

    def _run(
        self,
        resid: Float[Tensor, "row pos d_model"],
        mask: Int[Tensor, "row key"],
        where: slice | Int[Tensor, " row"],
        cache: Any,
    ) -> Float[Tensor, "row pos d_model"]:
        rows = torch.arange(len(resid))
        copy = rows // (len(resid) // len(self.heads))
        heads, value = torch.tensor(self.heads)[copy], self.reference[copy]
        if isinstance(where, slice):
            value = value[:, None]

        def silence(z: Float[Tensor, "row pos n_heads d_head"], hook: Any) -> Tensor:
            z = z.clone()
            z[rows, where, heads] = value.to(z)
            return z

        with self.model.hooks(fwd_hooks=[(f"blocks.{self.layer}.attn.hook_z", silence)]):
            found: Tensor = self.model(
                resid,
                attention_mask=mask,
                past_kv_cache=cache,
                start_at_layer=self.layer,
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
