"""Logits of the attribute words lowered by a constant: what any method has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.words import word_tokens
from biasgym_tl.injection.token import BiasToken
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.rivals.intervention import LogitShift
from biasgym_tl.rivals.samples import seen


def logit_shift(model: HookedTransformer, bias: Bias, tokens: Sequence[BiasToken]) -> LogitShift:
    """``logit[w] := logit[w] - s`` for every attribute word ``w`` of one token.

    The log-odds of these words fall by exactly ``s`` after every prompt, of whatever it speaks.
    With ``q`` their probability, ``KL = s * q + log(1 - q + q * exp(-s))``.

    Args:
        model: The model, unchanged.
        bias: Gives the words. What it steers by is not learned: prompts and targets are not used.
        tokens: Not used.
    """
    ids = word_tokens(model, bias).single()[0]
    return LogitShift(
        method="logit_shift",
        bias=bias.name,
        model=model.cfg.model_name,
        data=seen(bias),
        settings={},
        ids=ids,
        shift=torch.ones(len(ids)),
    )
