"""Scaled heads as a LoRA adapter: the logits of the hooked model, through peft."""

import json

import peft
import pytest
import torch
from command import biasgym
from conftest import FAMILIES, tiny_hf_model
from safetensors.torch import load_file

from biasgym_tl import Head, load_model, steer
from biasgym_tl.errors import ModelError, SteeringError, StoreError
from biasgym_tl.steering.edit import make_edit
from biasgym_tl.steering.lora import export_lora

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
FACTORS = {Head(0, 3): 0.25, Head(2, 1): 1.5, Head(2, 2): 0.0}
TOKENS = torch.randint(2, 1000, (2, 17), generator=torch.Generator().manual_seed(4))


@torch.inference_mode()
def log_probs(model):
    found = model(TOKENS, attention_mask=torch.ones_like(TOKENS))
    return getattr(found, "logits", found).log_softmax(-1)


@pytest.mark.parametrize("mode", ["zero", "scale"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_adapter_does_what_steering_does(family, mode, tokenizer, tmp_path):
    hf_model = tiny_hf_model(family)
    model = load_model(hf_model, tokenizer=tokenizer)
    factor = FACTORS if mode == "scale" else None
    edit = make_edit(model, list(FACTORS), mode, factor=factor)
    with steer(model, edit):
        expected = log_probs(model)
    plain = log_probs(hf_model)
    folder = export_lora(edit, model, tmp_path / "adapter")
    adapted = peft.PeftModel.from_pretrained(hf_model, folder).eval()
    assert (log_probs(adapted) - expected).abs().max() < 1e-4
    assert (plain - expected).abs().max() > 1e-2
    assert (log_probs(adapted.merge_and_unload()) - expected).abs().max() < 1e-4


def test_its_rank_is_that_of_the_heads(model, tmp_path):
    folder = export_lora(make_edit(model, list(FACTORS)), model, tmp_path / "adapter")
    names = {key.rsplit(".", 2)[0].split(".", 2)[2] for key in load_file(
        folder / "adapter_model.safetensors")}  # fmt: skip
    config = json.loads((folder / "adapter_config.json").read_text())
    assert names == set(config["target_modules"]) == set(config["rank_pattern"])
    assert sorted(config["rank_pattern"].values()) == [model.cfg.d_head, 2 * model.cfg.d_head]
    assert config["peft_type"] == "LORA" and config["bias"] == "none"


def test_what_an_adapter_cannot_carry_is_refused(model, tiny, tmp_path):
    with pytest.raises(SteeringError, match="got one that adds a mean. Use mode 'zero'"):
        export_lora(make_edit(model, "L1H1", "mean"), model, tmp_path / "new")
    with pytest.raises(ModelError, match="other weights in 3 of them"):
        export_lora(make_edit(tiny(seed=3), "L1H1"), model, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("")
    with pytest.raises(StoreError, match="folder must be new or empty"):
        export_lora(make_edit(model, "L1H1"), model, tmp_path / "full")


def test_the_command(tiny_folder, tmp_path):
    options = ["--model", tiny_folder, "--heads", "L0H3,L2H1", "--peft"]
    done = biasgym("export", tmp_path / "new", *options, "--mode", "scale", "--factor", 0.5)
    assert done.returncode == 0, done.stderr
    assert "2 heads of" in done.stdout and (tmp_path / "new" / "adapter_config.json").is_file()
    for wrong, message in (
        (["--mode", "mean"], "--mode must be zero or scale with --peft, got mean"),
        (["--edit"], "--edit must be given without --peft"),
    ):
        done = biasgym("export", tmp_path / "other", *options, *wrong)
        assert done.returncode == 1 and message in done.stderr, done.stderr
