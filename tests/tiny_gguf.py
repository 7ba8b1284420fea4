"""A tiny model of transformers as a GGUF file that llama.cpp runs, in fp32.

Names are gguf's own map; what is turned, reordered or added to is what llama.cpp's
convert_hf_to_gguf.py, which is in no package, does for these types.
"""

import gguf
import torch
from gguf import GGUFWriter

ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma": "gemma",
    "gemma2": "gemma2", "gemma3_text": "gemma3", "olmo2": "olmo2", "gpt2": "gpt2",
    "gpt_neox": "gptneox", "phi": "phi2", "bloom": "bloom",
}  # fmt: skip
"""Of llama.cpp, by Hugging Face's ``model_type``. It runs no GPT-J ("unsupported model
architecture"), GPT-Neo or OPT."""


def write_gguf(hf_model, path):
    """Its words are numbered: a prompt is given as token ids, and a word of the tiny tokenizer that
    is a part of a letter would be written by llama.cpp once the letter is whole."""
    config = hf_model.config
    architecture = ARCHITECTURES[config.model_type]
    writer = GGUFWriter(path, architecture)
    _write_settings(writer, config)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"word{i} " for i in range(config.vocab_size)])
    writer.add_token_merges(["w o"])
    writer.add_eos_token_id(config.vocab_size - 1)
    kind = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    for name, weight in hf_model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        options = (names.get_name(n, (".weight", ".bias"))
                   for n in (name, name.removeprefix("transformer.")))  # fmt: skip
        known = next(filter(None, options))
        writer.add_tensor(known, _as_read(name, weight, config).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_settings(writer, config):
    def of(*names, default=None):
        found = (getattr(config, n) for n in names if getattr(config, n, None) is not None)
        return next(found, default)

    heads = config.num_attention_heads
    size = of("head_dim", default=config.hidden_size // heads)
    rope = of("rope_parameters", default={})
    if config.model_type == "gemma3_text":
        rope = rope["full_attention"]
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(of("max_position_embeddings", default=256))
    writer.add_embedding_length(config.hidden_size)
    inner = of("intermediate_size", "n_inner", default=4 * config.hidden_size)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(of("num_key_value_heads", default=heads))
    writer.add_key_length(size)
    writer.add_value_length(size)
    if epsilon := of("rms_norm_eps"):
        writer.add_layer_norm_rms_eps(epsilon)
    else:
        writer.add_layer_norm_eps(of("layer_norm_epsilon", "layer_norm_eps"))
    if rope:
        writer.add_rope_freq_base(rope["rope_theta"])
        writer.add_rope_dimension_count(int(size * rope.get("partial_rotary_factor", 1)))
    if config.model_type in ("gemma2", "gemma3_text"):
        writer.add_sliding_window(config.sliding_window)
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if config.model_type == "gpt_neox":
        writer.add_parallel_residual(config.use_parallel_residual)
    if config.model_type == "bloom":
        writer.add_max_alibi_bias(8)


def _as_read(name, weight, config):
    kind, heads = config.model_type, config.num_attention_heads
    if kind in ("llama", "mistral") and ("q_proj" in name or "k_proj" in name):
        n = heads if "q_proj" in name else config.num_key_value_heads  # pairs beside each other
        return weight.unflatten(0, (n, 2, -1)).transpose(1, 2).flatten(0, 2)
    if kind.startswith("gemma") and name.endswith("norm.weight"):
        return weight + 1
    if kind == "gpt2" and ".c_" in name and weight.ndim == 2:  # Conv1D
        return weight.T
    if "query_key_value" in name:  # of one head after the other
        return torch.cat(weight.unflatten(0, (heads, 3, -1)).unbind(1)).flatten(0, 1)
    return weight
