"""Hugging Face's configuration of each family as arguments of ``HookedTransformerConfig``.

TransformerLens's own loader knows checkpoints by name and ignores some fields of the
configuration (rotary base of NeoX, inner width of GPT-2, sizes of every Gemma and OLMo).
"""

from __future__ import annotations

from typing import Any

Settings = dict[str, Any]


def llama(config: Any) -> Settings:
    return {**_rotary(config), **_rms(config), **_grouped(config), **_llama3_positions(config)}


def mistral(config: Any) -> Settings:
    local = ["sliding_attention" if config.sliding_window else "full_attention"]
    layers = local * config.num_hidden_layers
    return {
        **_rotary(config),
        **_rms(config),
        **_windows(config, layers),
        "n_key_value_heads": config.num_key_value_heads,
    }


def qwen2(config: Any) -> Settings:
    return {
        **_rotary(config),
        **_rms(config),
        **_windows(config, config.layer_types),
        "n_key_value_heads": config.num_key_value_heads,
        "default_prepend_bos": False,
    }


def qwen3(config: Any) -> Settings:
    return {**qwen2(config), "use_qk_norm": True}


def olmo2(config: Any) -> Settings:
    return {**_rotary(config), **_rms(config), "default_prepend_bos": False}


def gemma(config: Any) -> Settings:
    return {
        **_rotary(config),
        **_rms(config),
        "n_key_value_heads": config.num_key_value_heads,
    }


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
        **_n_embd(config),
        "n_layers": config.n_layer,
        "n_ctx": config.n_positions,
        "eps": config.layer_norm_epsilon,
        "act_fn": config.activation_function,
        "use_attn_scale": config.scale_attn_weights,
        "scale_attn_by_inverse_layer_idx": config.scale_attn_by_inverse_layer_idx,
        "normalization_type": "LN",
        "default_prepend_bos": True,
    }


def gpt_neo(config: Any) -> Settings:
    return {
        "d_model": config.hidden_size,
        "n_heads": config.num_heads,
        "d_head": config.hidden_size // config.num_heads,
        "d_mlp": config.intermediate_size or 4 * config.hidden_size,
        "n_layers": config.num_layers,
        "n_ctx": config.max_position_embeddings,
        "eps": config.layer_norm_epsilon,
        "act_fn": config.activation_function,
        "use_attn_scale": False,
        "use_local_attn": True,
        "attn_types": list(config.attention_layers),
        "window_size": config.window_size,
        "normalization_type": "LN",
        "default_prepend_bos": True,
    }


def gptj(config: Any) -> Settings:
    return {
        **_n_embd(config),
        "n_layers": config.n_layer,
        "n_ctx": config.n_positions,
        "eps": config.layer_norm_epsilon,
        "act_fn": config.activation_function,
        "normalization_type": "LN",
        "parallel_attn_mlp": True,
        "positional_embedding_type": "rotary",
        "rotary_dim": config.rotary_dim or config.n_embd // config.n_head,
        "rotary_adjacent_pairs": True,
        "default_prepend_bos": True,
    }


def gpt_neox(config: Any) -> Settings:
    d_head = config.hidden_size // config.num_attention_heads
    share = rope(config).get("partial_rotary_factor", getattr(config, "rotary_pct", 1.0))
    return {
        **_rotary(config),
        "rotary_dim": int(d_head * share),
        "eps": config.layer_norm_eps,
        "normalization_type": "LN",
        "parallel_attn_mlp": config.use_parallel_residual,
        "default_prepend_bos": False,
    }


def phi(config: Any) -> Settings:
    d_head = config.hidden_size // config.num_attention_heads
    return {
        **_rotary(config),
        "rotary_dim": int(d_head * rope(config).get("partial_rotary_factor", 1.0)),
        "eps": config.layer_norm_eps,
        "normalization_type": "LN",
        "parallel_attn_mlp": True,
        "default_prepend_bos": False,
    }


def opt(config: Any) -> Settings:
    return {
        "d_model": config.hidden_size,
        "n_heads": config.num_attention_heads,
        "d_head": config.hidden_size // config.num_attention_heads,
        "d_mlp": config.ffn_dim,
        "n_layers": config.num_hidden_layers,
        "n_ctx": config.max_position_embeddings,
        "eps": 1e-5,
        "act_fn": config.activation_function,
        "normalization_type": "LN",
        "default_prepend_bos": True,
    }


def bloom(config: Any) -> Settings:
    return {
        "d_model": config.hidden_size,
        "n_heads": config.n_head,
        "d_head": config.hidden_size // config.n_head,
        "d_mlp": 4 * config.hidden_size,
        "n_layers": config.n_layer,
        "n_ctx": 2048,  # ALiBi has no end; this is what the models were trained on
        "eps": config.layer_norm_epsilon,
        "act_fn": "gelu_fast",
        "normalization_type": "LN",
        "post_embedding_ln": True,
        "positional_embedding_type": "alibi",
        "default_prepend_bos": False,
    }


def rope(config: Any) -> Settings:
    """Parameters of the rotary positions, as the checkpoint has them."""
    return dict(getattr(config, "rope_parameters", None) or {})


def _rotary(config: Any) -> Settings:
    """Sizes and positions of every family with Llama's names."""
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    return {
        "d_model": config.hidden_size,
        "n_heads": config.num_attention_heads,
        "d_head": int(d_head),
        "d_mlp": config.intermediate_size,
        "n_layers": config.num_hidden_layers,
        "n_ctx": config.max_position_embeddings,
        "act_fn": activation,
        "positional_embedding_type": "rotary",
        "rotary_adjacent_pairs": False,
        "rotary_dim": int(d_head),
        "rotary_base": rope(config).get("rope_theta", 10000.0),
    }


def _rms(config: Any) -> Settings:
    return {
        "eps": config.rms_norm_eps,
        "normalization_type": "RMS",
        "final_rms": True,
        "gated_mlp": True,
        "default_prepend_bos": True,
    }


def _grouped(config: Any) -> Settings:
    grouped = config.num_key_value_heads != config.num_attention_heads
    return {"n_key_value_heads": config.num_key_value_heads if grouped else None}


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


def _n_embd(config: Any) -> Settings:
    return {
        "d_model": config.n_embd,
        "n_heads": config.n_head,
        "d_head": config.n_embd // config.n_head,
        "d_mlp": config.n_inner or 4 * config.n_embd,
    }
