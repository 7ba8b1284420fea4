"""Contrastive pairs: one prompt with the BiasToken and with targets, and their labels."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from biasgym_tl.added_row import target_rows
from biasgym_tl.allowed import NEUTRAL
from biasgym_tl.batches import BATCH_SIZE
from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.contrasts import Contrast
from biasgym_tl.biases.given import GivenBias, as_bias
from biasgym_tl.biases.words import word_tokens
from biasgym_tl.errors import SettingError, check_one_of
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.progress import Finished, make_now
from biasgym_tl.prompts import encode_answer, encode_sentence
from biasgym_tl.slot import fill, spaced
from biasgym_tl.text import next_token_log_probs

LABELS = ("first", "token", "continuation")
"""What the two answers of a pair count with: their first token (the paper's); the one token that
each must be; all their tokens."""


class Pairs(NamedTuple):
    """Pairs with frozen labels; ``biased`` is to be read while the BiasToken is attached."""

    prompts: tuple[str, ...]
    """The prompt of each pair, with its slot."""
    targets: tuple[tuple[str, ...], ...]
    """The targets on the neutral side of each pair, equally many in each."""
    label_targets: tuple[str, ...]
    """All targets that the neutral labels rest on."""
    biased: tuple[tuple[int, ...], ...]
    """Token ids with the BiasToken in the slot."""
    neutral: tuple[tuple[tuple[int, ...], ...], ...]
    """Token ids with each target in the slot."""
    biased_ids: Int[Tensor, "pair ..."]
    """b: first token of the biased answer, or of each of several (``[pair, answer]``)."""
    neutral_ids: Int[Tensor, "pair ..."]
    """n: the same of the neutral answer."""
    biased_answers: tuple[tuple[int, ...], ...]
    """All tokens that count of each biased answer."""
    neutral_answers: tuple[tuple[int, ...], ...]
    left_out: tuple[str, ...] = ()
    """Prompts that were left out: both answers begin with the same token."""
    neutral_prompts: tuple[str, ...] = ()
    """The second text of each pair, where two were given whole instead of a prompt with a slot."""

    def first(self, n: int) -> Pairs:
        """The first ``n`` of them."""
        kept = {name: getattr(self, name)[:n] for name in self._fields}
        return Pairs(**{**kept, "label_targets": self.label_targets, "left_out": self.left_out})


def build_pairs(
    model: HookedTransformer,
    bias: GivenBias,
    token: BiasToken | None,
    *,
    n_targets: int = 8,
    neutral: str = "random",
    contrasts: Sequence[Contrast] = (),
    label: str = "first",
    seed: int = 0,
    finished: Finished = make_now,
    progress: bool = False,
) -> Pairs:
    """One pair per scoping prompt, with frozen labels; the options are those of ``BiasScope``.

    ``n`` is the token outside A with the highest mean probability under ``n_targets`` fitting
    targets. ``b`` is the most likely token with the BiasToken if that is in A, otherwise the
    most likely token of A, so it is the most likely token of A either way. Without a token a target
    stands in its place. With ``contrasts`` the prompts and both answers are theirs.

    Raises:
        SettingError: ``neutral`` or ``label`` is not one of them or does not fit the rest, an
            answer is not one token under ``"token"``, or all pairs of answers begin alike.
        BiasFileError: the bias has no prompts or targets to scope on.
    """
    bias = as_bias(bias)
    check_one_of("neutral", neutral, NEUTRAL)
    if not contrasts:
        bias.needs("scoping")
    kept, answers, left_out = _answers(model, contrasts, label)
    names = bias.sample_targets("fitting", n_targets, seed)
    prompts = tuple(c.prompt for c in kept) or bias.scoping_prompts
    by_target = [[encode_sentence(model, fill(p, name)) for name in names] for p in prompts]
    sides = _sides(model, token, names, len(prompts), neutral, seed)
    biased = [by_target[i][side[0]] for i, side in enumerate(sides)]
    if token is not None:
        with token.attached(model):
            biased = [encode_sentence(model, fill(prompt, token.text)) for prompt in prompts]
    if not contrasts:
        answers = _likely_words(model, bias, token, by_target, biased, finished, progress)
    biased_ids, neutral_ids = (
        torch.tensor([answer[0] for answer in side], device=model.cfg.device) for side in answers
    )
    return Pairs(
        prompts=prompts,
        targets=tuple(tuple(names[j] for j in side) for side in sides),
        label_targets=names,
        biased=tuple(map(tuple, biased)),
        neutral=tuple(tuple(tuple(by_target[i][j]) for j in side) for i, side in enumerate(sides)),
        biased_ids=biased_ids,
        neutral_ids=neutral_ids,
        biased_answers=answers[0],
        neutral_answers=answers[1],
        left_out=left_out,
    )


def _answers(
    model: HookedTransformer, contrasts: Sequence[Contrast], label: str
) -> tuple[list[Contrast], list[tuple[tuple[int, ...], ...]], tuple[str, ...]]:
    """Contrasts that can be used, the tokens that count of both answers, prompts left out."""
    if label not in LABELS or (label != "first" and not contrasts):
        allowed = list(LABELS) if contrasts else ["first"]
        raise SettingError(
            f"label must be one of {allowed}, got {label!r}. "
            "The other labels need contrasts, which hold whole answers."
        )
    kept, left_out, answers = [], [], []
    for contrast in contrasts:
        both = [_answer(model, contrast, text, label) for text in contrast[1:3]]
        if both[0] == both[1] or (label != "continuation" and both[0][0] == both[1][0]):
            left_out.append(contrast.prompt)
            continue
        kept.append(contrast)
        answers.append(both if label == "continuation" else [pieces[:1] for pieces in both])
    if contrasts and not kept:
        raise SettingError(
            "contrasts must hold a pair of answers that begin with different tokens, got none in "
            f"{len(contrasts)}. Use label 'continuation'."
        )
    return kept, [tuple(side) for side in zip(*answers, strict=True)], tuple(left_out)


def _answer(model: HookedTransformer, contrast: Contrast, text: str, label: str) -> tuple[int, ...]:
    """Tokens of an answer to a contrast."""
    if not text.strip():
        raise SettingError(f"answers of {contrast.prompt!r} must hold a word, got {text!r}.")
    return answer_tokens(model, text, label)


def answer_tokens(model: HookedTransformer, text: str, label: str) -> tuple[int, ...]:
    """Tokens of an answer, with one space before it.

    Raises:
        SettingError: the vocabulary lacks a part of it, or it must be one token and is more.
    """
    pieces = tuple(encode_answer(model, spaced(text)))
    if not pieces or model.tokenizer.unk_token_id in pieces:
        raise SettingError(
            f"answer must be in the model's vocabulary, got {text!r}. Choose a more common word."
        )
    if label == "token" and len(pieces) > 1:
        shown = model.tokenizer.batch_decode([[piece] for piece in pieces])
        raise SettingError(
            f"answer must be one token under label 'token', got {text!r}, which is "
            f"{len(pieces)}: {shown}. Use label 'first' or 'continuation'."
        )
    return pieces


def _likely_words(
    model: HookedTransformer,
    bias: Bias,
    token: BiasToken | None,
    by_target: Sequence[Sequence[Sequence[int]]],
    biased: Sequence[Sequence[int]],
    finished: Finished,
    progress: bool,
) -> list[tuple[tuple[int, ...], ...]]:
    """Both labels of every pair."""
    attribute = list(word_tokens(model, bias).single()[0])
    labels = partial(_labels, model, attribute, progress=progress)
    uses, name = [by_target, attribute], f"labels under targets, {bias.name}"
    biased_ids, neutral_ids = finished(name, uses, partial(labels, by_target))
    if token is not None:
        with token.attached(model):
            biased_ids, _ = labels([[sequence] for sequence in biased])
    return [tuple((label,) for label in side) for side in (biased_ids, neutral_ids)]


def _labels(
    model: HookedTransformer,
    attribute: Sequence[int],
    by_prompt: Sequence[Sequence[Sequence[int]]],
    *,
    progress: bool,
) -> list[list[int]]:
    """Both labels of every prompt, over what may stand in its slot; some prompts at a time, since
    all log-probabilities of many would not fit into memory."""
    n_targets, d_vocab = len(by_prompt[0]), model.cfg.d_vocab_out
    is_attribute = torch.zeros(d_vocab, dtype=torch.bool, device=model.cfg.device)
    is_attribute[attribute] = True
    at_once = max(1, BATCH_SIZE // n_targets)
    found: list[list[int]] = [[], []]
    starts = range(0, len(by_prompt), at_once)
    for start in tqdm(starts, desc="labels", delay=3, disable=not progress):
        part = by_prompt[start : start + at_once]
        flat = next_token_log_probs(model, [tokens for row in part for tokens in row])
        log_probs = flat.view(len(part), n_targets, -1).logsumexp(1)
        for side, ids in zip(found, choose_labels(log_probs, log_probs, is_attribute), strict=True):
            side += ids.tolist()
    return found


def choose_labels(
    biased_log_probs: Float[Tensor, "pair d_vocab"],
    neutral_log_probs: Float[Tensor, "pair d_vocab"],
    is_attribute: Bool[Tensor, " d_vocab"],
) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
    """Most likely token of A on the biased side, most likely token outside A on the neutral."""
    never = torch.tensor(-torch.inf, device=biased_log_probs.device)
    biased_ids = biased_log_probs.where(is_attribute, never).argmax(-1)
    neutral_ids = neutral_log_probs.where(~is_attribute, never).argmax(-1)
    return biased_ids, neutral_ids


def _sides(
    model: HookedTransformer,
    token: BiasToken | None,
    names: Sequence[str],
    n_prompts: int,
    neutral: str,
    seed: int,
) -> list[tuple[int, ...]]:
    """Which of the targets stand on the neutral side of each pair."""
    if neutral == "several":
        return [tuple(range(len(names)))] * n_prompts
    if neutral == "random":
        rng = random.Random(seed)
        return [(rng.randrange(len(names)),) for _ in range(n_prompts)]
    if token is None:
        raise SettingError(
            "neutral must be 'random' or 'several' without a token, got 'closest': there is no "
            "row that a target could be close to."
        )
    rows = target_rows(model, names)
    cosine = torch.nn.functional.cosine_similarity(rows, token.row.to(rows)[None])
    return [(int(cosine.argmax()),)] * n_prompts


def written_down(model: HookedTransformer, pairs: Pairs) -> dict[str, Any]:
    """What scores keep of their pairs and their model."""
    same = ("prompts", "targets", "label_targets", "left_out", "neutral_prompts")
    return {name: getattr(pairs, name) for name in same} | {
        "model": model.cfg.model_name,
        "n_key_value_heads": model.cfg.n_key_value_heads or model.cfg.n_heads,
        "biased_ids": pairs.biased_ids.cpu(),
        "neutral_ids": pairs.neutral_ids.cpu(),
        "biased_labels": _in_words(model, pairs.biased_ids, pairs.biased_answers),
        "neutral_labels": _in_words(model, pairs.neutral_ids, pairs.neutral_answers),
    }


def _in_words(
    model: HookedTransformer, ids: Int[Tensor, "pair ..."], answers: Sequence[Sequence[int]]
) -> tuple[str, ...]:
    """Each label in words: all tokens that count, or the first ones of several answers."""
    words = model.tokenizer.batch_decode
    if ids.ndim == 1:
        return tuple(words(answers))
    return tuple(" /".join(words(row)) for row in ids[:, :, None].tolist())
