"""Inference-time intervention (Li et al., arXiv 2306.03341)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from biasgym_tl.biases.bias import Bias
from biasgym_tl.errors import check_within
from biasgym_tl.heads import all_heads
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.rivals.intervention import HeadsEdit
from biasgym_tl.rivals.samples import Between, fit_probe, seen, states


def iti(
    model: HookedTransformer,
    bias: Bias,
    tokens: Sequence[BiasToken],
    *,
    between: Between = "words",
    k: int = 48,
) -> HeadsEdit:
    """``z := z - s * sigma * theta`` in the ``k`` heads whose probes are right most often.

    ``theta`` is the unit direction from the mean of the neutral to that of the biased ``z``,
    ``sigma`` the standard deviation of ``z`` along it. Probes are logistic, judged on prompts that
    they were not fitted on; equal ones by their log-loss. ``k`` is the paper's. Other than there,
    every position is changed, not the last alone.

    Args:
        model: The model, unchanged.
        bias: Gives scoping prompts, words and fitting targets.
        tokens: BiasTokens.
        between: What the two classes differ in.
        k: Number of heads.

    Raises:
        SettingError: the model has less than ``k`` heads.
    """
    size = n_layers, n_heads, _ = HeadsEdit.sizes(model)
    check_within("k", k, 1, n_layers * n_heads)
    found = states(model, bias, tokens, "attn.hook_z", between)
    found = found._replace(values=found.values.flatten(1, 2))
    probe = fit_probe(found)
    order = sorted(
        range(n_layers * n_heads),
        key=lambda site: (-probe.accuracy[site].item(), probe.loss[site].item()),
    )
    chosen = sorted(order[:k])
    theta = torch.nn.functional.normalize(found.mean_difference()[chosen], dim=-1)
    sigma = (found.values[:, chosen] * theta).sum(-1).std(0)
    return HeadsEdit(
        method="iti",
        bias=bias.name,
        model=model.cfg.model_name,
        data=seen(bias),
        settings={"between": between, "k": k, "accuracy": probe.accuracy[chosen].tolist()},
        heads=tuple(all_heads(n_layers, n_heads)[site] for site in chosen),
        factor=torch.ones(k),
        reference=torch.zeros(size),
        added=(-sigma[:, None] * theta).float(),
    )
