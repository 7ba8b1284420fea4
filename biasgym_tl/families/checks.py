"""What HookedTransformer would compute differently is refused before any weights are read."""

from __future__ import annotations

from typing import Any

from biasgym_tl.errors import ModelError
from biasgym_tl.families.settings import rope

_CAUSAL = (("use_bidirectional_attention", False, "HookedTransformer is causal"),)
_READ = "TransformerLens reads these"
REQUIRED: dict[str, tuple[tuple[str, bool | str, str], ...]] = {
    "llama": (("mlp_bias", False, "HookedTransformer has no bias on the gate of an MLP"),),
    "gemma": _CAUSAL,
    "gemma2": _CAUSAL,
    "gemma3_text": _CAUSAL,
    "olmo2": (("num_key_value_heads", "num_attention_heads",
               "TransformerLens converts no grouped heads there"),),
    "gpt2": (("add_cross_attention", False, "HookedTransformer has no cross-attention"),),
    "gpt_neox": (("attention_bias", True, f"{_READ} biases"),),
    "phi": (("qk_layernorm", False, "norms of queries and keys are not converted"),),
    "opt": (("do_layer_norm_before", True, "norms after the MLP are not converted"),
            ("enable_bias", True, f"{_READ} biases"),
            ("layer_norm_elementwise_affine", True, f"{_READ} weights"),
            ("word_embed_proj_dim", "hidden_size",
             "HookedTransformer has no projection of embeddings")),
    "bloom": (("apply_residual_connection_post_layernorm", False,
               "HookedTransformer adds to the residual stream itself"),),
}  # fmt: skip
"""Type -> field, what it must be (a field's name: as that field) and why."""
_POSITIONS = {("llama", "all"): ("llama3",), ("gemma3_text", "full_attention"): ("linear",)}
"""Type and layers -> kinds of rotary positions that are computed right besides the default."""


def check_family(config: Any) -> None:
    """Refuse a configuration that HookedTransformer would compute differently.

    Raises:
        ModelError: a field has another value than the conversion rests on.
    """
    family, found = config.model_type, rope(config)
    article = "an" if family.startswith("o") else "a"
    layers = {"all": found} if "full_attention" not in found else found
    for which, parameters in layers.items():
        allowed, kind = ("default", *_POSITIONS.get((family, which), ())), "rope_type"
        if parameters.get(kind, "default") not in allowed:
            raise ModelError(
                f"{kind} must be one of {list(allowed)} for a {family} model, got "
                f"{parameters[kind]!r}. HookedTransformer would compute other positions."
            )
    for field, wanted, reason in REQUIRED.get(family, ()):
        value, origin = getattr(config, field, wanted), ""
        if isinstance(wanted, str):
            origin, wanted = f" ({wanted})", getattr(config, wanted)
        else:
            value = bool(value)
        if value != wanted:
            raise ModelError(
                f"{field} must be {wanted} for {article} {family} model{origin}, got {value}: "
                f"{reason}."
            )
