"""A steered model as a folder: the same log-probabilities without any hook."""

import copy
import json
import os
import weakref
from importlib import util
from pathlib import Path

import pytest
import torch
from command import biasgym
from conftest import FAMILIES, sentencepiece, tiny_hf_model
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, ByT5Tokenizer

from biasgym_tl import Head, Selection, export_steered, load_model, steer
from biasgym_tl.added_row import added_row
from biasgym_tl.errors import ModelError, SteeringError
from biasgym_tl.families import convert
from biasgym_tl.hooks import head_means
from biasgym_tl.lens import weights_dtype
from biasgym_tl.model import accepted_share
from biasgym_tl.steering.copying import Checkpoint
from biasgym_tl.steering.export import N_READ, N_WRITTEN, _source

HEADS = (Head(0, 3), Head(2, 1), Head(2, 2))
TOKENS = torch.randint(2, 1000, (2, 17), generator=torch.Generator().manual_seed(4))
NO_OUTPUT_BIAS = ("mistral", "gptj")
"""Mistral for its window."""


def log_probs(model):
    with torch.inference_mode():
        return model(TOKENS, attention_mask=torch.ones_like(TOKENS)).log_softmax(-1)


@pytest.fixture(autouse=True)
def few_texts(monkeypatch):
    """What an export compares before it takes its place; the tests compare more themselves."""
    monkeypatch.setattr("biasgym_tl.steering.export.N_TEXTS", 2)
    monkeypatch.setattr("biasgym_tl.steering.export.N_WRITTEN", 4)


@pytest.fixture
def source(tmp_path, tokenizer):
    def save(family, **overrides):
        folder = tmp_path / family
        tiny_hf_model(family, **overrides).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.mark.parametrize(("mode", "factor"), [("zero", None), ("scale", 0.3)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_zeroed_or_scaled_head_is_exported_exactly(family, mode, factor, source, tmp_path):
    folder, new = source(family), tmp_path / "steered"
    model = load_model(folder)
    with steer(model, HEADS, mode, factor=factor):
        expected = log_probs(model)
    exported = load_model(export_steered(model, HEADS, new, mode, factor=factor, source=folder))
    assert (log_probs(exported) - expected).abs().max() < 1e-4
    assert (log_probs(model) - expected).abs().max() > 1e-2
    for layer, head in HEADS:
        assert torch.allclose(exported.W_O[layer, head], (factor or 0) * model.W_O[layer, head])


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
    why = "no window of 7 tokens" if family == "mistral" else "can carry no bias"
    with pytest.raises(SteeringError, match=f"to export a {family} model, got a mean: .*{why}"):
        export_steered(load_model(folder), HEADS, tmp_path / "new", "mean", source=folder)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("family", "window"), [("qwen2", None), ("mistral", None), ("mistral", 10_000)]
)
def test_what_computes_as_llama_is_written_as_one(family, window, tied, source, tmp_path):
    folder = source(family, sliding_window=window, tie_word_embeddings=tied)
    model = load_model(folder)
    with steer(model, HEADS, "mean", factor=0.3):
        expected = log_probs(model)
    new = export_steered(model, HEADS, tmp_path / "new", "mean", factor=0.3, source=folder)
    config = json.loads((new / "config.json").read_text())
    assert config["model_type"] == "llama" and config["attention_bias"]
    assert config["tie_word_embeddings"] is tied and config["architectures"] == ["LlamaForCausalLM"]
    assert (log_probs(load_model(new)) - expected).abs().max() < 1e-4
    assert "of the type llama" in (new / "README.md").read_text()


def test_a_window_of_some_layers_is_no_llama(source, tmp_path):
    folder = source("qwen2", use_sliding_window=True, sliding_window=7, max_window_layers=1)
    with pytest.raises(SteeringError, match="no window of 7 tokens"):
        export_steered(load_model(folder), HEADS, tmp_path / "new", "mean", source=folder)


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


@pytest.mark.parametrize("kind", ["file", "broken link", "below a file", "not empty", "too long"])
def test_a_folder_that_cannot_be_is_refused_before_the_work(kind, tmp_path, tiny):
    (tmp_path / "file").write_text("")
    (tmp_path / "broken").symlink_to("nowhere")
    names = {"file": "file", "broken link": "broken", "below a file": "file/new", "not empty": "."}
    names["too long"] = "x" * 300
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


# --- a checkpoint of several files ------------------------------------------------------------


def tensors(folder):
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


@pytest.fixture
def sharded(tmp_path, tokenizer):
    """As older libraries write them too: without the prefix, with buffers."""

    def save(family, *, prefix="", **overrides):
        folder, hf_model = tmp_path / family, tiny_hf_model(family, **overrides)
        hf_model.save_pretrained(folder, max_shard_size="60KB")
        tokenizer.save_pretrained(folder)
        for file in folder.glob("*.safetensors"):
            named = {k.removeprefix(prefix): v for k, v in load_file(file).items()}
            buffers = {f"h.{i}.attn.bias": torch.ones(1, 1, 4, 4).bool() for i in range(3)}
            save_file(named | (buffers if prefix else {}), file, metadata={"format": "pt"})
        return folder

    return save


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {"attention_bias": False}),
        ("qwen2", {}),
        ("gpt2", {"prefix": "transformer."}),
    ],
)
def test_its_files_are_kept_and_all_else_in_them(family, overrides, sharded, tmp_path):
    folder = sharded(family, **overrides)
    model = load_model(folder)
    with steer(model, HEADS, "mean"):
        expected = log_probs(model)
    new = export_steered(model, HEADS, tmp_path / "new", "mean")
    assert (log_probs(load_model(new)) - expected).abs().max() < 1e-4
    before, after = tensors(folder), tensors(new)
    names = {path.name for path in folder.glob("*.safetensors")}
    assert len(names) > 2 and {path.name for path in new.glob("*.safetensors")} == names
    left_out = {name for name in before if name.endswith(".attn.bias")}
    added = after.keys() - before.keys()
    assert before.keys() - after.keys() == left_out and len(left_out) == 3 * (family == "gpt2")
    assert {name.rsplit(".", 1)[1] for name in added} <= {"bias"}
    output = convert.FAMILIES[family].output.removeprefix(overrides.get("prefix", "")).format
    changed = {f"{output(layer)}.{part}" for layer in (0, 2) for part in ("weight", "bias")}
    assert all(after[name].any() == (name in changed) for name in added)
    for name in before.keys() - left_out:
        assert torch.equal(before[name], after[name]) == (name not in changed), name
    index = json.loads((new / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == after.keys()
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in after.values())


def test_a_bias_may_stand_in_another_file_than_its_weight(sharded, tmp_path):
    folder = sharded("gpt2")
    files = [folder / "biases.safetensors", folder / "weights.safetensors"]
    before = tensors(folder)
    for file in folder.glob("model*"):
        file.unlink()
    places = {name: files[not name.endswith("bias")].name for name in before}
    for file in files:
        of_file = {name: before[name] for name, place in places.items() if place == file.name}
        save_file(of_file, file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    model = load_model(folder)
    with steer(model, HEADS, "mean"):
        expected = log_probs(model)
    new = export_steered(model, HEADS, tmp_path / "new", "mean")
    assert (log_probs(load_model(new)) - expected).abs().max() < 1e-4
    index = json.loads((new / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == places
    found = [(name, file.name) for file in new.glob("*.safetensors") for name in load_file(file)]
    assert sorted(found) == sorted(places.items())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in before.values())


def test_a_checkpoint_is_cast_to_the_dtype_of_the_model(sharded, tmp_path):
    folder = sharded("qwen2")
    model = load_model(folder, dtype=torch.bfloat16)
    new = tensors(export_steered(model, HEADS, tmp_path / "new", "mean", check=False))
    assert {tensor.dtype for tensor in new.values()} == {torch.bfloat16}
    for name, tensor in tensors(folder).items():
        assert "o_proj" in name or torch.equal(tensor.bfloat16(), new[name])


def test_one_tensor_is_in_memory_at_a_time(sharded, tmp_path, monkeypatch):
    model, read, alive = load_model(sharded("llama")), Checkpoint.read, []

    def watched(self, name):
        assert sum(tensor() is not None for tensor in alive) <= 1  # a bias needs its matrix
        found = read(self, name)
        alive.append(weakref.ref(found))
        return found

    monkeypatch.setattr(Checkpoint, "read", watched)
    export_steered(model, HEADS, tmp_path / "new", "mean")
    assert len(alive) > 40


def test_what_is_interrupted_leaves_nothing(sharded, tmp_path, monkeypatch):
    folder, read = sharded("llama"), Checkpoint.read

    def stopped(self, name):
        if "layers.2" in name:
            (temporary,) = tmp_path.glob(".biasgym-*.tmp")
            assert list(temporary.glob("*.safetensors"))
            raise KeyboardInterrupt
        return read(self, name)

    monkeypatch.setattr(Checkpoint, "read", stopped)
    with pytest.raises(KeyboardInterrupt):
        export_steered(load_model(folder), HEADS, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]


def test_without_the_comparison_the_folder_says_so(sharded, tmp_path, monkeypatch):
    folder = sharded("llama")
    model = load_model(folder)
    checked = export_steered(model, HEADS, tmp_path / "checked")
    monkeypatch.setattr("biasgym_tl.steering.export._checked", None)
    new = export_steered(model, HEADS, tmp_path / "new", check=False)
    one, other = tensors(checked), tensors(new)
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    assert json.loads((new / "biasgym.json").read_text())["largest_log_prob_difference"] is None
    assert "It was not compared with the hooked model" in (new / "README.md").read_text()
    options = ["--model", folder, "--heads", "L0H3,L2H1,L2H2", "--no-check"]
    done = biasgym("export", tmp_path / "third", *options)
    assert done.returncode == 0 and "It was not compared" in done.stdout, done.stderr
    third = tensors(tmp_path / "third")
    assert all(torch.equal(third[k], other[k]) for k in other)
    for form in ("--peft", "--edit"):
        done = biasgym("export", tmp_path / "fourth", *options, form)
        assert done.returncode == 1 and "one after the other" not in done.stderr
        assert f"--no-check must be given without {form}, which compares no fold" in done.stderr


# --- the tokenizer ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma", "gpt2", "gpt_neox", "opt", "qwen2"])
def test_the_tokenizer_in_memory_is_the_one_that_is_written(family, source, tokenizer, tmp_path):
    given = copy.deepcopy(tokenizer)
    given.add_tokens(["<new>"])
    given.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}!"
    model = load_model(source(family), tokenizer=given)
    found = AutoTokenizer.from_pretrained(export_steered(model, HEADS, tmp_path / "new"))
    turn = [{"role": "user", "content": "Late <new> people"}]
    expected = given.apply_chat_template(turn)["input_ids"]
    assert found.apply_chat_template(turn)["input_ids"] == expected
    assert given.convert_tokens_to_ids("<new>") in expected and found.bos_token == "<s>"


def test_a_tokenizer_of_another_kind_than_the_source_has_is_kept(source, tmp_path):
    given = sentencepiece()
    model = load_model(source("llama"), tokenizer=given)
    found = AutoTokenizer.from_pretrained(export_steered(model, HEADS, tmp_path / "new"))
    assert found("late people")["input_ids"] == given("late people")["input_ids"]


def test_without_a_tokenizer_none_is_written_and_none_need_be_at_the_source(tmp_path):
    hf_model = tiny_hf_model("llama")
    hf_model.save_pretrained(tmp_path / "bare")
    new = export_steered(load_model(hf_model), HEADS, tmp_path / "new", source=tmp_path / "bare")
    assert not list(new.glob("*token*")) and list(new.glob("*.safetensors"))


def test_a_tokenizer_that_would_be_read_as_another_is_refused(source, tmp_path):
    """Beside a Qwen2 transformers reads every tokenizer as Qwen2's, which splits other words."""
    model = load_model(source("qwen2"), tokenizer=sentencepiece())
    with pytest.raises(ModelError, match="tokenizer must be .* it is read as a Qwen2Tokenizer"):
        export_steered(model, HEADS, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_tokenizer_that_cannot_be_read_at_all_is_refused(source, tmp_path):
    class OfTheUser(ByT5Tokenizer):
        """A class that only the user's own code has."""

    model = load_model(source("llama"), tokenizer=OfTheUser())
    with pytest.raises(ModelError, match="transformers reads back .*, got a OfTheUser, but: "):
        export_steered(model, HEADS, tmp_path / "new")


# --- 16 bits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gemma", "gemma2", "gpt2", "gptj", "bloom", "qwen3"])
def test_in_16_bits_the_share_of_the_spread_is_compared(family, dtype, source, tmp_path):
    model = load_model(source(family), dtype=dtype)
    mode = "zero" if family in NO_OUTPUT_BIAS else "mean"
    new = export_steered(model, HEADS, tmp_path / "new", mode)
    done = json.loads((new / "biasgym.json").read_text())
    assert 0 <= done["share_of_log_prob_spread"] <= accepted_share([dtype], 3)
    assert weights_dtype(load_model(new, dtype=dtype)) == dtype


def test_in_16_bits_other_weights_are_noticed_by_their_share(source, tmp_path):
    model = load_model(source("llama"), dtype=torch.bfloat16)
    tiny_hf_model("llama", seed=3).save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="within a share 0.15 of .* loaded from another source"):
        export_steered(model, HEADS, tmp_path / "new", source=tmp_path / "other")


def test_numbers_that_are_none_are_no_small_difference(source, tmp_path):
    folder = source("llama")
    model = load_model(folder)
    model.ln_final.w[0] = float("nan")
    with pytest.raises(ModelError, match="must do what the steered one does within 0.001 nats"):
        export_steered(model, HEADS, tmp_path / "new")


# --- what cannot be exported ------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["Phi3ForCausalLM", "MixtralForCausalLM"])
def test_a_type_that_only_transformer_lens_reads_is_refused_before_the_work(
    architecture, model, tmp_path
):
    model.cfg.original_architecture = architecture
    with pytest.raises(ModelError, match=f"to be exported, got '{architecture}'"):
        export_steered(model, HEADS, tmp_path / "new", source="nothing-is-read")


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ({"num_hidden_layers": 2}, "with {'n_layers': 3}, got {'n_layers': 2}"),
        ({"num_hidden_layers": 5}, "with {'n_layers': 3}, got {'n_layers': 5}"),
        ({"num_attention_heads": 2}, "with {'n_heads': 4, 'd_head': 8}, got {'n_heads': 2, "),
        ({"hidden_size": 64}, "with {'d_head': 8, 'd_model': 32}, got {'d_head': 16, "),
        ({"vocab_size": 900}, "with {'d_vocab': 1024}, got {'d_vocab': 900}"),
    ],
)
def test_a_source_of_another_size_is_refused_by_its_size(size, wanted, source, model, tmp_path):
    with pytest.raises(ModelError, match=f"source must hold the model itself, {wanted}"):
        export_steered(model, HEADS, tmp_path / "new", source=source("llama", **size))


def test_a_source_is_a_name_or_a_folder(model):
    with pytest.raises(ModelError, match="source must be a name or a folder, got a LlamaForCausal"):
        _source(model, tiny_hf_model("llama"))


def test_the_users_home_may_stand_in_both_folders(source, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    model = load_model(source("llama"))
    assert export_steered(model, HEADS, "~/new", source="~/llama") == tmp_path / "new"
    done = json.loads((tmp_path / "new" / "biasgym.json").read_text())
    assert done["source"] == str(tmp_path / "llama")
    for folders in ({"folder": "~nobody-known/x"}, {"folder": "y", "source": "~nobody-known/x"}):
        with pytest.raises(ModelError, match="must lie in a home that is known, got '~nobody-kno"):
            export_steered(model, HEADS, **folders)


def test_a_short_context_is_not_left(source, tmp_path, monkeypatch):
    monkeypatch.setattr("biasgym_tl.steering.export.N_WRITTEN", N_WRITTEN)
    assert N_READ + N_WRITTEN > 50
    model = load_model(source("gpt2", n_positions=50))
    assert export_steered(model, HEADS, tmp_path / "new").is_dir()


# --- what others read -------------------------------------------------------------------------


def test_the_bias_of_the_output_is_where_vllm_looks_for_it(source, tmp_path):
    """Its Llama gives all four projections a bias where the configuration says so."""
    model = load_model(source("llama", attention_bias=False))
    new = export_steered(model, HEADS, tmp_path / "new", "mean")
    assert json.loads((new / "config.json").read_text())["attention_bias"] is True
    names = {
        name.split(".", 3)[3] for name in load_file(new / "model.safetensors") if "attn" in name
    }
    projections = {f"self_attn.{p}_proj" for p in "qkvo"}
    assert names == {f"{p}.{part}" for p in projections for part in ("weight", "bias")}


@pytest.mark.skipif(util.find_spec("vllm") is None, reason="vllm is not installed")
@pytest.mark.parametrize("mode", ["zero", "mean"])
def test_vllm_writes_what_the_steered_model_writes(mode, source, tmp_path):
    from vllm import LLM, SamplingParams

    model = load_model(source("llama", attention_bias=False))
    new = export_steered(model, HEADS, tmp_path / "new", mode)
    engine = LLM(str(new), dtype="float32", enforce_eager=True, max_model_len=64)
    asked = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    (found,) = engine.generate({"prompt_token_ids": TOKENS[0].tolist()}, asked)
    with steer(model, HEADS, mode), torch.inference_mode():
        tokens = TOKENS[:1]
        for _ in range(6):
            tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], 1)
    assert list(found.outputs[0].token_ids) == tokens[0, TOKENS.shape[1] :].tolist()
