"""What a model takes in memory, from its configuration alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from biasgym_tl.errors import ModelError, first_line
from biasgym_tl.families.convert import embedding_scale
from biasgym_tl.injection.train import TOKENS_AT_ONCE
from biasgym_tl.lens import ENGINE, HookedTransformer
from biasgym_tl.origin import find_source
from biasgym_tl.precision import layers_of

RUNTIME = 0.6 * 2**30
"""Python with torch, transformers and a tokenizer (bytes)."""
SAVED = (4, 3, 3, 2)
"""Numbers that a layer keeps of a token for a gradient, in multiples of ``d_model``, ``n_heads *
d_head``, ``d_mlp`` and ``n_heads * tokens of the text``: counted on Llama, Gemma-3 and GPT-2."""
TEXT = 64
"""Tokens of a text, about."""
HELD = {
    "training": (TOKENS_AT_ONCE, True, TOKENS_AT_ONCE), "patching": (520, True, 150),
    "searching": (900, True, 450), "reading": (720, False, 160), "ablating": (2300, False, 64),
}  # fmt: skip
"""By what is done: tokens run at once, whether for a gradient, and of how many all logits."""
READ = 144
"""Tokens whose log-probabilities a loaded model is compared by."""


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


def sizes_of_loaded(model: HookedTransformer) -> Sizes:
    """Sizes of a model that is loaded."""
    cfg, layer = model.cfg, sum(weight.numel() for weight in layers_of(model)[0].parameters())
    return Sizes(
        n_parameters=sum(weight.numel() for weight in model.parameters()),
        n_layers=cfg.n_layers,
        n_heads=cfg.n_heads,
        d_model=cfg.d_model,
        d_head=cfg.d_head,
        d_mlp=cfg.d_mlp or 0,
        d_vocab=cfg.d_vocab,
        tied=False,
        scaled=embedding_scale(cfg) != 1,
        layer=layer,
    )


def weights(sizes: Sizes, dtype: str) -> int:
    """Bytes that the weights of a loaded model take."""
    rows, width = sizes.d_vocab * sizes.d_model, width_of(dtype)
    untied = sizes.tied and (sizes.scaled or ENGINE == "hooked")
    longer = max(4 - width, 0) if sizes.scaled else 0
    return (sizes.n_parameters + untied * rows) * width + rows * longer


def peak(sizes: Sizes, dtype: str, held: str) -> float:
    """Bytes at most while one of :data:`HELD` is done, or ``"loading"``: weights, what runs them,
    and what is kept on the way.

    Of weights of 16 bits a layer at a time is in fp32; ``W_E`` is moved once, to where rows can be
    added.
    """
    table = sizes.d_vocab * sizes.d_model
    resting = RUNTIME + weights(sizes, dtype) + (4 * sizes.layer if width_of(dtype) == 2 else 0)
    if held == "loading":  # the table once more, on its way to W_U, and log-probabilities
        return resting + 4 * table + 20 * READ * sizes.d_vocab
    tokens, gradients, n_logits = HELD[held]
    of_layer = (
        sizes.d_model, sizes.n_heads * sizes.d_head, sizes.d_mlp, sizes.n_heads * TEXT,
    )  # fmt: skip
    saved = sum(n * size for n, size in zip(SAVED, of_layer, strict=True))
    kept = saved * (sizes.n_layers if gradients else 2)
    logits = 3.2 * sizes.d_vocab * n_logits  # with log-probs, of answers alone, and gradients
    moved = table * (4 if sizes.scaled else width_of(dtype))
    return resting + max(4 * (tokens * kept + logits), moved)


def width_of(dtype: str) -> int:
    """Bytes of a number."""
    return getattr(torch, dtype).itemsize  # type: ignore[no-any-return]
