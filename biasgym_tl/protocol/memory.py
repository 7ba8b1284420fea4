"""What a model takes in memory, from its configuration alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from biasgym_tl.errors import ModelError, first_line
from biasgym_tl.injection.train import TOKENS_AT_ONCE
from biasgym_tl.lens import ENGINE
from biasgym_tl.origin import find_source
from biasgym_tl.precision import layers_of

RUNTIME = 0.6 * 2**30
"""Python with torch, transformers and a tokenizer (bytes)."""
SAVED = (4, 3, 3, 2)
"""Numbers that a layer keeps of a token for a gradient, in multiples of ``d_model``, ``n_heads *
d_head``, ``d_mlp`` and ``n_heads * tokens of the text``: counted on Llama, Gemma-3 and GPT-2."""
TEXT = 64
"""Tokens of a training text, about."""


class Sizes(NamedTuple):
    """Of a model, in numbers."""

    n_parameters: int
    n_layers: int
    n_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    d_vocab: int
    tied: bool
    """One matrix is ``W_E`` and ``W_U``; HookedTransformer keeps two."""
    scaled: bool
    """``W_E`` holds scaled rows (Gemma's), which are kept in fp32."""
    layer: int
    """Parameters of a layer."""


def sizes_of(name: str) -> Sizes:
    """Sizes of a model, from its configuration.

    Raises:
        ModelError: there is no configuration of a language model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(find_source(name))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model must be a name or folder with the configuration of a language model, got "
            f"{name!r}: {first_line(error)}"
        ) from error
    return sizes_of_config(config, model)


def sizes_of_config(config: Any, model: Any) -> Sizes:
    """Sizes of a model of Hugging Face, whose weights may be on the meta device."""
    d_model, n_heads = config.hidden_size, config.num_attention_heads
    mlp = (getattr(config, key, None) for key in ("intermediate_size", "ffn_dim", "n_inner"))
    return Sizes(
        n_parameters=sum(weight.numel() for weight in model.parameters()),
        n_layers=config.num_hidden_layers,
        n_heads=n_heads,
        d_model=d_model,
        d_head=getattr(config, "head_dim", None) or d_model // n_heads,
        d_mlp=next(filter(None, mlp), 4 * d_model),
        d_vocab=model.get_input_embeddings().weight.shape[0],
        tied=model.get_input_embeddings().weight is model.get_output_embeddings().weight,
        scaled=hasattr(model.get_input_embeddings(), "scalar_embed_scale"),
        layer=sum(weight.numel() for weight in layers_of(model)[0].parameters()),
    )


def weights(sizes: Sizes, dtype: str) -> int:
    """Bytes that the weights of a loaded model take."""
    rows, width = sizes.d_vocab * sizes.d_model, _width(dtype)
    untied = sizes.tied and (sizes.scaled or ENGINE == "hooked")
    longer = max(4 - width, 0) if sizes.scaled else 0
    return (sizes.n_parameters + untied * rows) * width + rows * longer


def peak(sizes: Sizes, dtype: str, *, gradients: bool) -> float:
    """Bytes at most: weights, what runs them, and what a run keeps, also for ``gradients``.

    Of weights of 16 bits a layer at a time is in fp32; ``W_E`` is moved once, to where rows can be
    added.
    """
    upcast = 4 * sizes.layer if _width(dtype) == 2 else 0
    of_layer = (
        sizes.d_model, sizes.n_heads * sizes.d_head, sizes.d_mlp, sizes.n_heads * TEXT,
    )  # fmt: skip
    saved = sum(n * size for n, size in zip(SAVED, of_layer, strict=True))
    kept = saved * (sizes.n_layers if gradients else 2)
    logits = 3.2 * sizes.d_vocab  # of the tokens of answers, with log-probs and gradients
    moved = sizes.d_vocab * sizes.d_model * (4 if sizes.scaled else _width(dtype))
    work = max(4 * TOKENS_AT_ONCE * (kept + logits), moved)
    return RUNTIME + weights(sizes, dtype) + upcast + work


def _width(dtype: str) -> int:
    return getattr(torch, dtype).itemsize  # type: ignore[no-any-return]
