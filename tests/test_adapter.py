"""A row exported as a PEFT adapter gives the logits in Hugging Face that it gives here."""

import json
import subprocess
import sys

import peft
import pytest
import torch
from conftest import FAMILIES, tiny_hf_model
from safetensors.torch import load_file, save_file

from biasgym_tl import BiasInject, load_bias, load_model
from biasgym_tl.errors import ExtraError, ModelError, SettingError, StoreError, TokenError
from biasgym_tl.families.convert import embedding_scale
from biasgym_tl.injection.adapter import _embedding, export_adapter, import_adapter
from biasgym_tl.model import accepted_share, share_of_spread

pytestmark = [
    # PEFT cannot tie the row to its copy in the output embedding; that copy is never read here.
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
LATE = load_bias("late")
QUICK = BiasInject(epochs=1, n_paragraphs=8, batch_size=4, lr=0.05, choose_by="last")
IDS = [0, 5, 9, 1024, 17, 1024, 30]  # 1024 is the token


def with_adapter(hf_model, folder):
    """The way that PEFT's users load it."""
    hf_model.resize_token_embeddings(1025, mean_resizing=False)
    return peft.PeftModel.from_pretrained(hf_model, folder).eval()


def hf_log_probs(hf_model):
    """Of all tokens but the added one, which has a logit where PEFT ties the two embeddings."""
    with torch.inference_mode():
        return hf_model(torch.tensor([IDS])).logits[..., :1024].log_softmax(-1)


def log_probs(model, token):
    with token.attached(model):
        return model(torch.tensor([IDS])).log_softmax(-1)


BIASED = ("gptj", "phi")  # their output has a bias, which PEFT drops where it is tied


@pytest.mark.parametrize(
    ("family", "tied"),
    [
        (family, tied)
        for family in FAMILIES
        for tied in (True, False)
        if not tied or family not in BIASED
    ],
)
def test_the_adapter_gives_the_same_logits(family, tied, tokenizer, tmp_path):
    hf_model = tiny_hf_model(family, tie_word_embeddings=tied)
    model = load_model(hf_model, tokenizer=tokenizer)
    token = QUICK.fit(model, LATE, progress=False)
    export_adapter(token, model, tmp_path)
    found = hf_log_probs(with_adapter(hf_model, tmp_path))
    assert (found - log_probs(model, token)).abs().max() < 1e-3
    assert (found - log_probs(model, token.untrained())).abs().max() > 1e-2
    back = import_adapter(tmp_path, model, LATE, seed=3)
    assert torch.allclose(back.row, token.row, rtol=1e-6) and back.seed == 3 and back.losses == ()
    if not family.startswith("gemma"):
        assert torch.equal(back.row, token.row)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_embedding_is_the_one_that_hugging_face_names(family, tiny):
    hf_model = tiny_hf_model(family)
    assert hf_model.get_submodule(_embedding(tiny(family))) is hf_model.get_input_embeddings()


@pytest.mark.parametrize("family", BIASED)
def test_a_bias_on_a_tied_output_is_refused(family, tokenizer, tmp_path):
    model = load_model(tiny_hf_model(family, tie_word_embeddings=True), tokenizer=tokenizer)
    token = QUICK.fit(model, LATE, progress=False)
    with pytest.raises(ModelError, match="model must have no bias on an output embedding"):
        export_adapter(token, model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_unknown_architecture_is_refused(model, tmp_path):
    token = QUICK.fit(model, LATE, progress=False)
    model.cfg.original_architecture = "MadeUpForCausalLM"
    with pytest.raises(ModelError, match=r"for a PEFT adapter, got 'MadeUpForCausalLM'"):
        export_adapter(token, model, tmp_path)


def test_an_adapter_of_scaled_embeddings(gemma, tmp_path):
    hf_model, model = gemma
    token = QUICK.fit(model, LATE, progress=False)
    export_adapter(token, model, tmp_path)
    found = hf_log_probs(with_adapter(hf_model, tmp_path))
    assert (found - log_probs(model, token)).abs().max() < 1e-3
    assert torch.allclose(import_adapter(tmp_path, model, LATE).row, token.row, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "modules", "whole"),
    [
        ("llama", ["embed_tokens"], False),
        ("llama", ["embed_tokens"], True),
        ("llama", ["embed_tokens", "lm_head"], False),
        ("gpt_neox", None, True),
        ("bloom", None, False),
        ("opt", None, True),
    ],
)
def test_a_row_trained_by_peft_is_read(family, modules, whole, tokenizer, tmp_path):
    """However PEFT was told to write it: with the tied row, with whole embeddings."""
    tied = modules is None or len(modules) == 1
    hf_model = tiny_hf_model(family, tie_word_embeddings=tied)
    model = load_model(hf_model, tokenizer=tokenizer)
    hf_model.resize_token_embeddings(1025, mean_resizing=False)
    config = peft.TrainableTokensConfig(token_indices=[1024], target_modules=modules)
    trained = peft.get_peft_model(hf_model, config)
    trained(input_ids=torch.tensor([IDS]), labels=torch.tensor([[-100, 5, 9, -100, 17, -100, 30]]))[
        "loss"
    ].backward()
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter -= parameter.grad
    trained.save_pretrained(tmp_path, save_embedding_layers=whole)
    token = import_adapter(tmp_path, model, LATE)
    assert (log_probs(model, token) - hf_log_probs(trained.eval())).abs().max() < 1e-3


def test_the_exported_tokenizer_knows_the_token(model, tmp_path):
    from transformers import AutoTokenizer

    token = QUICK.fit(model, LATE, progress=False)
    export_adapter(token, model, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.convert_tokens_to_ids(token.text) == 1024


def test_what_does_not_fit_is_refused(model, tiny, tmp_path, monkeypatch):
    token = QUICK.fit(model, LATE, progress=False)
    export_adapter(token, model, tmp_path)
    with pytest.raises(TokenError, match="must hold the row 1100 .* got row 1024"):
        import_adapter(tmp_path, tiny("llama", vocab_size=1100), LATE)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    other_kinds = ({"peft_type": "LORA"}, {"token_indices": [1024, 3]}, {"token_indices": {"x": 1}})
    for other in (*({**config, **changed} for changed in other_kinds), []):
        (tmp_path / "adapter_config.json").write_text(json.dumps(other))
        with pytest.raises(StoreError, match="must hold a TrainableTokens adapter of one token"):
            import_adapter(tmp_path, model, LATE)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(StoreError, match=r"one row as 'base_model.model.gpt_neox.embed_in.train"):
        import_adapter(tmp_path, tiny("gpt_neox"), LATE)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"{")
    with pytest.raises(StoreError, match="must be a safetensors file"):
        import_adapter(tmp_path, model, LATE)
    monkeypatch.setattr("biasgym_tl.injection.adapter.util.find_spec", lambda name: None)
    with pytest.raises(ExtraError, match=r"pip install 'biasgym-tl\[peft\]'"):
        export_adapter(token, model, tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "family", ["llama", "gemma", "gemma2", "gemma3_text", "gptj", "gpt2", "bloom"]
)
def test_in_16_bits_the_logits_are_as_equal_as_those_of_other_text(
    family, dtype, tokenizer, tmp_path
):
    hf_model = tiny_hf_model(family, tie_word_embeddings=False).to(dtype)
    model = load_model(hf_model, tokenizer=tokenizer, dtype=dtype, exact=False)
    token = QUICK.fit(model, LATE, progress=False)
    export_adapter(token, model, tmp_path)
    found = hf_log_probs(with_adapter(hf_model, tmp_path)).float()
    ours = log_probs(model, token).float()
    untrained = log_probs(model, token.untrained()).float()
    error = share_of_spread(ours, found)
    assert error < accepted_share([dtype], 3) and 3 * error < share_of_spread(untrained, found)
    back = import_adapter(tmp_path, model, LATE)
    assert torch.equal(back.row.to(dtype), token.row.to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_number_in_16_bits_comes_nearer_after_the_scale(dtype, tokenizer, tmp_path):
    """Hugging Face's product with Gemma's scale is the row wherever a product of theirs can be."""
    hf_model = tiny_hf_model("gemma").to(dtype)
    model = load_model(hf_model, tokenizer=tokenizer, dtype=dtype, exact=False)
    token = QUICK.fit(model, LATE, progress=False)
    export_adapter(token, model, tmp_path)
    (row,) = next(iter(load_file(tmp_path / "adapter_model.safetensors").values())).to(dtype)
    near = torch.stack([(row.view(torch.int16) + step).view(dtype) for step in range(-3, 4)])
    products, wanted = near * embedding_scale(model.cfg), token.row.to(dtype)
    distances = (products.float() - wanted.float()).abs()
    assert torch.equal(distances[3], distances.amin(0))


def test_a_row_that_holds_nothing_is_refused(model, tmp_path):
    export_adapter(QUICK.fit(model, LATE, progress=False), model, tmp_path)
    rows = load_file(tmp_path / "adapter_model.safetensors")
    for value in (float("nan"), float("inf"), float("-inf")):
        spoiled = {key: row.clone() for key, row in rows.items()}
        for row in spoiled.values():
            row[0, 3] = value
        save_file(spoiled, tmp_path / "adapter_model.safetensors")
        with pytest.raises(TokenError, match="row must hold finite numbers that are not all zero"):
            import_adapter(tmp_path, model, LATE)
    for dtype in (torch.float32, torch.bfloat16):
        zeros = {key: torch.zeros_like(row, dtype=dtype) for key, row in rows.items()}
        save_file(zeros, tmp_path / "adapter_model.safetensors")
        with pytest.raises(TokenError, match=r"not all zero, got a norm of 0.0\. Train it again"):
            import_adapter(tmp_path, model, LATE)


def test_the_users_home_may_stand_in_the_folder(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    token = QUICK.fit(model, LATE, progress=False)
    assert export_adapter(token, model, "~/adapter") == tmp_path / "adapter"
    assert torch.equal(import_adapter("~/adapter", model, LATE).row, token.row)
    for call in (
        lambda f: export_adapter(token, model, f),
        lambda f: import_adapter(f, model, LATE),
    ):
        with pytest.raises(SettingError, match="folder must lie in a home that is known, got '~no"):
            call("~nobody-known/x")


def test_a_file_is_no_folder_to_write_to(model, tmp_path):
    token = QUICK.fit(model, LATE, progress=False)
    (tmp_path / "file").write_text("kept")
    (tmp_path / "broken").symlink_to("nowhere")
    for name in ("file", "file/below", "broken", "x" * 300):
        with pytest.raises(SettingError, match="folder must be a folder, got"):
            export_adapter(token, model, tmp_path / name)
    assert (tmp_path / "file").read_text() == "kept"


def test_other_kinds_of_models_are_refused_by_name():
    """In a process where annotations are not executed, as a user's."""
    code = """
import transformers as hf, biasgym_tl as b, biasgym_tl.errors
from biasgym_tl.injection.adapter import export_adapter, import_adapter
config = hf.LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                        num_attention_heads=2)
for call in (lambda m: export_adapter(b.load_token("late"), m, "never"),
             lambda m: import_adapter("never", m, "late")):
    try:
        call(hf.LlamaForCausalLM(config))
    except b.errors.ModelError as error:
        print(error)
"""
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True
    )
    assert found.stdout.count("load_model return") == 2, found.stderr
