"""A bias for every output projection, which carries what heads are replaced with."""

from __future__ import annotations

from typing import Any

import torch

from biasgym_tl.errors import SteeringError
from biasgym_tl.families.convert import FAMILIES

_LIKE_LLAMA = ("qwen2", "mistral")
"""Types that compute what Llama does with ``attention_bias``, where no window is reached."""
_OF_TYPE = ("model_type", "architectures", "transformers_version", "attention_bias")


def with_output_biases(hf_model: Any) -> Any:
    """A model whose output projections have biases; new ones are zero.

    Args:
        hf_model: Is changed, or gives its weights to the one that is returned.

    Raises:
        SteeringError: its type can have none, and no other type computes the same.
    """
    config = hf_model.config
    name = FAMILIES[config.model_type].output
    if hf_model.get_submodule(name.format(0)).bias is not None:
        return hf_model
    if config.model_type in _LIKE_LLAMA:
        return _as_llama(hf_model)
    if not hasattr(config, "attention_bias"):
        raise _refused(config.model_type, "its output projection can carry no bias")
    config.attention_bias = True
    for layer in range(config.num_hidden_layers):
        attention = hf_model.get_submodule(name.format(layer).rpartition(".")[0])
        for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
            module = attention.get_submodule(projection)
            module.bias = torch.nn.Parameter(module.weight.new_zeros(module.weight.shape[0]))
    return hf_model


def _as_llama(hf_model: Any) -> Any:
    """A Llama with the same weights, which are not copied; biases that it has beside are zero."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = hf_model.config
    window = config.sliding_window
    if window is not None and window < config.max_position_embeddings:
        raise _refused(
            config.model_type,
            f"its output projection can carry no bias, and Llama, which can, has no window of "
            f"{window} tokens",
        )
    known = set(LlamaConfig().to_dict()) - set(_OF_TYPE)
    same = {key: value for key, value in config.to_dict().items() if key in known}
    with torch.device("meta"):
        found: Any = LlamaForCausalLM(LlamaConfig(**same, attention_bias=True))
    weights = hf_model.state_dict()
    some = next(iter(weights.values()))
    new = {
        key: some.new_zeros(value.shape)
        for key, value in found.state_dict().items()
        if key not in weights and key.endswith(".bias")
    }
    found.load_state_dict({**weights, **new}, assign=True)
    found.tie_weights()
    found.model.rotary_emb = type(found.model.rotary_emb)(found.config)  # not of the checkpoint
    found.generation_config = hf_model.generation_config
    return found.eval()


def _refused(kind: str, why: str) -> SteeringError:
    return SteeringError(
        f"mode must be 'zero' or 'scale' to export a {kind} model, got a mean: {why}. An edit "
        "file carries it (make_edit)."
    )
