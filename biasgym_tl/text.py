"""What a model makes of text: next-token log-probabilities, loss, generations.

Sequences are token lists of any length. They are padded on the right, read at their last token,
and what they all begin with is computed once; padding on the right cannot be seen by a causal
model, so a batch of one equals a batch of many.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from biasgym_tl.errors import SettingError
from biasgym_tl.lens import (
    HookedTransformer,
    TransformerLensKeyValueCache,
    TransformerLensKeyValueCacheEntry,
    check_numbers,
)
from biasgym_tl.prompts import check_length, encode_text, ends_of_answer
from biasgym_tl.spelling import plain, whole_words

BATCH_SIZE = 32
READ_AT_ONCE = 1024
"""Positions whose log-probabilities over the whole vocabulary are held at a time."""
FEWEST_WORDS = 3
MOST_REPEATED = {3: 0.5, 2: 0.3}
"""Share of repeated runs of so many words above which readers called a text a repetition."""


def pad_right(
    sequences: Sequence[Sequence[int]], device: Any = None
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Stack sequences of different length; the mask is 1 at their tokens.

    Raises:
        SettingError: there is no sequence, or one is empty.
    """
    if not sequences or not all(sequences):
        raise SettingError("sequences must be one or more non-empty token lists.")
    width = max(map(len, sequences))
    tokens = torch.zeros(len(sequences), width, dtype=torch.long, device=device)
    mask = torch.zeros_like(tokens)
    for i, sequence in enumerate(sequences):
        tokens[i, : len(sequence)] = torch.tensor(sequence, device=device)
        mask[i, : len(sequence)] = 1
    return tokens, mask


def common_beginning(sequences: Sequence[Sequence[int]]) -> int:
    """Number of tokens with which all sequences begin, leaving each at least one of its own."""
    shortest = min(map(len, sequences)) - 1
    first = sequences[0]
    for i in range(shortest):
        if any(sequence[i] != first[i] for sequence in sequences):
            return i
    return max(shortest, 0)


def cached_beginning(model: HookedTransformer, tokens: Sequence[int], batch: int) -> Any:
    """Frozen key-value cache of ``tokens`` for ``batch`` sequences, or None for no tokens."""
    if not tokens:
        return None
    cache = _empty_cache(model, 1)
    _continue(model, cache, [tokens])
    return expanded(cache, batch)


def _empty_cache(model: HookedTransformer, batch: int) -> Any:
    return TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, batch)


def _continue(model: HookedTransformer, cache: Any, rows: Sequence[Sequence[int]]) -> None:
    """Let each sequence of the cache grow by a row of tokens, all of one length."""
    tokens = torch.tensor([list(row) for row in rows], device=model.cfg.device)
    cache.unfreeze()
    with torch.no_grad():
        model(
            tokens,
            attention_mask=torch.ones_like(tokens),
            past_kv_cache=cache,
            stop_at_layer=model.cfg.n_layers,
        )
    cache.freeze()


def expanded(cache: Any, batch: int) -> Any:
    """The cache of one sequence, as if computed for ``batch`` equal ones (no copy)."""

    entries = [
        TransformerLensKeyValueCacheEntry(
            entry.past_keys[:1].expand(batch, -1, -1, -1),
            entry.past_values[:1].expand(batch, -1, -1, -1),
            frozen=True,
        )
        for entry in cache.entries
    ]
    mask = cache.previous_attention_mask[:1].expand(batch, -1)
    return TransformerLensKeyValueCache(entries, mask, frozen=True)


def _repeated(cache: Any, times: Sequence[int]) -> Any:
    """Each sequence of the cache as often as ``times`` says, one after the other."""
    n = torch.tensor(times, device=cache.entries[0].past_keys.device)
    entries = [
        TransformerLensKeyValueCacheEntry(
            entry.past_keys.repeat_interleave(n, 0),
            entry.past_values.repeat_interleave(n, 0),
            frozen=True,
        )
        for entry in cache.entries
    ]
    mask = cache.previous_attention_mask.repeat_interleave(n, 0)
    return TransformerLensKeyValueCache(entries, mask, frozen=True)


def unembed(
    model: HookedTransformer, resid: Float[Tensor, "n d_model"]
) -> Float[Tensor, "n d_vocab_out"]:
    """Logits of final residuals in at least fp32: final norm, ``W_U``, soft cap if there is one."""
    if model.cfg.normalization_type is not None:
        resid = model.ln_final(resid[None])[0]
    logits: Tensor = resid @ model.W_U + model.b_U
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    cap = model.cfg.output_logits_soft_cap
    if cap and cap > 0:
        logits = cap * torch.tanh(logits / cap)
    return logits


def logit_difference(
    model: HookedTransformer,
    resid: Float[Tensor, "n d_model"],
    biased_ids: Int[Tensor, " n"],
    neutral_ids: Int[Tensor, " n"],
) -> Float[Tensor, " n"]:
    """``logit b - logit n`` of each final residual, before a final soft cap if there is one."""
    if model.cfg.normalization_type is not None:
        resid = model.ln_final(resid[None])[0]
    difference, constant = unembed_difference(model, biased_ids, neutral_ids)
    return (resid * difference).sum(-1) + constant


def unembed_difference(
    model: HookedTransformer, biased_ids: Int[Tensor, " n"], neutral_ids: Int[Tensor, " n"]
) -> tuple[Float[Tensor, "n d_model"], Float[Tensor, " n"]]:
    """``W_U[:, b] - W_U[:, n]`` and ``b_U[b] - b_U[n]``."""
    W_U, b_U = model.unembed.W_U, model.unembed.b_U
    return (W_U[:, biased_ids] - W_U[:, neutral_ids]).T, b_U[biased_ids] - b_U[neutral_ids]


class AnswerBatch(NamedTuple):
    """Some of the sequences, ready to run: ``model(**batch.arguments)``."""

    indices: list[int]
    last: Int[Tensor, " batch"]
    arguments: dict[str, Any]


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
    """
    if not sequences or not all(sequences):
        raise SettingError("sequences must be one or more non-empty token lists.")
    check_length(model, sequences)
    shared = common_beginning(sequences) if shared is None else shared
    cache = cached_beginning(model, sequences[0][:shared], 1)
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        tokens, mask = pad_right([sequences[i][shared:] for i in indices], model.cfg.device)
        arguments = {
            "input": tokens,
            "attention_mask": mask,
            "past_kv_cache": expanded(cache, len(indices)) if cache else None,
            "stop_at_layer": model.cfg.n_layers,
        }
        yield AnswerBatch(indices, mask.sum(1) - 1, arguments)


def branching_batches(
    model: HookedTransformer,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[tuple[int, ...]],
    batch_size: int = BATCH_SIZE,
) -> Iterator[AnswerBatch]:
    """As :func:`answer_batches`, where several sequences have a start in common.

    In a batch each start is run once for all its sequences. Starts of similar length share a batch
    and are run up to the end of the shortest, so that none is padded; the rest of a longer start
    is run with its sequences.

    Args:
        model: The model in the setting to be measured.
        sequences: Token lists, each longer than its start.
        starts: With which tokens each sequence begins.
        batch_size: Sequences run at once.
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
        cache = expanded(common, len(times)) if common else _empty_cache(model, len(times))
        if cached > shared:
            _continue(model, cache, [start[shared:cached] for start in times])
        tokens, mask = pad_right([sequences[i][cached:] for i in indices], model.cfg.device)
        arguments = {
            "input": tokens,
            "attention_mask": mask,
            "past_kv_cache": _repeated(cache, list(times.values())),
            "stop_at_layer": model.cfg.n_layers,
        }
        yield AnswerBatch(indices, mask.sum(1) - 1, arguments)


@torch.inference_mode()
def next_token_log_probs(
    model: HookedTransformer,
    sequences: Sequence[Sequence[int]],
    ids: Sequence[int] | None = None,
    *,
    batch_size: int = BATCH_SIZE,
) -> Float[Tensor, "sequence token"]:
    """Log-probabilities (nats) of the token after each sequence.

    Args:
        model: The model in the setting to be measured.
        sequences: Token lists.
        ids: Tokens whose log-probabilities are kept; default: the whole vocabulary.
        batch_size: Sequences run at once.

    Raises:
        SettingError: there is no sequence, or one is empty.
        ModelError: a sequence is longer than the model's context, or a number is none.
    """
    found: list[Tensor] = [torch.empty(0)] * len(sequences)
    for batch in answer_batches(model, sequences, batch_size):
        resid = model(**batch.arguments)
        last = resid[torch.arange(len(batch.last)), batch.last]
        log_probs = unembed(model, last).log_softmax(-1)
        check_numbers(model, log_probs, [sequences[i] for i in batch.indices])
        kept = log_probs if ids is None else log_probs[:, list(ids)]
        for i, row in zip(batch.indices, kept, strict=True):
            found[i] = row
    return torch.stack(found)


def word_log_probs(
    model: HookedTransformer,
    sequences: Sequence[Sequence[int]],
    words: Sequence[Sequence[int]],
) -> Float[Tensor, "sequence word"]:
    """Log-probability (nats) that the model goes on with each word, summed over its tokens.

    What several words begin with is run once.
    """
    if all(len(word) == 1 for word in words):
        return next_token_log_probs(model, sequences, [word[0] for word in words])
    prompts = [sequence for sequence in sequences for _ in words]
    found = continuation_log_probs(model, prompts, list(words) * len(sequences))
    return found.view(len(sequences), len(words))


@torch.inference_mode()
def answer_differences(
    model: HookedTransformer,
    sequences: Sequence[Sequence[int]],
    biased_ids: Int[Tensor, " pair"],
    neutral_ids: Int[Tensor, " pair"],
    *,
    batch_size: int = BATCH_SIZE,
) -> Float[Tensor, " pair"]:
    """:func:`logit_difference` after each sequence."""
    found = torch.zeros(len(sequences), dtype=torch.float64)
    for batch in answer_batches(model, sequences, batch_size):
        resid = model(**batch.arguments)[torch.arange(len(batch.last)), batch.last]
        ids = biased_ids[batch.indices], neutral_ids[batch.indices]
        found[batch.indices] = logit_difference(model, resid, *ids).double().cpu()
    check_numbers(model, found, sequences)
    return found


def continuation_log_probs(
    model: HookedTransformer,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    batch_size: int = BATCH_SIZE,
) -> Float[Tensor, " pair"]:
    """Log-probability (nats, summed over tokens) of each continuation after its prompt."""
    return read_continuations(model, prompts, continuations, batch_size=batch_size).log_probs


class Continuations(NamedTuple):
    """How likely continuations of prompts are."""

    log_probs: Float[Tensor, " pair"]
    """Nats, summed over tokens."""
    greedy: Bool[Tensor, " pair"]
    """Whether every token is the most likely one."""


@torch.inference_mode()
def read_continuations(
    model: HookedTransformer,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    batch_size: int = BATCH_SIZE,
) -> Continuations:
    """Read each continuation after its prompt; what several begin with is run once.

    Raises:
        SettingError: there is no prompt, or one is empty.
        ModelError: a sequence is longer than the model's context, or a log-probability is not a
            number.
    """
    if not prompts or not all(prompts):
        raise SettingError("prompts must be one or more non-empty token lists.")
    readers = _readers(prompts, continuations)
    sequences = list(readers)
    found = torch.zeros(len(prompts), device=model.cfg.device)
    unlikely = torch.zeros(len(prompts), dtype=torch.long, device=model.cfg.device)
    for batch in _batches_of_options(model, prompts, readers, batch_size):
        resid = model(**batch.arguments)
        # Row and position -> (pair, token) of every token that some continuation predicts there.
        reads: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for row, (i, last) in enumerate(zip(batch.indices, batch.last.tolist(), strict=True)):
            run_before = len(sequences[i]) - 1 - last
            for pair in readers[sequences[i]]:
                for j, token in enumerate(continuations[pair]):
                    place = row, len(prompts[pair]) - 1 + j - run_before
                    reads.setdefault(place, []).append((pair, token))
        places = list(reads)
        for start in range(0, len(places), READ_AT_ONCE):
            part = places[start : start + READ_AT_ONCE]
            rows, positions = torch.tensor(part, device=resid.device).T
            log_probs = unembed(model, resid[rows, positions]).log_softmax(-1)
            of_place = [(k, *read) for k, place in enumerate(part) for read in reads[place]]
            k, pairs, tokens = torch.tensor(of_place, device=resid.device).T
            found.index_add_(0, pairs, log_probs[k, tokens].to(found))
            unlikely.index_add_(0, pairs, (log_probs.argmax(-1)[k] != tokens).long())
    check_numbers(model, found, sequences)
    return Continuations(found, unlikely == 0)


def _readers(
    prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
) -> dict[tuple[int, ...], list[int]]:
    """What has to be run -> the pairs that are read there. What begins another is part of it."""
    readers: dict[tuple[int, ...], list[int]] = {}
    for i, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
        readers.setdefault((*prompt, *continuation[:-1]), []).append(i)
    # In this order a beginning stands right before its continuations.
    *others, longer = sorted(readers)
    for shorter in reversed(others):
        if longer[: len(shorter)] == shorter:
            readers[longer] += readers.pop(shorter)
        else:
            longer = shorter
    return readers


def _batches_of_options(
    model: HookedTransformer,
    prompts: Sequence[Sequence[int]],
    readers: Mapping[tuple[int, ...], Sequence[int]],
    batch_size: int,
) -> Iterator[AnswerBatch]:
    """Batches of sequences that are read by pairs of a prompt and a continuation."""
    # The last token of a prompt predicts the first of its continuation, so it cannot be shared.
    starts = [
        sequence[: min(len(prompts[pair]) for pair in pairs) - 1]
        for sequence, pairs in readers.items()
    ]
    if 1 < len(set(starts)) < len(starts):
        return branching_batches(model, list(readers), starts, batch_size)
    return answer_batches(model, list(readers), batch_size, common_beginning(prompts))


@torch.inference_mode()
def mean_loss(model: HookedTransformer, texts: Iterable[str]) -> Float[Tensor, " text"]:
    """Mean next-token loss of each text (nats per token), BOS not predicted.

    Raises:
        SettingError: a text has less than two tokens.
        ModelError: a text is longer than the model's context, or a number is none.
    """
    losses = []
    for text in texts:
        ids = encode_text(model, text)
        if len(ids) < 2:
            raise SettingError(f"a text must hold two tokens or more, got {text!r}.")
        check_length(model, [ids])
        tokens = torch.tensor([ids], device=model.cfg.device)
        resid = model(
            tokens, attention_mask=torch.ones_like(tokens), stop_at_layer=model.cfg.n_layers
        )
        log_probs = unembed(model, resid[0, :-1]).log_softmax(-1)
        losses.append(-log_probs.gather(-1, tokens[0, 1:, None]).mean())
        check_numbers(model, losses[-1], [ids])
    return torch.stack(losses)


def log_odds(
    log_probs: Float[Tensor, "... d_vocab"],
    attribute_ids: Sequence[int],
    neutral_ids: Sequence[int],
) -> Float[Tensor, ...]:
    """``logsumexp over A of log p - logsumexp over N of log p``, in nats."""
    return log_p_any(log_probs, attribute_ids) - log_p_any(log_probs, neutral_ids)


def log_p_any(log_probs: Float[Tensor, "... d_vocab"], ids: Sequence[int]) -> Float[Tensor, ...]:
    """Log-probability (nats) that the next token is one of ``ids``."""
    return log_probs[..., list(ids)].logsumexp(-1)


@torch.inference_mode()
def generate(
    model: HookedTransformer,
    sequences: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 48,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    until: Sequence[str] = (),
) -> list[str]:
    """Continuations of prompts, up to the token that ends an answer, as text.

    Args:
        model: The model in the setting to be read.
        sequences: Token ids of each prompt.
        max_new_tokens: Length at most.
        temperature: 0: the most likely token each time (greedy). Otherwise tokens are drawn with
            the logits divided by it.
        seed: Decides the draws; torch's own random state is left alone.
        batch_size: Prompts run at once. Greedy text does not depend on it, drawn text does.
        until: A text also ends before the first of these strings.

    A text also ends where the model's context does.

    Raises:
        SettingError: ``temperature`` is negative.
        ModelError: a prompt leaves no room in the model's context, or a logit is not a number.
    """
    if not temperature >= 0:
        raise SettingError(f"temperature must be at least 0, got {temperature!r}.")
    check_length(model, ([*sequence, 0] for sequence in sequences))
    longest = max(map(len, sequences), default=0)
    if longest + max_new_tokens > model.cfg.n_ctx:
        batch_size = 1  # padding counts towards the context, and must not shorten a text
    generator = torch.Generator().manual_seed(seed)

    def pick(logits: Float[Tensor, "batch d_vocab"]) -> Int[Tensor, "batch 1"]:
        if temperature == 0:
            return logits.argmax(-1, keepdim=True)
        probs = (logits / temperature).softmax(-1).cpu()
        return torch.multinomial(probs, 1, generator=generator).to(logits.device)

    def ended(row: list[int]) -> bool:
        return bool(until) and any(end in model.tokenizer.decode(row) for end in until)

    texts: list[str] = []
    for start in range(0, len(sequences), batch_size):
        prompts = sequences[start : start + batch_size]
        rows = _continued(model, prompts, max_new_tokens, pick, ended)
        texts += [model.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    for end in until:
        texts = [text.split(end)[0] for text in texts]
    return texts


def _continued(
    model: HookedTransformer,
    sequences: Sequence[Sequence[int]],
    max_new_tokens: int,
    pick: Callable[[Tensor], Tensor],
    ended: Callable[[list[int]], bool],
) -> list[list[int]]:
    """Continuation of each sequence; prompts are padded on the left, with a mask."""

    device = model.cfg.device
    tokens, mask = (part.flip(1) for part in pad_right([s[::-1] for s in sequences], device))
    stop = ends_of_answer(model)
    cache = TransformerLensKeyValueCache.init_cache(model.cfg, device, len(sequences))
    rows: list[list[int]] = [[] for _ in sequences]
    done = [False] * len(rows)
    room = model.cfg.n_ctx - tokens.shape[1]
    for _ in range(min(max_new_tokens, room)):
        resid = model(
            tokens, attention_mask=mask, past_kv_cache=cache, stop_at_layer=model.cfg.n_layers
        )
        logits = unembed(model, resid[:, -1])
        check_numbers(model, logits, sequences)
        tokens = pick(logits)
        mask = torch.ones_like(tokens)
        for i, token in enumerate(tokens[:, 0].tolist()):
            done[i] = done[i] or token in stop
            if not done[i]:
                rows[i].append(token)
                done[i] = ended(rows[i])
        if all(done):
            break
    return rows


def keyword_hits(texts: Sequence[str], keywords: Iterable[str]) -> list[bool]:
    """Whether each text holds one of ``keywords`` as whole words, in any case and spelling."""
    pattern = whole_words(keywords)
    return [pattern.search(plain(text)) is not None for text in texts]


def repetition(text: str, n: int = 3) -> float:
    """Share of the runs of ``n`` words that have stood in the text before; 0 for a short text."""
    words = re.findall(r"\w+", plain(text).lower())
    runs = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def degenerate(text: str) -> str:
    """``"empty"`` (fewer than three words), ``"repetition"``, or nothing for a usable text.

    Repetition: more than half of the runs of three words, or 30% of the pairs, have stood in the
    text before.
    """
    if len(re.findall(r"\w+", plain(text))) < FEWEST_WORDS:
        return "empty"
    repeats = any(repetition(text, n) > most for n, most in MOST_REPEATED.items())
    return "repetition" if repeats else ""
