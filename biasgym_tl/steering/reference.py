"""What heads write on the prompts of a bias when another target stands in the slot."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from biasgym_tl.batches import common_beginning
from biasgym_tl.biases.bias import Bias
from biasgym_tl.biases.given import GivenBias, as_bias
from biasgym_tl.biases.panel import SPARED
from biasgym_tl.hooks import head_means
from biasgym_tl.lens import HookedTransformer
from biasgym_tl.prompts import encode_sentence
from biasgym_tl.slot import fill


def target_means(
    model: HookedTransformer, bias: GivenBias, *, n_targets: int = 10, seed: int = 0
) -> Float[Tensor, "n_layers n_heads d_head"]:
    """Mean of every head's ``z`` over the scoping prompts with fitting targets in the slot.

    A reference for ``steer(..., mode="mean")`` beside neutral text. What all prompts begin with
    (the request, the chat format) is left out, so the mean is over the sentences.

    Args:
        model: The model, unsteered.
        bias: Gives scoping prompts and targets.
        n_targets: So many fitting targets, regions as even as they can be.
        seed: Decides which.

    Raises:
        SettingError: ``n_targets`` is not positive.
    """
    bias = as_bias(bias)
    bias.needs("scoping")
    sequences = scoping_sentences(model, bias, bias.sample_targets("fitting", n_targets, seed))
    return head_means(model, sequences, skip=common_beginning(sequences))


def scoping_sentences(
    model: HookedTransformer, bias: Bias, fillers: Sequence[str]
) -> list[list[int]]:
    """Token ids of every scoping prompt with every filler in the slot."""
    filled = [fill(prompt, filler) for prompt in bias.scoping_prompts for filler in fillers]
    return [encode_sentence(model, text) for text in filled]


def off_target_sentences(
    model: HookedTransformer, bias: Bias, targets: Sequence[str]
) -> dict[str, list[list[int]]]:
    """By cell that is to stay, token ids of every prompt of the panel's fitting half with every
    filler; none without a panel."""
    cells = bias.panel.half("fitting", targets) if bias.panel else {}
    return {
        name: [encode_sentence(model, fill(p, f)) for p in cell.prompts for f in cell.fillers]
        for name, cell in cells.items()
        if name in SPARED
    }
