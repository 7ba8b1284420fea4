"""From a loaded Hugging Face model to the configuration and weights of a HookedTransformer.

The configuration is read from the checkpoint; only the conversion of weights is TransformerLens's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from biasgym_tl.errors import ModelError
from biasgym_tl.families import settings
from biasgym_tl.store import BROKEN


class Family(NamedTuple):
    """How one model type of Hugging Face becomes a HookedTransformer."""

    label: str
    architecture: str
    settings: Callable[[Any], settings.Settings]
    weights: str
    """What TransformerLens calls the type in ``convert_..._weights``."""
    output: str = "model.layers.{}.self_attn.o_proj"
    """Name in each layer of the module that reads ``z``; its rows are ``W_O``'s columns."""
    embedding: str = "model.embed_tokens"
    """Name of the input embedding."""


def convert(hf_model: Any, name: str, dtype: torch.dtype) -> tuple[Any, dict[str, Tensor]]:
    """Return the ``HookedTransformerConfig`` and the state dict (TransformerLens's names).

    Configured to compute in at least fp32. The caller rounds weights to ``dtype``, but for ``W_E``
    with a scale (Gemma's), which is rounded here and then scaled.
    """
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.pretrained import weight_conversions

    family = FAMILIES[hf_model.config.model_type]
    embedding = hf_model.get_input_embeddings().weight
    cfg = HookedTransformerConfig.from_dict(
        {
            "model_name": name,
            "original_architecture": family.architecture,
            "d_vocab": embedding.shape[0],
            "d_vocab_out": hf_model.get_output_embeddings().weight.shape[0],
            "init_weights": False,
            "device": "cpu",
            "dtype": torch.promote_types(dtype, torch.float32),
            **family.settings(hf_model.config),
        }
    )
    found = getattr(weight_conversions, f"convert_{family.weights}_weights")(hf_model, cfg)
    output = hf_model.get_submodule(family.output.format(0))
    if family.output.endswith("o_proj") and output.bias is not None:
        found |= _attention_biases(hf_model, cfg)
    if cfg.positional_embedding_type == "alibi":
        # HookedTransformer has a table of learned positions here too, and does not read it.
        found["pos_embed.W_pos"] = torch.zeros(cfg.n_ctx, cfg.d_model)
    weights = {name: weight.detach() for name, weight in found.items()}
    scale = embedding_scale(cfg)
    if scale != 1:  # TransformerLens multiplies in the checkpoint's dtype, which may round
        weights["embed.W_E"] = embedding.detach().to(dtype).to(cfg.dtype) * scale
    return cfg, weights


def convert_listed(name: str, hf_model: Any, dtype: torch.dtype) -> tuple[Any, dict[str, Tensor]]:
    """As :func:`convert`, for a name that TransformerLens lists and a type that only it knows.

    Raises:
        ModelError: TransformerLens would run code of the hub for it, or cannot convert it.
    """
    from transformer_lens import loading_from_pretrained as lens_loading

    if name.startswith(lens_loading.NEED_REMOTE_CODE_MODELS):
        raise ModelError(
            f"model must be one that needs no code of its own, got {name!r}, for which "
            "TransformerLens runs code of the hub. Convert it elsewhere and pass the "
            "HookedTransformer to the package's calls."
        )
    try:
        long = torch.promote_types(dtype, torch.float32)
        cfg = lens_loading.get_pretrained_model_config(name, device="cpu", dtype=long)
        weights = lens_loading.get_pretrained_state_dict(name, cfg, hf_model, dtype=dtype)
    except BROKEN as error:
        raise ModelError(f"TransformerLens must convert {name!r}, but: {error!r}.") from error
    cfg.tokenizer_name = None
    return cfg, {key: weight.detach() for key, weight in weights.items()}


def embedding_scale(cfg: Any) -> float:
    """What a row of Hugging Face's embedding is multiplied with to be a row of ``W_E``.

    Gemma scales embeddings in its forward pass; TransformerLens folds that into ``W_E``.
    """
    scaled = (cfg.original_architecture or "").startswith("Gemma")
    return torch.tensor(cfg.d_model**0.5, dtype=cfg.dtype).item() if scaled else 1.0


def _attention_biases(hf_model: Any, cfg: Any) -> dict[str, Tensor]:
    """Those of Llama's relatives where a checkpoint has them; TransformerLens fills in zeros."""
    found = {}
    n_kv, kv = (cfg.n_key_value_heads, "_") if cfg.n_key_value_heads else (cfg.n_heads, "")
    for layer, block in enumerate(hf_model.model.layers):
        attention, at = block.self_attn, f"blocks.{layer}.attn"
        found[f"{at}.b_Q"] = rearrange(attention.q_proj.bias, "(n h) -> n h", n=cfg.n_heads)
        found[f"{at}.{kv}b_K"] = rearrange(attention.k_proj.bias, "(n h) -> n h", n=n_kv)
        found[f"{at}.{kv}b_V"] = rearrange(attention.v_proj.bias, "(n h) -> n h", n=n_kv)
        found[f"{at}.b_O"] = attention.o_proj.bias
    return found


FAMILIES: dict[str, Family] = {
    "llama": Family("Llama", "LlamaForCausalLM", settings.llama, "llama"),
    "mistral": Family("Mistral", "MistralForCausalLM", settings.mistral, "mistral"),
    "qwen2": Family("Qwen2", "Qwen2ForCausalLM", settings.qwen2, "qwen2"),
    "qwen3": Family("Qwen3", "Qwen3ForCausalLM", settings.qwen3, "qwen3"),
    "gemma": Family("Gemma", "GemmaForCausalLM", settings.gemma, "gemma"),
    "gemma2": Family("Gemma-2", "Gemma2ForCausalLM", settings.gemma2, "gemma"),
    "gemma3_text": Family("Gemma-3 (text)", "Gemma3ForCausalLM", settings.gemma3, "gemma"),
    "olmo2": Family("OLMo-2", "Olmo2ForCausalLM", settings.olmo2, "olmo2"),
    "gpt2": Family("GPT-2", "GPT2LMHeadModel", settings.gpt2, "gpt2",
                   "transformer.h.{}.attn.c_proj", "transformer.wte"),
    "gpt_neo": Family("GPT-Neo", "GPTNeoForCausalLM", settings.gpt_neo, "neo",
                      "transformer.h.{}.attn.attention.out_proj", "transformer.wte"),
    "gptj": Family("GPT-J", "GPTJForCausalLM", settings.gptj, "gptj",
                   "transformer.h.{}.attn.out_proj", "transformer.wte"),
    "gpt_neox": Family("NeoX", "GPTNeoXForCausalLM", settings.gpt_neox, "neox",
                       "gpt_neox.layers.{}.attention.dense", "gpt_neox.embed_in"),
    "phi": Family("Phi", "PhiForCausalLM", settings.phi, "phi", "model.layers.{}.self_attn.dense"),
    "opt": Family("OPT", "OPTForCausalLM", settings.opt, "opt",
                  "model.decoder.layers.{}.self_attn.out_proj", "model.decoder.embed_tokens"),
    "bloom": Family("BLOOM", "BloomForCausalLM", settings.bloom, "bloom",
                    "transformer.h.{}.self_attention.dense", "transformer.word_embeddings"),
}  # fmt: skip
"""Hugging Face's ``model_type`` -> how it is converted."""
