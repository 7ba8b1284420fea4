"""A row exported as a PEFT adapter gives the logits in Hugging Face that it gives here."""

import json

import peft
import pytest
import torch
from conftest import FAMILIES, tiny_hf_model

from biasgym_tl import BiasInject, export_adapter, import_adapter, load_bias, load_model
from biasgym_tl.errors import ExtraError, ModelError, StoreError, TokenError
from biasgym_tl.injection.adapter import _embedding

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
