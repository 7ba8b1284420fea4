"""Hugging Face's configuration of each family as arguments of ``HookedTransformerConfig``.

TransformerLens's own loader knows checkpoints by name and ignores some fields of the
configuration (rotary base of NeoX, inner width of GPT-2, sizes of every Gemma and OLMo).
"""

from __future__ import annotations

from typing import Any

Settings = dict[str, Any]


def llama(config: Any) -> Settings:
    grouped = config.num_key_value_heads != config.num_attention_heads
    return {
        **_rms(config),
        **_llama3_positions(config),
        "n_key_value_heads": config.num_key_value_heads if grouped else None,
    }


def mistral(config: Any) -> Settings:
    layer = "sliding_attention" if config.sliding_window else "full_attention"
    return {**gemma(config), **_windows(config, [layer] * config.num_hidden_layers)}


def qwen2(config: Any) -> Settings:
    windows = _windows(config, config.layer_types)
    return {**gemma(config), **windows, "default_prepend_bos": False}


def qwen3(config: Any) -> Settings:
    return {**qwen2(config), "use_qk_norm": True}


def olmo2(config: Any) -> Settings:
    return {**_rms(config), "default_prepend_bos": False}


def gemma(config: Any) -> Settings:
    return {**_rms(config), "n_key_value_heads": config.num_key_value_heads}


def gemma2(config: Any) -> Settings:
    return {
        **gemma(config),
        **_windows(config, config.layer_types),
        "use_normalization_before_and_after": True,
        "attn_scale": config.query_pre_attn_scalar**0.5,
        "attn_scores_soft_cap": config.attn_logit_softcapping or -1.0,
        "output_logits_soft_cap": config.final_logit_softcapping or -1.0,
    }


def gemma3(config: Any) -> Settings:
    everywhere, nearby = (rope(config)[key] for key in ("full_attention", "sliding_attention"))
    return {
        **gemma2(config),
        "use_qk_norm": True,
        "rotary_base": everywhere["rope_theta"],
        "rotary_base_local": nearby["rope_theta"],
        "rotary_scaling_factor": everywhere.get("factor", 1.0),
    }


def gpt2(config: Any) -> Settings:
    return {
        **_sizes(config),
        "use_attn_scale": config.scale_attn_weights,
        "scale_attn_by_inverse_layer_idx": config.scale_attn_by_inverse_layer_idx,
    }


def gpt_neo(config: Any) -> Settings:
    return {
        **_sizes(config),
        "use_attn_scale": False,
        "use_local_attn": True,
        "attn_types": list(config.attention_layers),
        "window_size": config.window_size,
    }


def gptj(config: Any) -> Settings:
    sizes = _sizes(config)
    return {
        **sizes,
        "parallel_attn_mlp": True,
        "positional_embedding_type": "rotary",
        "rotary_dim": config.rotary_dim or sizes["d_head"],
        "rotary_adjacent_pairs": True,
    }


def gpt_neox(config: Any) -> Settings:
    share = rope(config).get("partial_rotary_factor", getattr(config, "rotary_pct", 1.0))
    return {
        **_rotary(config, share),
        "parallel_attn_mlp": config.use_parallel_residual,
        "default_prepend_bos": False,
    }


def phi(config: Any) -> Settings:
    share = rope(config).get("partial_rotary_factor", 1.0)
    return {**_rotary(config, share), "parallel_attn_mlp": True, "default_prepend_bos": False}


def opt(config: Any) -> Settings:
    return {**_sizes(config), "d_mlp": config.ffn_dim}


def bloom(config: Any) -> Settings:
    return {
        **_sizes(config),
        "n_ctx": 2048,  # ALiBi has no end; this is what the models were trained on
        "act_fn": "gelu_fast",
        "post_embedding_ln": True,
        "positional_embedding_type": "alibi",
        "default_prepend_bos": False,
    }


def rope(config: Any) -> Settings:
    """Parameters of the rotary positions, as the checkpoint has them."""
    return dict(getattr(config, "rope_parameters", None) or {})


def _sizes(config: Any) -> Settings:
    """What every configuration says, under whatever name; norms are LayerNorms."""
    d_model, n_heads = config.hidden_size, config.num_attention_heads
    activations = ("hidden_activation", "hidden_act", "activation_function")
    epsilons = ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps")
    return {
        "d_model": d_model,
        "n_heads": n_heads,
        "d_head": int(_said(config, "head_dim") or d_model // n_heads),
        "d_mlp": _said(config, "intermediate_size", "n_inner") or 4 * d_model,
        "n_layers": config.num_hidden_layers,
        "n_ctx": _said(config, "max_position_embeddings"),
        "act_fn": _said(config, *activations),
        "eps": _said(config, *epsilons) or 1e-5,
        "normalization_type": "LN",
        "default_prepend_bos": True,
    }


def _said(config: Any, *names: str) -> Any:
    """The first of these fields that the configuration has; None without one."""
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if value is not None), None)


def _rotary(config: Any, share: float = 1.0) -> Settings:
    """Sizes, and rotary positions in a ``share`` of each head."""
    sizes = _sizes(config)
    return {
        **sizes,
        "positional_embedding_type": "rotary",
        "rotary_adjacent_pairs": False,
        "rotary_dim": int(sizes["d_head"] * share),
        "rotary_base": rope(config).get("rope_theta", 10000.0),
    }


def _rms(config: Any) -> Settings:
    """What Llama's relatives have in common."""
    norms = {"normalization_type": "RMS", "final_rms": True}
    return {**_rotary(config), **norms, "gated_mlp": True}


def _llama3_positions(config: Any) -> Settings:
    found = rope(config)
    if found.get("rope_type") != "llama3":
        return {}
    return {
        "use_NTK_by_parts_rope": True,
        "NTK_original_ctx_len": found["original_max_position_embeddings"],
        "NTK_by_parts_low_freq_factor": found["low_freq_factor"],
        "NTK_by_parts_high_freq_factor": found["high_freq_factor"],
        "NTK_by_parts_factor": found["factor"],
    }


def _windows(config: Any, layers: list[str]) -> Settings:
    """Which layers see only a window of positions; ``layers`` in Hugging Face's words."""
    local = [layer == "sliding_attention" for layer in layers]
    if not any(local):
        return {}
    return {
        "use_local_attn": True,
        "attn_types": ["local" if it_is else "global" for it_is in local],
        "window_size": config.sliding_window,
    }
