"""An edit is the steering itself, on every copy of its model, with TransformerLens or without."""

import copy
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as hf
from command import biasgym
from conftest import FAMILIES, tiny_hf_model

import biasgym_tl
from biasgym_tl import (
    Head,
    Selection,
    export_steered,
    layer_matched,
    load_model,
    standard_conditions,
    steer,
)
from biasgym_tl.edits import Edit, Layer, layer_fingerprint
from biasgym_tl.errors import ModelError, SteeringError, StoreError
from biasgym_tl.evaluation.condition import Condition
from biasgym_tl.evaluation.report import Report
from biasgym_tl.hooks import head_means
from biasgym_tl.lens import layer_matrices
from biasgym_tl.steering.edit import make_edit

HEADS = (Head(0, 3), Head(2, 1), Head(2, 2))
FACTORS = {Head(0, 3): 0.25, Head(2, 1): 1.5, Head(2, 2): 0.0}
TOKENS = torch.randint(2, 1000, (2, 17), generator=torch.Generator().manual_seed(4))


@torch.inference_mode()
def log_probs(model):
    found = model(TOKENS, attention_mask=torch.ones_like(TOKENS))
    return getattr(found, "logits", found).log_softmax(-1)


@pytest.mark.parametrize("mode", ["zero", "scale", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_on_all_copies_of_a_model(family, mode, tokenizer, tmp_path):
    hf_model, factor = tiny_hf_model(family), None if mode == "zero" else FACTORS
    model = load_model(hf_model, tokenizer=tokenizer)
    edit = make_edit(model, HEADS, mode, factor=factor)
    found = Edit.load(edit.save(tmp_path / "edit"))
    with steer(model, HEADS, mode, factor=factor):
        expected = log_probs(model)
    with steer(model, found):
        assert torch.equal(log_probs(model), expected)
    plain = log_probs(hf_model)
    with found.attached(hf_model):
        assert (log_probs(hf_model) - expected).abs().max() < 1e-4
    assert torch.equal(log_probs(hf_model), plain)
    assert (plain - expected).abs().max() > 1e-2


def test_it_is_small_and_says_what_it_is(model, tmp_path):
    edit = make_edit(model, "L1H2", judged={"facts": {"change": -0.1}})
    path = edit.save(tmp_path / "edit.safetensors")
    assert path.stat().st_size < 4000 and Edit.load(path).judged == {"facts": {"change": -0.1}}
    assert edit.factor.tolist() == [0.0] and not edit.shift.any() and list(edit) == [Head(1, 2)]
    assert "1 heads of" in repr(edit) and "L1H2" in edit._repr_html_()


def test_generation_on_a_model_of_transformers(tokenizer, tmp_path):
    hf_model = tiny_hf_model("llama")
    hf_model.generation_config = hf.GenerationConfig(max_new_tokens=8, do_sample=False)
    model = load_model(hf_model, tokenizer=tokenizer)
    edit = make_edit(model, HEADS, "mean")
    folder = tmp_path / "whole"
    hf_model.save_pretrained(tmp_path / "source")
    tokenizer.save_pretrained(tmp_path / "source")
    exported = load_model(
        export_steered(load_model(tmp_path / "source"), edit, folder, source=tmp_path / "source")
    )
    wanted = exported.generate(TOKENS[:1], max_new_tokens=8, do_sample=False, verbose=False)
    with edit.attached(hf_model):
        written = hf_model.generate(TOKENS[:1], attention_mask=torch.ones_like(TOKENS[:1]))
    assert torch.equal(written, wanted[:, : written.shape[1]])


def test_what_a_search_chose_comes_with_it(model):
    chosen = Selection(
        heads=HEADS, method="learned", token="no injection", k=3, mode="mean", reference="text",
        model=model.cfg.model_name, bias="late", data={}, settings={}, versions={},
        factors=(0.5, 0.2, 0.1), after=("Peru", "Japan"),
    )  # fmt: skip
    edit = make_edit(model, chosen)
    assert edit.after == ("Peru", "Japan") and edit.chosen["bias"] == "late"
    with steer(model, chosen):
        expected = log_probs(model)
    with steer(model, edit):
        assert torch.equal(log_probs(model), expected)
    with pytest.raises(SteeringError, match="acts after 2 names"), edit.attached(None):
        pass


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_a_copy_in_16_bits(tokenizer, dtype):
    hf_model = tiny_hf_model("llama")
    edit = make_edit(load_model(hf_model, tokenizer=tokenizer), HEADS, "mean", factor=FACTORS)
    short = copy.deepcopy(hf_model).to(dtype)
    model = load_model(short, tokenizer=tokenizer, dtype=dtype)
    with steer(model, edit):
        expected = log_probs(model).float()
    with edit.attached(short):
        found = log_probs(short).float()
    plain = log_probs(short).float()
    assert (found - expected).abs().mean() < 0.1 * (plain - expected).abs().mean()


def test_a_model_that_does_not_call_its_hooks_is_refused():
    """One that was compiled before, or that multiplies in slices of its own."""
    hf_model = tiny_hf_model("llama")
    edit = make_edit(load_model(hf_model), HEADS)
    for mark in ("_orig_mod", "_compiled_call_impl"):  # of torch.compile, and of model.compile()
        compiled = copy.deepcopy(hf_model)
        compiled.__dict__[mark] = hf_model
        with pytest.raises(ModelError, match="must not be compiled"), edit.attached(compiled):
            pass
    bloom = tiny_hf_model("bloom")
    edit = make_edit(load_model(bloom), HEADS)
    for block in bloom.transformer.h:
        block.self_attention.pretraining_tp, block.self_attention.slow_but_exact = 2, True
    with pytest.raises(ModelError, match=r"does so in \[\] alone"), edit.attached(bloom):
        pass


def test_another_model_is_refused(model):
    hf_model = tiny_hf_model("llama")
    edit = make_edit(load_model(hf_model), HEADS)
    other = tiny_hf_model("llama")
    with torch.no_grad():
        other.model.layers[1].self_attn.q_proj.weight[3, 5] += 1e-4
    for wrong, message in (
        (other, "must be the one that the edit is of, .*got other weights in 1 of them"),
        (tiny_hf_model("llama", num_hidden_layers=2), "got 2 layers"),
        (hf.AutoModel.from_config(hf.T5Config(
            d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=32)),
         "must be one of transformers of the types bloom.*got t5"),
        (model, "On what load_model returns use steer"),
        (hf_model.model, "must be a whole language model"),
        (tiny_hf_model("llama").to("meta"), "must hold its weights as plain matrices"),
    ):  # fmt: skip
        with pytest.raises(ModelError, match=message), edit.attached(wrong):
            pass
    with pytest.raises(ModelError, match="in 1 of them"), steer(load_model(other), edit):
        pass


def test_wrong_arguments_beside_an_edit(model):
    edit = make_edit(model, HEADS)
    for wrong in ({"mode": "zero"}, {"factor": 0.5}, {"reference": head_means(model)}):
        refused = pytest.raises(SteeringError, match="must be left out beside an Edit")
        with refused, steer(model, edit, **wrong):
            pass
    for takes in (
        lambda: Condition("steered", None, edit, "zero"),
        lambda: standard_conditions(None, edit),
        lambda: layer_matched(edit, n_heads=4, n_draws=1, seed=0),
        lambda: make_edit(model, edit),
    ):
        with pytest.raises(SteeringError, match="got an Edit, which holds more than heads"):
            takes()
    with pytest.raises(SteeringError, match="must be at least one, got none"):
        make_edit(model, [])
    for wrong, message in (
        ({"heads": HEADS[:2]}, "must have a factor and a shift for each"),
        ({"heads": (Head(0, 3), Head(0, 3), Head(1, 1))}, "2 differ"),
        ({"heads": (Head(0, 3), Head(2, 1), Head(9, 1))}, "must be in its 3 layers of 4"),
        ({"factor": torch.tensor([0.0, 0.0, float("nan")])}, "got NaN or inf"),
    ):
        with pytest.raises(SteeringError, match=message):
            dataclasses.replace(edit, **wrong)


def test_the_fingerprint_of_a_layer(tiny):
    """The same for 16 bits as for the same numbers in 32, and however matrices are cut."""
    model = tiny()
    matrices, output = layer_matrices(model)[1]
    known = layer_fingerprint(Layer(matrices, output), 4)
    cut = [part for m in matrices for part in m.T.split(3)]
    assert known == layer_fingerprint(Layer(cut, output), 4)
    assert known != layer_fingerprint(Layer(cut, output.flip(0)), 4), "heads in another order"
    short = [m.bfloat16() for m in matrices]
    rounded = layer_fingerprint(Layer(short, output.bfloat16()), 4)
    long = layer_fingerprint(Layer([m.float() for m in short], output.bfloat16().float()), 4)
    assert rounded == long != known


def test_a_file_that_was_changed_is_refused(model, tmp_path):
    path = make_edit(model, HEADS).save(tmp_path / "edit.safetensors")
    raw = path.read_bytes()
    path.write_bytes(raw[:-3] + b"abc")
    with pytest.raises(StoreError, match="must be as it was written"):
        Edit.load(path)


def test_it_needs_nothing_of_transformer_lens(tmp_path):
    """Also where that is not installed at all."""
    hf_model = tiny_hf_model("llama")
    model = load_model(hf_model)
    with steer(model, HEADS):
        expected = log_probs(model)
    make_edit(model, HEADS).save(tmp_path / "edit.safetensors")
    hf_model.save_pretrained(tmp_path / "model")
    torch.save(TOKENS, tmp_path / "tokens.pt")
    code = """
import sys
sys.modules["transformer_lens"] = None
import torch
from transformers import AutoModelForCausalLM
from biasgym_tl.edits import Edit
model = AutoModelForCausalLM.from_pretrained("model").eval()
with torch.inference_mode(), Edit.load("edit.safetensors").attached(model):
    print(model(torch.load("tokens.pt")).logits.log_softmax(-1).abs().sum().item())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(biasgym_tl.__file__).parent.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(expected.abs().sum().item(), rel=1e-5)


def test_from_the_command_line(tiny_folder, tmp_path):
    out = tmp_path / "edit.safetensors"
    command = ["export", out, "--edit", "--model", tiny_folder, "--heads", "L1H2,L0H0"]
    done = biasgym(*command)
    assert done.returncode == 0, done.stderr
    assert "Edit(2 heads of" in done.stdout and Edit.load(out).heads == (Head(0, 0), Head(1, 2))
    report = tmp_path / "evaluated"
    toml = tmp_path / "few.toml"
    toml.write_text(FEW)
    done = biasgym("run", toml, "--model", tiny_folder, "--out", report)
    assert done.returncode == 0, done.stderr
    done = biasgym(*command, "--report", report / "report.json")
    assert done.returncode == 0, done.stderr
    judged = Edit.load(out).judged
    assert {"target_log_odds", "facts", "damage_loss"} <= judged.keys()
    assert json.dumps(judged) and {"mean", "change_low"} <= judged["target_log_odds"].keys()
    found, other = Report.load(report / "report.json"), tmp_path / "other.json"
    dataclasses.replace(found, model="another").save(other)
    for wrong, message in (
        (["--report", "gone.json", "--edit"], "must exist"),
        (["--report", report / "report.json"], "--report must be given with --edit"),
        (["--edit", "--mode", "mean", "--report", report / "report.json"],
         "must have a condition that steers these 2 heads in mode 'mean' in the same way, got"),
        (["--edit", "--report", other],
         "report must be of {'model'"),
    ):  # fmt: skip
        at = tmp_path / ("new" if "--edit" not in wrong else "new.safetensors")
        done = biasgym("export", at, "--model", tiny_folder, "--heads", "L1H2,L0H0", *wrong)
        assert done.returncode == 1 and message in done.stderr, done.stderr


FEW = """
biases = ["late"]
[training]
rows = "none"
[choices]
steered = { by = "given", heads = "L1H2,L0H0" }
[[conditions]]
choice = "steered"
mode = "zero"
[measures]
n_targets = 2
n_facts = 12
answers = false
implicit = false
"""
