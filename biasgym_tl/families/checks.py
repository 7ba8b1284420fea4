"""What HookedTransformer would compute differently is refused before any weights are read."""

from __future__ import annotations

from typing import Any

from biasgym_tl.errors import ModelError
from biasgym_tl.families.settings import rope


def llama(config: Any) -> None:
    _positions(config, ("default", "llama3"))
    _must_be(config, "mlp_bias", False, "HookedTransformer has no bias on the gate of an MLP")


def default_positions(config: Any) -> None:
    """For families whose only variant is in their positions."""
    _positions(config, ("default",))


def gemma(config: Any) -> None:
    default_positions(config)
    _must_be(config, "use_bidirectional_attention", False, "HookedTransformer is causal")


def gemma3(config: Any) -> None:
    found = rope(config)
    for layers, allowed in (
        ("full_attention", ("default", "linear")),
        ("sliding_attention", ("default",)),
    ):
        _require_kind(config, found[layers].get("rope_type", "default"), allowed)
    _must_be(config, "use_bidirectional_attention", False, "HookedTransformer is causal")


def olmo2(config: Any) -> None:
    default_positions(config)
    if config.num_key_value_heads != config.num_attention_heads:
        raise ModelError(
            f"num_key_value_heads must be {config.num_attention_heads} for an olmo2 model, got "
            f"{config.num_key_value_heads}: TransformerLens converts no grouped heads there."
        )


def gpt2(config: Any) -> None:
    _must_be(config, "add_cross_attention", False, "HookedTransformer has no cross-attention")


def gpt_neox(config: Any) -> None:
    _positions(config, ("default",))
    _must_be(config, "attention_bias", True, "TransformerLens reads these biases")


def phi(config: Any) -> None:
    _positions(config, ("default",))
    _must_be(config, "qk_layernorm", False, "norms of queries and keys are not converted")


def opt(config: Any) -> None:
    _must_be(config, "do_layer_norm_before", True, "norms after the MLP are not converted")
    _must_be(config, "enable_bias", True, "TransformerLens reads these biases")
    _must_be(config, "layer_norm_elementwise_affine", True, "TransformerLens reads these weights")
    if config.word_embed_proj_dim != config.hidden_size:
        raise ModelError(
            f"word_embed_proj_dim must be {config.hidden_size} (hidden_size) for an opt model, got "
            f"{config.word_embed_proj_dim}: HookedTransformer has no projection of embeddings."
        )


def bloom(config: Any) -> None:
    reason = "HookedTransformer adds to the residual stream itself"
    _must_be(config, "apply_residual_connection_post_layernorm", False, reason)


def nothing(config: Any) -> None:
    """For families without a variant that would be computed differently."""


def _positions(config: Any, allowed: tuple[str, ...]) -> None:
    _require_kind(config, rope(config).get("rope_type", "default"), allowed)


def _require_kind(config: Any, kind: str, allowed: tuple[str, ...]) -> None:
    if kind not in allowed:
        raise ModelError(
            f"rope_type must be one of {list(allowed)} for a {config.model_type} model, "
            f"got {kind!r}. HookedTransformer would compute other positions."
        )


def _must_be(config: Any, field: str, wanted: bool, reason: str) -> None:
    if bool(getattr(config, field, wanted)) != wanted:
        raise ModelError(
            f"{field} must be {wanted} for a {config.model_type} model, got {not wanted}: {reason}."
        )
