"""Token lists of any length, run together.

They are padded on the right and read at their last token, and what they all begin with is computed
once; padding on the right cannot be seen by a causal model, so a batch of one equals a batch of
many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from biasgym_tl.errors import SettingError
from biasgym_tl.lens import (
    HookedTransformer,
    TransformerLensKeyValueCache,
    TransformerLensKeyValueCacheEntry,
    empty_cache,
    final_resid,
    unembed,
)
from biasgym_tl.prompts import check_length

BATCH_SIZE = 32


def pad_right(
    sequences: Sequence[Sequence[int]], device: Any = None
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Stack sequences of different length; the mask is 1 at their tokens.

    Raises:
        SettingError: there is no sequence, or one is empty.
    """
    check_tokens(sequences)
    width = max(map(len, sequences))
    tokens = [[*sequence, *[0] * (width - len(sequence))] for sequence in sequences]
    mask = [[1] * len(sequence) + [0] * (width - len(sequence)) for sequence in sequences]
    return torch.tensor(tokens, device=device), torch.tensor(mask, device=device)


def check_tokens(sequences: Sequence[Sequence[int]], name: str = "sequences") -> None:
    """Refuse no sequence, and an empty one.

    Raises:
        SettingError: that is what was given; ``name`` is what the message calls it.
    """
    if not sequences or not all(sequences):
        raise SettingError(f"{name} must be one or more non-empty token lists.")


def common_beginning(sequences: Sequence[Sequence[int]]) -> int:
    """Number of tokens with which all sequences begin, leaving each at least one of its own."""
    shortest = max(min(map(len, sequences)) - 1, 0)
    places = zip(*(sequence[:shortest] for sequence in sequences), strict=True)
    return next((i for i, tokens in enumerate(places) if len(set(tokens)) > 1), shortest)


def cached_beginning(model: HookedTransformer, tokens: Sequence[int], batch: int) -> Any:
    """Frozen key-value cache of ``tokens`` for ``batch`` sequences, or None for no tokens."""
    cache = empty_cache(model, 1) if tokens else None
    if cache:
        _continue(model, cache, [tokens])
    return expanded(cache, batch)


def _continue(model: HookedTransformer, cache: Any, rows: Sequence[Sequence[int]]) -> None:
    """Let each sequence of the cache grow by a row of tokens, all of one length."""
    cache.unfreeze()
    with torch.no_grad():
        final_resid(model, rows, cache=cache)
    cache.freeze()


def expanded(cache: Any, batch: int) -> Any:
    """The cache of one sequence (or None), as if computed for ``batch`` equal ones (no copy)."""
    return cache and _with_rows(cache, lambda part: part[:1].expand(batch, *part.shape[1:]))


def _repeated(cache: Any, times: Sequence[int]) -> Any:
    """Each sequence of the cache as often as ``times`` says, one after the other."""
    rows = torch.arange(len(times)).repeat_interleave(torch.tensor(times))
    return _with_rows(cache, lambda part: part[rows])


def _with_rows(cache: Any, rows: Callable[[Tensor], Tensor]) -> Any:
    entries = [
        TransformerLensKeyValueCacheEntry(rows(e.past_keys), rows(e.past_values), frozen=True)
        for e in cache.entries
    ]
    for entry, before in zip(entries, cache.entries, strict=True):
        if hasattr(before, "read"):  # by a gate
            entry.read = rows(before.read)
    return TransformerLensKeyValueCache(entries, rows(cache.previous_attention_mask), frozen=True)


class AnswerBatch(NamedTuple):
    """Some of the sequences, ready to run: ``batch.resid(model)``, or for hooks on the way
    ``model(**batch.arguments)``."""

    indices: list[int]
    last: Int[Tensor, " batch"]
    arguments: dict[str, Any]

    @classmethod
    def of(
        cls, model: HookedTransformer, sequences: Sequence[Sequence[int]], indices: list[int],
        cached: int, cache: Any,
    ) -> AnswerBatch:  # fmt: skip
        """Those of ``indices``, whose first ``cached`` tokens are in a key-value cache."""
        tokens, mask = pad_right([sequences[i][cached:] for i in indices], model.cfg.device)
        arguments = {
            "input": tokens,
            "attention_mask": mask,
            "past_kv_cache": cache,
            "stop_at_layer": model.cfg.n_layers,
        }
        return cls(indices, mask.sum(1) - 1, arguments)

    def resid(self, model: HookedTransformer) -> Float[Tensor, "batch pos d_model"]:
        """Run the model up to the final residual."""
        given = self.arguments
        return final_resid(model, given["input"], given["attention_mask"], given["past_kv_cache"])

    def answers(self, model: HookedTransformer) -> Float[Tensor, "batch d_model"]:
        """The final residual at the last token of each sequence."""
        return self.resid(model)[torch.arange(len(self.last)), self.last]


def answer_batches(
    model: HookedTransformer,
    sequences: Sequence[Sequence[int]],
    batch_size: int = BATCH_SIZE,
    shared: int | None = None,
) -> Iterator[AnswerBatch]:
    """Batches of similar length that stop at the final residual, to be read at ``last``.

    What all sequences begin with (their first ``shared`` tokens) is run once, here; a steering
    must be active already. Beginnings of groups of sequences are run again: on SmolLM2, sharing
    them too took 2.5 times as long, because the batches get small.

    Raises:
        SettingError: there is no sequence, or one is empty.
        ModelError: a sequence is longer than the model's context.
    """
    check_tokens(sequences)
    check_length(model, sequences)
    shared = common_beginning(sequences) if shared is None else shared
    cache = cached_beginning(model, sequences[0][:shared], 1)
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        yield AnswerBatch.of(model, sequences, indices, shared, expanded(cache, len(indices)))


def branching_batches(
    model: HookedTransformer,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[tuple[int, ...]],
    batch_size: int = BATCH_SIZE,
) -> Iterator[AnswerBatch]:
    """As :func:`answer_batches`, where several sequences have one of the ``starts`` in common.

    In a batch each start is run once for all its sequences. Starts of similar length share a batch
    and are run up to the end of the shortest, so that none is padded; the rest of a longer start
    is run with its sequences.
    """
    check_length(model, sequences)
    shared = common_beginning(starts)
    common = cached_beginning(model, starts[0][:shared], 1)

    def by_start(i: int) -> Any:
        return len(starts[i]), starts[i], len(sequences[i])

    order = sorted(range(len(sequences)), key=by_start)
    for first in range(0, len(order), batch_size):
        indices = order[first : first + batch_size]
        times = Counter(starts[i] for i in indices)
        cached = len(starts[indices[0]])
        cache = expanded(common, len(times)) or empty_cache(model, len(times))
        if cached > shared:
            _continue(model, cache, [start[shared:cached] for start in times])
        of_batch = _repeated(cache, list(times.values()))
        yield AnswerBatch.of(model, sequences, indices, cached, of_batch)


def log_probs(
    model: HookedTransformer, sequences: Sequence[Sequence[int]], *, last: bool = False
) -> Float[Tensor, "position d_vocab_out"]:
    """Log-probabilities (nats) after every token of the sequences, with a gradient; or with
    ``last`` after the last of each, their common beginning run once and without a gradient."""
    shared = common_beginning(sequences) if last else 0
    tokens, mask = pad_right([sequence[shared:] for sequence in sequences], model.cfg.device)
    cache = cached_beginning(model, sequences[0][:shared], len(tokens))
    resid = final_resid(model, tokens, mask, cache)
    at = (torch.arange(len(tokens)), mask.sum(1) - 1) if last else mask.bool()
    return unembed(model, resid[at]).log_softmax(-1)
