"""A steered model as a folder: the same log-probabilities without any hook."""

import json
import os
from pathlib import Path

import pytest
import torch
from conftest import FAMILIES, tiny_hf_model

from biasgym_tl import Head, Selection, export_steered, head_means, load_model, steer
from biasgym_tl.added_row import added_row
from biasgym_tl.errors import ModelError, SteeringError

HEADS = (Head(0, 3), Head(2, 1), Head(2, 2))
TOKENS = torch.randint(2, 1000, (2, 17), generator=torch.Generator().manual_seed(4))
NO_OUTPUT_BIAS = ("mistral", "qwen2", "gptj")


def log_probs(model):
    with torch.inference_mode():
        return model(TOKENS, attention_mask=torch.ones_like(TOKENS)).log_softmax(-1)


@pytest.fixture
def source(tmp_path, tokenizer):
    def save(family, **overrides):
        folder = tmp_path / family
        tiny_hf_model(family, **overrides).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.mark.parametrize("family", FAMILIES)
def test_a_zeroed_head_is_exported_exactly(family, source, tmp_path):
    folder = source(family)
    model = load_model(folder)
    with steer(model, HEADS):
        expected = log_probs(model)
    exported = load_model(export_steered(model, HEADS, tmp_path / "steered", source=folder))
    assert (log_probs(exported) - expected).abs().max() < 1e-4
    assert (log_probs(model) - expected).abs().max() > 1e-2
    for layer, head in HEADS:
        assert exported.W_O[layer, head].abs().max() == 0


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in NO_OUTPUT_BIAS])
def test_means_and_factors_are_exported_through_the_output_bias(family, source, tmp_path):
    folder = source(family)
    model = load_model(folder)
    options = {
        "reference": head_means(model),
        "factor": {HEADS[0]: 0.0, HEADS[1]: 0.5, HEADS[2]: -0.3},
    }
    with steer(model, HEADS, "mean", **options):
        expected = log_probs(model)
    new = export_steered(model, HEADS, tmp_path / "steered", "mean", source=folder, **options)
    assert (log_probs(load_model(new)) - expected).abs().max() < 1e-4


def test_a_checkpoint_may_ask_for_a_repetition_penalty(source, tmp_path):
    folder = source("llama")
    settings = {"repetition_penalty": 1.5, "do_sample": True, "temperature": 0.7}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    model = load_model(folder)
    new = export_steered(model, HEADS, tmp_path / "steered", source=folder)
    assert json.loads((new / "generation_config.json").read_text())["repetition_penalty"] == 1.5


def test_a_selection_is_exported_with_its_factors(source, tmp_path):
    folder = source("llama")
    model = load_model(folder)
    selection = Selection(
        heads=HEADS[::-1], factors=(0.0, 0.2, 0.7), method="", token="", k=3, mode="mean",
        reference="", model=model.cfg.model_name, bias="late", data={}, settings={}, versions={},
    )  # fmt: skip
    with steer(model, selection, "mean"):
        expected = log_probs(model)
    new = export_steered(model, selection, tmp_path / "steered", "mean", source=folder)
    assert (log_probs(load_model(new)) - expected).abs().max() < 1e-4
    record = json.loads((new / "biasgym.json").read_text())
    assert record["factor"] == {"L0H3": 0.7, "L2H1": 0.2, "L2H2": 0.0}
    assert record["heads"] == ["L0H3", "L2H1", "L2H2"]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "olmo2"])
def test_a_model_without_biases_of_attention_gets_them(family, source, tmp_path):
    folder = source(family, attention_bias=False)
    model = load_model(folder)
    with steer(model, HEADS, "mean"):
        expected = log_probs(model)
    new = export_steered(model, HEADS, tmp_path / "steered", "mean", source=folder)
    assert (log_probs(load_model(new)) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("family", NO_OUTPUT_BIAS)
def test_a_mean_is_refused_where_no_bias_can_carry_it(family, source, tmp_path):
    folder = source(family)
    with pytest.raises(SteeringError, match=f"to export a {family} model, got a mean"):
        export_steered(load_model(folder), HEADS, tmp_path / "new", "mean", source=folder)
    assert not (tmp_path / "new").exists()


def test_the_folder_says_what_was_done(source, tmp_path):
    folder = source("llama")
    model = load_model(folder)
    new = export_steered(model, HEADS, tmp_path / "new", "scale", factor=0.25, source=folder)
    done = json.loads((new / "biasgym.json").read_text())
    assert done["heads"] == ["L0H3", "L2H1", "L2H2"] and done["mode"] == "scale"
    assert set(done["factor"].values()) == {0.25}
    assert done["largest_log_prob_difference"] < 1e-4
    assert "L2H1" in (new / "README.md").read_text()


def test_another_source_is_noticed_and_nothing_is_left(source, tmp_path):
    model = load_model(source("llama"))
    other = source("gpt2")
    with pytest.raises(ModelError, match="loaded from another source"):
        export_steered(model, HEADS, tmp_path / "new", source=other)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpt2", "llama"]


def test_bad_input(source, tmp_path):
    folder = source("llama")
    model = load_model(folder)
    with pytest.raises(ModelError, match="folder must be new or empty"):
        export_steered(model, HEADS, folder, source=folder)
    with pytest.raises(SteeringError, match="got L9H0"):
        export_steered(model, [(9, 0)], tmp_path / "new", source=folder)
    with steer(model, HEADS), pytest.raises(ModelError, match="got one that is steered. Leave"):
        export_steered(model, HEADS, tmp_path / "new", source=folder)
    with added_row(model, torch.ones(32), "<T>"), pytest.raises(ModelError, match="read with <T>"):
        export_steered(model, HEADS, tmp_path / "new", source=folder)
    assert not (tmp_path / "new").exists()


def test_a_model_knows_where_it_was_read_from_or_asks(source, tmp_path, tiny):
    with pytest.raises(ModelError, match=r"source must be given for 'Llama', .*Pass source="):
        export_steered(tiny(), HEADS, tmp_path / "new")
    folder = source("llama")
    model = load_model(folder)
    model.source = str(folder)
    new = export_steered(model, "L0H3, L2H1, L2H2", tmp_path / "new")
    assert json.loads((new / "biasgym.json").read_text())["source"] == str(folder)


def test_an_empty_folder_may_be_a_link_or_the_current_one(source, tmp_path, monkeypatch):
    folder = source("gpt2")
    model = load_model(folder)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for place, found in (("link", "real"), (".", "here"), ("new", "here/new")):
        to = tmp_path / place if place == "link" else Path(place)
        assert export_steered(model, HEADS, to, source=folder) == to
        new = load_model(tmp_path / found)
        assert new.W_O[2, 1].abs().max() == 0
        if place == ".":
            for path in (tmp_path / "here").iterdir():
                path.unlink()
    assert (tmp_path / "link").is_symlink() and Path.cwd() == tmp_path / "here"


@pytest.mark.parametrize("kind", ["file", "broken link", "below a file", "not empty"])
def test_a_folder_that_cannot_be_is_refused_before_the_work(kind, tmp_path, tiny):
    (tmp_path / "file").write_text("")
    (tmp_path / "broken").symlink_to("nowhere")
    names = {"file": "file", "broken link": "broken", "below a file": "file/new", "not empty": "."}
    with pytest.raises(ModelError, match="folder must be"):
        export_steered(tiny(), HEADS, tmp_path / names[kind], source="nothing-is-read")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "file"]


@pytest.mark.parametrize("umask", [0o077, 0o022, 0o002])
def test_permissions_follow_the_umask(umask, source, tmp_path):
    folder = source("llama")
    before = os.umask(umask)
    try:
        new = export_steered(load_model(folder), HEADS, tmp_path / "new", source=folder)
    finally:
        os.umask(before)
    assert new.stat().st_mode & 0o777 == 0o777 & ~umask
    assert {path.stat().st_mode & 0o777 for path in new.iterdir()} == {0o666 & ~umask}
