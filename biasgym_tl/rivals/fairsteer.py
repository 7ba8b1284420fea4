"""A vector that is added only where a probe finds bias (FairSteer, arXiv 2504.14492)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from biasgym_tl.biases.bias import Bias
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.rivals.caa import toward_neutral
from biasgym_tl.rivals.intervention import ResidEdit
from biasgym_tl.rivals.layers import vector
from biasgym_tl.rivals.samples import Between, fit_probe, states


def fairsteer(
    model: HookedTransformer,
    bias: Bias,
    tokens: Sequence[BiasToken],
    *,
    between: Between = "words",
    layer: int | None = None,
) -> ResidEdit:
    """``h := h - s * delta`` after one layer, at positions where a logistic probe says biased.

    The layer is that of the probe which is right most often on prompts that it was not fitted on;
    of equal ones that with the lowest log-loss. Other than there, classes are those of one
    stereotype, not of a benchmark of many.

    Args:
        model: The model, unchanged.
        bias: Gives scoping prompts, words and fitting targets.
        tokens: BiasTokens.
        between: What the two classes differ in.
        layer: Default: by the probe.
    """
    states_ = states(model, bias, tokens, "hook_resid_post", between)
    probe = fit_probe(states_)
    best = max(
        range(len(probe.loss)), key=lambda at: (probe.accuracy[at].item(), -probe.loss[at].item())
    )
    layer = best if layer is None else layer
    found = vector(model, bias, tokens, "fairsteer", between, toward_neutral, layer, states_)
    return dataclasses.replace(
        found,
        gate=probe.weight[layer].float(),
        gate_bias=probe.bias[layer].item(),
        settings={**found.settings, "accuracy": probe.accuracy[layer].item()},
    )
