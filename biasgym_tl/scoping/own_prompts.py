"""Heads scored on prompts of your own: no bias, no BiasToken, no training."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from biasgym_tl.errors import SettingError, check_one_of
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.prompts import SENTENCE_REQUEST, encode_sentence
from biasgym_tl.scoping.checks import check_equations
from biasgym_tl.scoping.given_prompts import GivenAnswers, GivenPrompts, OwnPrompts, own_prompts
from biasgym_tl.scoping.pairs import LABELS, Pairs, answer_tokens
from biasgym_tl.scoping.scope import BiasScope
from biasgym_tl.scoping.scores import OWN_PROMPTS, HeadScores
from biasgym_tl.warned import warn


def attribute_prompts(
    model: HookedTransformer,
    prompts: GivenPrompts,
    biased: GivenAnswers,
    neutral: GivenAnswers,
    *,
    method: str = "direct",
    contrast: str | None = None,
    label: str = "first",
    ablate_to: str = "zero",
    gradient: str = "run",
    answer_only: bool = False,
    request: str | None = SENTENCE_REQUEST,
    batch_size: int = 32,
    progress: bool = True,
) -> HeadScores:
    """Score every head on prompts of your own, by what it adds to *biased minus neutral answer*.

    ``attribute_prompts(model, ("People from France are", "People from Japan are"), "late",
    "early")``. Values are logits, as ``BiasScope`` gives them: positive pushes toward the biased
    answer, of a pair in the first prompt more than in the second. Of several answers the mean logit
    counts: it is linear in what the heads write, so that all parts still sum to it exactly.

    Args:
        model: As :meth:`BiasScope.attribute` takes it. A BiasToken may be attached, and stand in
            the prompts.
        prompts: What stands before the answer: a text, a pair (a tuple of two texts), or a list of
            texts or of pairs.
        biased: An answer, a list of several, or such a list for each prompt (equally many in each).
            A space is put before an answer that has none.
        neutral: The same.
        method: As in ``BiasScope``, as are ``label`` (of an answer of several tokens the
            ``"first"`` counts), ``ablate_to``, ``gradient``, ``answer_only`` and ``batch_size``.
        contrast: ``"difference"``: the first prompt of a pair minus the second, the default for
            pairs; ``"biased"``: the first alone.
        request: What the user asks before the model begins its answer with the prompt, by default
            as prompts of biases are put; None: the prompt alone, as plain text.
        progress: Show a bar, where it takes more than 3 seconds.

    Raises:
        SettingError: prompts or answers are empty, alike or of another form, or do not fit the
            settings.
        AttributionError: the model is not supported, or the parts do not sum to the difference.
        ModelError: the model has no tokenizer, or a prompt is longer than its context.
    """
    check_equations(model)
    own = own_prompts(prompts, biased, neutral)
    scope = scope_of(
        own, contrast, method=method, label=label, ablate_to=ablate_to, gradient=gradient,
        answer_only=answer_only, batch_size=batch_size,
    )  # fmt: skip
    pairs = _pairs(model, own, label, request)
    names = {"bias": _counted(model, own, label).name, "token": OWN_PROMPTS}
    return scope.score(model, pairs, None, {"request": request}, progress=progress, **names)


def scope_of(own: OwnPrompts, contrast: str | None, **settings: Any) -> BiasScope:
    """Settings of an attribution; without a ``contrast`` the default of these prompts.

    Raises:
        SettingError: a setting is outside its range, or compares what are no pairs.
    """
    scope: BiasScope = BiasScope(**settings)
    paired, patched = len(own.prompts[0]) == 2, scope.to_neutral
    chosen: Any = contrast or ("difference" if paired and not patched else "biased")
    if not paired and (chosen == "difference" or patched):
        name, others, found = "contrast", "'biased'", chosen
        if patched:
            name, others, found = "ablate_to", "'zero' or 'mean'", scope.ablate_to
        if scope.method == "slot_patching":
            name, others, found = "method", "another", scope.method
        raise SettingError(
            f"{name} must be {others} for single prompts, got {found!r}. Give pairs (first, "
            "second) to compare both."
        )
    chosen_scope: BiasScope = dataclasses.replace(scope, contrast=chosen)
    return chosen_scope


def _pairs(model: HookedTransformer, own: OwnPrompts, label: str, request: str | None) -> Pairs:
    """The tokens of prompts and answers.

    Raises:
        SettingError: answers begin alike, or cannot count with this label.
    """
    check_one_of("label", label, LABELS)
    n_answers = max(len(own.biased[0]), len(own.neutral[0]))
    if label == "continuation" and n_answers > 1:
        raise SettingError(
            f"label must be 'first' or 'token' with several answers, got 'continuation' with "
            f"{n_answers}: only of single tokens the mean logit has a meaning."
        )
    end = None if label == "continuation" else 1
    biased, neutral = (
        [[answer_tokens(model, answer, label)[:end] for answer in row] for row in side]
        for side in own[1:]
    )
    for texts, *sides, b, n in zip(*own, biased, neutral, strict=True):
        if len({*b, *n}) < len(b) + len(n):
            given = " and ".join(", ".join(map(repr, side)) for side in sides)
            raise SettingError(
                "answers must begin with different tokens, since only the first of each counts, "
                f"got {given} after {texts[0]!r:.200}. Use other answers, or in Python "
                "label='continuation'."
            )
    encoded = [[tuple(encode_sentence(model, t, request)) for t in row] for row in own.prompts]
    return Pairs(
        prompts=tuple(row[0] for row in own.prompts),
        neutral_prompts=tuple(text for row in own.prompts for text in row[1:]),
        targets=((),) * len(encoded),
        label_targets=(),
        biased=tuple(row[0] for row in encoded),
        neutral=tuple(tuple(row[1:]) for row in encoded),
        biased_ids=_ids(model, biased),
        neutral_ids=_ids(model, neutral),
        biased_answers=tuple(row[0] for row in biased),
        neutral_answers=tuple(row[0] for row in neutral),
    )


def _counted(model: HookedTransformer, own: OwnPrompts, label: str) -> OwnPrompts:
    """With what counts in place of each answer; of one that has more tokens, the first and "…"."""
    cut: dict[str, str] = {}
    for answer in {answer for side in own[1:] for row in side for answer in row}:
        first, *more = answer_tokens(model, answer, label)
        if more and label == "first":
            cut[answer] = model.tokenizer.decode([first]).strip() + "…"
    if cut:
        shown = ", ".join(f"{answer.strip()!r} by {first!r}" for answer, first in cut.items())
        warn(
            f"answers of several tokens count by their first alone: {shown}. Choose words of one "
            "token, or in Python label='continuation'.",
            stacklevel=3,
        )
    sides = [tuple(tuple(cut.get(a, a) for a in row) for row in side) for side in own[1:]]
    return OwnPrompts(own.prompts, *sides)


def _ids(model: HookedTransformer, answers: list[list[tuple[int, ...]]]) -> Int[Tensor, "pair ..."]:
    """First tokens; ``[pair]`` where there is one answer each, ``[pair, answer]`` otherwise."""
    ids = torch.tensor([[answer[0] for answer in row] for row in answers])
    return (ids[:, 0] if ids.shape[1] == 1 else ids).to(model.cfg.device)
