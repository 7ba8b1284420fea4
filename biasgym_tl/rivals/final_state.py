"""Directions taken out of the final state: SentenceDebias and INLP, as Meade et al. (arXiv
2110.08527) compare them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from biasgym_tl.biases.bias import Bias
from biasgym_tl.errors import check_within
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.rivals.intervention import ResidEdit
from biasgym_tl.rivals.layers import vector
from biasgym_tl.rivals.samples import Between, States, fit_probe, states


def sentence_debias(
    model: HookedTransformer,
    bias: Bias,
    tokens: Sequence[BiasToken],
    *,
    between: Between = "words",
) -> ResidEdit:
    """``h := h - s * (v . h) v`` after the last layer, with the :func:`first_component` ``v`` of
    pairs (SentenceDebias, Liang et al., arXiv 2007.08100).

    ``s`` is the share of the component that is removed. Other than published, states are of one
    token and before the final norm, not means over a sentence after it; the two sentences of a
    pair differ in the word that answers, or in who stands in the slot.

    Args:
        model: The model, unchanged.
        bias: Gives scoping prompts, words and fitting targets.
        tokens: BiasTokens.
        between: What the two sentences of a pair differ in.
    """

    def basis(found: States) -> Float[Tensor, "1 d_model"]:
        return first_component(found)[None]

    return _without(model, bias, tokens, "sentence_debias", between, basis)


def inlp(
    model: HookedTransformer,
    bias: Bias,
    tokens: Sequence[BiasToken],
    *,
    between: Between = "words",
    n_directions: int = 10,
) -> ResidEdit:
    """``h := h - s * B' B h`` after the last layer, with the rows ``B`` of :func:`probed`
    (iterative nullspace projection, Ravfogel et al., arXiv 2004.07667).

    ``s`` is the share of these components that is removed. Other than published, classifiers are
    logistic (:func:`fit_probe`), with an intercept and a weight decay, in place of linear support
    vector machines, and there are fewer of them than the 80 of Meade et al.; states are as in
    :func:`sentence_debias`.

    Args:
        model: The model, unchanged.
        bias: Gives scoping prompts, words and fitting targets.
        tokens: BiasTokens.
        between: What the two classes differ in.
        n_directions: Number of classifiers.

    Returns:
        The edit; its settings hold the accuracy of each classifier on prompts that it was not
        fitted on.

    Raises:
        SettingError: there are not so many directions, or too few prompts.
    """
    check_within("n_directions", n_directions, 1, model.cfg.d_model)
    accuracy = list[float]()

    def basis(found: States) -> Float[Tensor, "rank d_model"]:
        rows, right = probed(found, n_directions)
        accuracy.extend(right)
        return rows

    made = _without(model, bias, tokens, "inlp", between, basis)
    settings = {**made.settings, "n_directions": n_directions, "accuracy": accuracy}
    return dataclasses.replace(made, settings=settings)


def first_component(found: States) -> Float[Tensor, " d_model"]:
    """First principal component of states of length 1, less the mean of their pair.

    A pair is of one prompt: the first biased one and the first neutral one, and so on; where one
    side has fewer, they are taken again. The sign is that of biased minus neutral.

    Args:
        found: Values of shape ``[sentence, d_model]``.
    """
    values = torch.nn.functional.normalize(found.values, dim=-1)
    halves = []
    for prompt in sorted(set(found.prompt)):
        own = torch.tensor([each == prompt for each in found.prompt])
        biased, neutral = values[own & found.biased], values[own & ~found.biased]
        at = torch.arange(max(len(biased), len(neutral)))
        halves.append((biased[at % len(biased)] - neutral[at % len(neutral)]) / 2)
    half = torch.cat(halves)  # a pair less its mean is this and its opposite
    component: Tensor = torch.linalg.svd(half, full_matrices=False).Vh[0]
    return component * (half @ component).sum().sign()


def probed(found: States, n: int) -> tuple[Float[Tensor, "rank d_model"], list[float]]:
    """Directions of ``n`` linear classifiers of the classes, each fitted on what the earlier ones
    leave: an orthonormal basis, and the accuracy of each on prompts that it was not fitted on.

    Args:
        found: Values of shape ``[sentence, d_model]``.
        n: Number of classifiers.
    """
    values = found.values
    rows, accuracy = values.new_zeros(0, values.shape[1]), list[float]()
    for _ in range(n):
        left = values - values @ rows.T @ rows
        probe = fit_probe(found._replace(values=left[:, None]))
        row = probe.weight[0] - probe.weight[0] @ rows.T @ rows
        row = row - row @ rows.T @ rows  # once more, for what rounding has left
        rows = torch.cat([rows, row[None] / row.norm()])
        accuracy.append(probe.accuracy[0].item())
    return rows, accuracy


def _without(
    model: HookedTransformer,
    bias: Bias,
    tokens: Sequence[BiasToken],
    method: str,
    between: Between,
    basis: Callable[[States], Float[Tensor, "rank d_model"]],
) -> ResidEdit:
    """An edit that takes orthonormal rows out of the state after the last layer."""
    found, last = states(model, bias, tokens, "hook_resid_post", between), model.cfg.n_layers - 1
    rows = basis(found._replace(values=found.values[:, last]))
    parts = {"read": rows, "write": -rows}
    return vector(model, bias, tokens, method, between, lambda *_: parts, last, found)
