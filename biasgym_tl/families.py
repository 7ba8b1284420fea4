"""The model families that are converted here: their configuration and weights for TransformerLens.

TransformerLens's own loader knows checkpoints by name and ignores some fields of the
configuration (rotary base of NeoX, attention biases of Llama, inner width of GPT-2). Here the
configuration is read from the checkpoint and only the weight conversion is TransformerLens's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from biasgym_tl.errors import ModelError
from biasgym_tl.lens import HookedTransformerConfig

Settings = dict[str, Any]


class Family(NamedTuple):
    """How one model type of Hugging Face becomes a HookedTransformer."""

    label: str
    architecture: str
    settings: Callable[[Any], Settings]
    check: Callable[[Any], None]
    weights: Callable[[Any, Any], dict[str, Tensor]]


def convert(hf_model: Any, device: str, dtype: torch.dtype) -> tuple[Any, dict[str, Tensor]]:
    """Return the ``HookedTransformerConfig`` and the state dict (TransformerLens's names)."""
    family = FAMILIES[hf_model.config.model_type]
    cfg = HookedTransformerConfig.from_dict(
        {
            "model_name": str(hf_model.config._name_or_path or family.label)
            .rstrip("/")
            .split("/")[-1],
            "original_architecture": family.architecture,
            "d_vocab": hf_model.config.vocab_size,
            "init_weights": False,
            "device": device,
            "dtype": dtype,
            **family.settings(hf_model.config),
        }
    )
    return cfg, {name: weight.detach() for name, weight in family.weights(hf_model, cfg).items()}


def embedding_scale(cfg: Any) -> float:
    """What a row of Hugging Face's embedding is multiplied with to be a row of ``W_E``.

    Gemma scales embeddings in its forward pass; TransformerLens folds that into ``W_E``.
    """
    scaled = (cfg.original_architecture or "").startswith("Gemma")
    return torch.tensor(cfg.d_model**0.5, dtype=cfg.dtype).item() if scaled else 1.0


# --- configuration -----------------------------------------------------------------------------


def _rotary_llama_like(config: Any) -> Settings:
    return {
        "d_model": config.hidden_size,
        "n_heads": config.num_attention_heads,
        "d_head": _d_head(config),
        "d_mlp": config.intermediate_size,
        "n_layers": config.num_hidden_layers,
        "n_ctx": config.max_position_embeddings,
        "act_fn": config.hidden_act,
        "positional_embedding_type": "rotary",
        "rotary_adjacent_pairs": False,
        "rotary_base": _rope(config).get("rope_theta", 10000.0),
    }


def _llama(config: Any) -> Settings:
    grouped = config.num_key_value_heads != config.num_attention_heads
    rope = _rope(config)
    scaled: Settings = {}
    if rope.get("rope_type") == "llama3":
        scaled = {
            "use_NTK_by_parts_rope": True,
            "NTK_original_ctx_len": rope["original_max_position_embeddings"],
            "NTK_by_parts_low_freq_factor": rope["low_freq_factor"],
            "NTK_by_parts_high_freq_factor": rope["high_freq_factor"],
            "NTK_by_parts_factor": rope["factor"],
        }
    return {
        **_rotary_llama_like(config),
        "rotary_dim": _d_head(config),
        "n_key_value_heads": config.num_key_value_heads if grouped else None,
        "eps": config.rms_norm_eps,
        "normalization_type": "RMS",
        "final_rms": True,
        "gated_mlp": True,
        "default_prepend_bos": True,
        **scaled,
    }


def _qwen2(config: Any) -> Settings:
    return {
        **_llama(config),
        "n_key_value_heads": config.num_key_value_heads,
        "default_prepend_bos": False,
    }


def _gpt2(config: Any) -> Settings:
    return {
        "d_model": config.n_embd,
        "n_heads": config.n_head,
        "d_head": config.n_embd // config.n_head,
        "d_mlp": config.n_inner or 4 * config.n_embd,
        "n_layers": config.n_layer,
        "n_ctx": config.n_positions,
        "eps": config.layer_norm_epsilon,
        "act_fn": config.activation_function,
        "use_attn_scale": config.scale_attn_weights,
        "scale_attn_by_inverse_layer_idx": config.scale_attn_by_inverse_layer_idx,
        "normalization_type": "LN",
        "default_prepend_bos": True,
    }


def _neox(config: Any) -> Settings:
    d_head = config.hidden_size // config.num_attention_heads
    share = _rope(config).get("partial_rotary_factor", getattr(config, "rotary_pct", 1.0))
    return {
        **_rotary_llama_like(config),
        "rotary_dim": int(d_head * share),
        "eps": config.layer_norm_eps,
        "normalization_type": "LN",
        "parallel_attn_mlp": config.use_parallel_residual,
        "default_prepend_bos": False,
    }


def _d_head(config: Any) -> int:
    explicit = getattr(config, "head_dim", None)
    return int(explicit or config.hidden_size // config.num_attention_heads)


def _rope(config: Any) -> Settings:
    return dict(getattr(config, "rope_parameters", None) or {})


# --- what HookedTransformer would compute differently is refused ---------------------------------


def _check_llama(config: Any) -> None:
    _require_rope(config, ("default", "llama3"))
    _refuse(config, "mlp_bias", "HookedTransformer has no bias on the gate of an MLP")


def _check_qwen2(config: Any) -> None:
    _require_rope(config, ("default",))
    _refuse(config, "use_sliding_window", "sliding windows are not converted for this family")


def _check_gpt2(config: Any) -> None:
    _refuse(config, "add_cross_attention", "HookedTransformer has no cross-attention")


def _check_neox(config: Any) -> None:
    _require_rope(config, ("default",))
    if not config.attention_bias:
        raise ModelError("attention_bias must be True for a NeoX model, got False.")


def _require_rope(config: Any, allowed: tuple[str, ...]) -> None:
    kind = _rope(config).get("rope_type", "default")
    if kind not in allowed:
        raise ModelError(
            f"rope_type must be one of {list(allowed)} for a {config.model_type} model, "
            f"got {kind!r}. HookedTransformer would compute other positions."
        )


def _refuse(config: Any, field: str, reason: str) -> None:
    if getattr(config, field, False):
        raise ModelError(f"{field} must be False for a {config.model_type} model: {reason}.")


# --- weights -----------------------------------------------------------------------------------


def _llama_weights(hf_model: Any, cfg: Any) -> dict[str, Tensor]:
    from transformer_lens.pretrained.weight_conversions import convert_llama_weights

    weights: dict[str, Tensor] = convert_llama_weights(hf_model, cfg)
    if hf_model.config.attention_bias:  # TransformerLens fills in zeros
        n_kv = cfg.n_key_value_heads or cfg.n_heads
        kv = "_" if cfg.n_key_value_heads else ""
        for layer, block in enumerate(hf_model.model.layers):
            attention, at = block.self_attn, f"blocks.{layer}.attn"
            weights[f"{at}.b_Q"] = rearrange(attention.q_proj.bias, "(n h) -> n h", n=cfg.n_heads)
            weights[f"{at}.{kv}b_K"] = rearrange(attention.k_proj.bias, "(n h) -> n h", n=n_kv)
            weights[f"{at}.{kv}b_V"] = rearrange(attention.v_proj.bias, "(n h) -> n h", n=n_kv)
            weights[f"{at}.b_O"] = attention.o_proj.bias
    return weights


def _qwen2_weights(hf_model: Any, cfg: Any) -> dict[str, Tensor]:
    from transformer_lens.pretrained.weight_conversions import convert_qwen2_weights

    return dict(convert_qwen2_weights(hf_model, cfg))


def _gpt2_weights(hf_model: Any, cfg: Any) -> dict[str, Tensor]:
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

    return dict(convert_gpt2_weights(hf_model, cfg))


def _neox_weights(hf_model: Any, cfg: Any) -> dict[str, Tensor]:
    from transformer_lens.pretrained.weight_conversions import convert_neox_weights

    return dict(convert_neox_weights(hf_model, cfg))


FAMILIES: dict[str, Family] = {
    "llama": Family("Llama", "LlamaForCausalLM", _llama, _check_llama, _llama_weights),
    "qwen2": Family("Qwen2", "Qwen2ForCausalLM", _qwen2, _check_qwen2, _qwen2_weights),
    "gpt2": Family("GPT-2", "GPT2LMHeadModel", _gpt2, _check_gpt2, _gpt2_weights),
    "gpt_neox": Family("NeoX", "GPTNeoXForCausalLM", _neox, _check_neox, _neox_weights),
}
"""Hugging Face's ``model_type`` -> how it is converted."""
