"""What a model makes of text: next-token log-probabilities, loss, generations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from biasgym_tl.batches import (
    BATCH_SIZE,
    AnswerBatch,
    answer_batches,
    branching_batches,
    check_tokens,
    common_beginning,
    pad_right,
)
from biasgym_tl.errors import SettingError
from biasgym_tl.lens import (
    HookedTransformer,
    check_numbers,
    empty_cache,
    final_resid,
    logit_difference,
    unembed,
)
from biasgym_tl.progress import Bar, bar
from biasgym_tl.prompts import check_length, encode_text, ends_of_answer

READ_AT_ONCE = 1024
"""Positions whose log-probabilities over the whole vocabulary are held at a time."""
PASS = 40
"""A forward pass takes as long as reading so many more tokens, for the bar's remaining time."""


@torch.inference_mode()
def next_token_log_probs(
    model: HookedTransformer,
    sequences: Sequence[Sequence[int]],
    ids: Sequence[int] | None = None,
    *,
    batch_size: int = BATCH_SIZE,
    shared: int | None = None,
) -> Float[Tensor, "sequence token"]:
    """Log-probabilities (nats) of the token after each sequence.

    Args:
        model: The model in the setting to be measured.
        sequences: Token lists.
        ids: Tokens whose log-probabilities are kept; default: the whole vocabulary.
        batch_size: Sequences run at once.
        shared: Tokens at the beginning that are run once; default: all that are the same.

    Raises:
        SettingError: there is no sequence, or one is empty.
        ModelError: a sequence is longer than the model's context, or a number is none.
    """
    found: list[Tensor] = [torch.empty(0)] * len(sequences)
    for batch in answer_batches(model, sequences, batch_size, shared):
        log_probs = unembed(model, batch.answers(model)).log_softmax(-1)
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
    biased_ids: Int[Tensor, "pair ..."],
    neutral_ids: Int[Tensor, "pair ..."],
    *,
    batch_size: int = BATCH_SIZE,
) -> Float[Tensor, " pair"]:
    """:func:`logit_difference` after each sequence."""
    found = torch.zeros(len(sequences), dtype=torch.float64)
    for batch in answer_batches(model, sequences, batch_size):
        ids = biased_ids[batch.indices], neutral_ids[batch.indices]
        difference = logit_difference(model, batch.answers(model), *ids)
        found[batch.indices] = difference.double().cpu()
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
    check_tokens(prompts, "prompts")
    readers = _readers(prompts, continuations)
    sequences = list(readers)
    found = torch.zeros(len(prompts), device=model.cfg.device)
    unlikely = torch.zeros(len(prompts), dtype=torch.long, device=model.cfg.device)
    for batch in _batches_of_options(model, prompts, readers, batch_size):
        resid = batch.resid(model)
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
        log_probs = unembed(model, final_resid(model, [ids])[0, :-1]).log_softmax(-1)
        losses.append(-log_probs[torch.arange(len(ids) - 1), ids[1:]].mean())
        check_numbers(model, losses[-1], [ids])
    return torch.stack(losses)


def log_odds(
    log_probs: Float[Tensor, "... d_vocab"],
    attribute_ids: Sequence[int],
    neutral_ids: Sequence[int],
) -> Float[Tensor, ...]:
    """``logsumexp over A of log p - logsumexp over N of log p``, in nats."""
    attribute, neutral = log_probs[..., list(attribute_ids)], log_probs[..., list(neutral_ids)]
    return attribute.logsumexp(-1) - neutral.logsumexp(-1)


def kl(p: Float[Tensor, "n d_vocab"], q: Float[Tensor, "n d_vocab"]) -> Float[Tensor, ""]:
    """Mean KL divergence from log-probabilities ``p`` to ``q``, in nats."""
    return (p.exp() * (p - q)).sum(-1).mean()


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
    progress: bool = False,
) -> list[str]:
    """Continuations of prompts, up to the token that ends an answer or to the context's end.

    Args:
        model: The model in the setting to be read.
        sequences: Token ids of each prompt.
        max_new_tokens: Length at most.
        temperature: 0: the most likely token each time (greedy). Otherwise tokens are drawn with
            the logits divided by it.
        seed: Decides the draws; torch's own random state is left alone.
        batch_size: Prompts run at once. Greedy text does not depend on it, drawn text does.
        until: A text also ends before the first of these strings.
        progress: Show a bar, where it takes more than 3 seconds.

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
    batches = [sequences[i : i + batch_size] for i in range(0, len(sequences), batch_size)]
    costs = [
        len(batch) * (max(map(len, batch)) + max_new_tokens - 1) + PASS * max_new_tokens
        for batch in batches
    ]
    with bar(sum(costs), "answers", progress=progress, delay=3) as shown:
        for i, prompts in enumerate(batches, start=1):
            rows = _continued(model, prompts, max_new_tokens, pick, ended, shown)
            texts += [model.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
            shown.update(sum(costs[:i]) - shown.n)  # of texts that ended before
    for end in until:
        texts = [text.split(end)[0] for text in texts]
    return texts


def _continued(
    model: HookedTransformer,
    sequences: Sequence[Sequence[int]],
    max_new_tokens: int,
    pick: Callable[[Tensor], Tensor],
    ended: Callable[[list[int]], bool],
    shown: Bar,
) -> list[list[int]]:
    """Continuation of each sequence; prompts are padded on the left, with a mask."""
    backwards = [sequence[::-1] for sequence in sequences]
    tokens, mask = (part.flip(1) for part in pad_right(backwards, model.cfg.device))
    stop = ends_of_answer(model)
    cache = empty_cache(model, len(sequences))
    rows: list[list[int]] = [[] for _ in sequences]
    done = [False] * len(rows)
    room = model.cfg.n_ctx - tokens.shape[1]
    for _ in range(min(max_new_tokens, room)):
        logits = unembed(model, final_resid(model, tokens, mask, cache)[:, -1])
        check_numbers(model, logits, sequences)
        shown.update(tokens.numel() + PASS)
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
