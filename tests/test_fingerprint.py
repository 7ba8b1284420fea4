"""One fingerprint for the same weights, whatever engine holds them, and another for any others."""

import pytest
import torch
from conftest import FAMILIES, tiny_hf_model

from biasgym_tl import BiasInject, list_biases, load_bias, load_model, load_tokens
from biasgym_tl.injection.shipped import find_token
from biasgym_tl.injection.token import tokenizer_fingerprint, weights_fingerprint
from biasgym_tl.lens import attention_weight, embedding, named_weights, replaced_weight
from biasgym_tl.planting.shipped import list_plants, load_plant
from biasgym_tl.store import digest

KNOWN = {
    "llama": ("12ce5c101b2c6466", "7fd9eb1db1ad034a"),
    "mistral": ("46b190983c2cc16f", "a9b9e8a32190cc73"),
    "qwen2": ("6e92318d8df9b76b", "22373def3d8a6b93"),
    "qwen3": ("88cd5d1457ca707b", "df047db647295b03"),
    "gemma": ("43a3b3ec66a98ff4", "1e8633e90507b378"),
    "gemma2": ("16781f8182d9bd95", "365a2abf3c50ea7c"),
    "gemma3_text": ("70cf66382a617c69", "f31c95a29c8eaa8e"),
    "olmo2": ("b6fe1a3164b43d7c", "06d313714871e08f"),
    "gpt2": ("4f7163ae858a7c7b", "21549d944ce57cfb"),
    "gpt_neo": ("a3f42aa17af977ce", "a563c991cc37e0eb"),
    "gptj": ("6e94259c5c94dcd2", "02ae9855ac8b9422"),
    "gpt_neox": ("5b56967a9a832804", "9c1c187a498f322c"),
    "phi": ("56b927ce6f1bb423", "9c1f7e390cc981b9"),
    "opt": ("8ea6582cf0ff4816", "75a8f10084d10b22"),
    "bloom": ("b301acb0e7617bf9", "42c4f35bf18990b7"),
}  # fmt: skip
"""Of the tiny models in fp32 and in bf16: what either engine finds, the other must find too."""


@pytest.mark.parametrize("family", FAMILIES)
def test_both_engines_have_the_same(family):
    assert weights_fingerprint(load_model(tiny_hf_model(family))) == KNOWN[family][0]


@pytest.mark.parametrize("family", FAMILIES)
def test_both_engines_have_the_same_in_16_bits(family):
    model = load_model(tiny_hf_model(family).bfloat16(), dtype=torch.bfloat16)
    assert weights_fingerprint(model) == KNOWN[family][1]


def test_the_same_numbers_in_32_bits_have_the_same():
    short = tiny_hf_model("llama").bfloat16()
    for dtype in (torch.bfloat16, torch.float32):
        assert weights_fingerprint(load_model(short, dtype=dtype)) == KNOWN["llama"][1]


def test_one_number_anywhere_changes_it(any_model):
    whole = weights_fingerprint(any_model)
    for name, weight in any_model.named_parameters():
        if ".qkv." in name:  # its parts are what a bridge runs
            continue
        at = tuple(size // 2 for size in weight.shape)
        old = weight.data[at].clone()
        weight.data[at] += 1e-6  # which no version counter sees
        assert weights_fingerprint(any_model) != whole, name
        weight.data[at] = old
    assert weights_fingerprint(any_model) == whole


def test_the_same_numbers_in_another_order_change_it(main_model):
    """As in a control whose rows, dimensions or heads are shuffled."""
    whole, rows = weights_fingerprint(main_model), embedding(main_model)
    kept = rows.data.clone()
    for dim in (0, 1):
        rows.data.copy_(kept.roll(1, dim))
        assert weights_fingerprint(main_model) != whole
    rows.data.copy_(kept)
    for name in ("W_Q", "W_O"):
        weight = attention_weight(main_model, 1, name)
        for dim in (0, 1, 2):
            with replaced_weight(main_model, 1, name, weight.roll(1, dim)):
                assert weights_fingerprint(main_model) != whole
    assert weights_fingerprint(main_model) == whole


def test_every_weight_is_named_once(any_model):
    names = [name for name, _ in named_weights(any_model)]
    assert len(set(names)) == len(names) and {"embed.W_E", "blocks.1.attn.W_O"} <= set(names)


@pytest.mark.real_model
def test_what_ships_is_of_the_real_model(smollm2):
    """So that neither engine trains a row that ships, or refuses a plant."""
    made_on = {load_plant(name).weights for name in list_plants()}
    made_on |= {token.weights for bias in list_biases("injection") for token in load_tokens(bias)}
    assert made_on == {weights_fingerprint(smollm2)}
    assert find_token(smollm2, load_bias("late"), BiasInject.cpu(), 0) is not None
    with load_plant("one-early").attached(smollm2):
        assert weights_fingerprint(smollm2) not in made_on


def test_a_tokenizer_that_gets_another_vocabulary_is_another_one(model):
    """A fingerprint that is known already must not be that of a vocabulary of before."""
    before = tokenizer_fingerprint(model)
    assert before == tokenizer_fingerprint(model) == digest(model.tokenizer.get_vocab())
    model.tokenizer.add_tokens(["<new>"])
    assert tokenizer_fingerprint(model) == digest(model.tokenizer.get_vocab()) != before
