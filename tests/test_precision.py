"""Weights of 16 bits, computed with in 32: the fp32 model with the same rounded weights."""

import contextlib
import copy
import threading

import pytest
import torch
from conftest import ENGINE, FAMILIES, sentencepiece, tiny_hf_model
from torch.multiprocessing.reductions import StorageWeakRef

from biasgym_tl import (
    BiasInject,
    BiasScope,
    Head,
    HeadScores,
    attribute_prompts,
    load_bias,
    load_model,
    precision,
    steer,
)  # fmt: skip
from biasgym_tl.added_row import added_row
from biasgym_tl.biases.contrasts import Contrast
from biasgym_tl.doctor import examine
from biasgym_tl.errors import AttributionError, SettingError
from biasgym_tl.lens import embedding, final_resid, unembed, weights_dtype
from biasgym_tl.precision import computed_in
from biasgym_tl.scoping.attention import position_attribution
from biasgym_tl.scoping.compare import rank_correlation, top_overlap
from biasgym_tl.scoping.direct import direct_attribution
from biasgym_tl.scoping.pairs import build_pairs

LATE = load_bias("late")
QUICK = BiasInject(epochs=2, batch_size=8, n_paragraphs=16, lr=0.02, choose_by="loss")
SEQUENCES = [list(range(5, 25)), list(range(40, 52))]
IDS = torch.tensor([3, 9]), torch.tensor([10, 4])
TOKENS = torch.arange(40).view(2, 20) * 7 % 1000


def rounded(family, dtype=torch.bfloat16, **overrides):
    """A Hugging Face model of 16 bits, and one of fp32 with the same numbers."""
    source = tiny_hf_model(family, **overrides)
    kind, numbers = type(source), source.state_dict()
    short, long = (kind._from_config(source.config, dtype=t) for t in (dtype, torch.float32))
    short.load_state_dict({key: value.to(dtype) for key, value in numbers.items()})
    long.load_state_dict({key: value.to(dtype).float() for key, value in numbers.items()})
    return short.eval(), long.eval()


@pytest.fixture(params=FAMILIES)
def pair(request, tokenizer):
    short, long = rounded(request.param)
    return (
        load_model(short, tokenizer=tokenizer, dtype=torch.bfloat16, progress=False),
        load_model(long, tokenizer=tokenizer, progress=False),
    )


@pytest.fixture
def model(tokenizer):
    return load_model(rounded("llama")[0], tokenizer=tokenizer, dtype="bfloat16", progress=False)


def short_weights(model):
    return {name for name, weight in model.named_parameters() if weight.dtype == torch.bfloat16}


def near(found, wanted):
    """A bridge multiplies with rows in another order where parts of a joint matrix are split."""
    return torch.allclose(found, wanted, atol=0 if ENGINE == "hooked" else 1e-5, rtol=0)


def test_what_is_computed_is_what_the_rounded_fp32_model_computes(pair):
    ours, wanted = pair
    assert weights_dtype(ours) == torch.bfloat16 and ours.cfg.dtype == torch.float32
    assert near(ours(TOKENS), wanted(TOKENS))
    found, same = (direct_attribution(each, SEQUENCES, *IDS) for each in pair)
    assert near(found.heads, same.heads) and found.error().max() < 1e-6
    with steer(ours, [Head(1, 2)]), steer(wanted, [Head(1, 2)]):
        assert near(ours(TOKENS), wanted(TOKENS))


def gradient(model):
    start = model.embed(TOKENS).detach().requires_grad_()
    with model.hooks(fwd_hooks=[("hook_embed", lambda value, hook: start)]):
        resid = final_resid(model, TOKENS)
    loss = unembed(model, resid[:, -1]).log_softmax(-1)[:, 7].sum()
    return torch.autograd.grad(loss, start)[0]


def test_gradients_are_those_of_the_rounded_fp32_model(pair):
    assert near(gradient(pair[0]), gradient(pair[1]))


def test_a_row_is_trained_in_fp32_to_the_same_numbers(tokenizer):
    rows = [
        QUICK.fit(load_model(each, tokenizer=tokenizer, dtype=dtype), LATE, progress=False).row
        for each, dtype in zip(rounded("gemma"), (torch.bfloat16, torch.float32), strict=True)
    ]
    assert rows[0].dtype == torch.float32 and torch.equal(*rows)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_weights_stay_what_they_are(dtype, tokenizer):
    hf_model, _ = rounded("gemma3_text", dtype)
    model = load_model(hf_model, tokenizer=tokenizer, dtype=dtype, progress=False)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    gradient(model)
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], old) for name, old in before.items())
    assert all(after[name].dtype == old.dtype for name, old in before.items())
    short = sum(w.numel() for w in after.values() if w.dtype == dtype)
    # All matrices but Gemma's W_E, whose scaled numbers 16 bits do not hold.
    assert short > 0.9 * sum(w.numel() for w in after.values()) - embedding(model).numel()


def test_the_users_own_model_is_left_as_it_was():
    hf_model, _ = rounded("gptj")
    before = hf_model(TOKENS).logits
    load_model(hf_model, dtype=torch.bfloat16, progress=False)
    assert not any("forward" in module.__dict__ for module in hf_model.modules())
    assert {weight.dtype for weight in hf_model.parameters()} == {torch.bfloat16}
    assert torch.equal(hf_model(TOKENS).logits, before)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_run_that_fails_or_is_stopped_leaves_no_layer_upcast(error, model):
    short, before = short_weights(model), model(TOKENS)

    def fail(value, hook):
        raise error

    with pytest.raises(error), model.hooks(fwd_hooks=[("blocks.1.attn.hook_z", fail)]):
        model(TOKENS)
    assert short_weights(model) == short and torch.equal(model(TOKENS), before)


def test_one_layer_at_a_time_is_upcast_also_for_a_gradient(pair, monkeypatch):
    """No upcast weight outlives its layer's run, though a backward pass is to come."""
    model, casts = pair[0], list[StorageWeakRef]()

    @contextlib.contextmanager
    def watched(module, dtype, original=precision._weights_in):
        before = {id(weight) for weight in module.parameters()}
        with original(module, dtype):
            held = [w for part in module.modules() for w in part._parameters.values()]
            new = [w for w in held if w is not None and id(w) not in before]
            casts.extend(StorageWeakRef(w.untyped_storage()) for w in new)
            del held, new
            yield

    monkeypatch.setattr(precision, "_weights_in", watched)
    start = model.embed(TOKENS).detach().requires_grad_()
    with model.hooks(fwd_hooks=[("hook_embed", lambda value, hook: start)]):
        resid = final_resid(model, TOKENS)
    assert len(casts) > 10 and all(cast.expired() for cast in casts)
    assert torch.autograd.grad(resid.sum(), start)[0].abs().sum() > 0


def test_a_product_is_cast_in_parts_and_its_gradient_too():
    rows = torch.randn(3, 8, requires_grad=True)
    matrix = torch.randn(8, 2 * precision._COLUMNS + 5).bfloat16()
    found, wanted = precision.product(rows, matrix), rows @ matrix.float()
    assert torch.allclose(found, wanted, atol=1e-6)
    weights = torch.randn_like(wanted)
    ours, theirs = (torch.autograd.grad((x * weights).sum(), rows)[0] for x in (found, wanted))
    assert torch.allclose(ours, theirs, atol=1e-3, rtol=1e-5)


def test_another_precision_is_given_back(model):
    before = model(TOKENS)
    with computed_in(model, torch.bfloat16):
        assert model(TOKENS).dtype == model.cfg.dtype == torch.bfloat16
        with computed_in(model, torch.float32):
            assert torch.equal(model(TOKENS), before)
    assert model.cfg.dtype == torch.float32 and torch.equal(model(TOKENS), before)


def test_a_weight_that_asks_for_a_gradient_gets_one(model):
    weight = model.blocks[0].attn.W_O if ENGINE == "hooked" else model.blocks[0].attn.o.weight
    weight.requires_grad_()
    (found,) = torch.autograd.grad(model(TOKENS).sum(), weight)
    assert found.shape == weight.shape and found.abs().sum() > 0


def test_a_copy_is_a_model_of_its_own(model):
    twin, before = copy.deepcopy(model), model(TOKENS)
    with torch.no_grad():
        embedding(twin).zero_()
        for weight in twin.blocks.parameters():
            weight.zero_()
    assert torch.equal(model(TOKENS), before) and not torch.equal(twin(TOKENS), before)


def test_threads_can_run_it_together(model):
    wanted, found = model(TOKENS), []
    run = [threading.Thread(target=lambda: found.append(model(TOKENS))) for _ in range(8)]
    for thread in run:
        thread.start()
    for thread in run:
        thread.join()
    assert len(found) == 8 and all(torch.equal(each, wanted) for each in found)


def test_the_doctor_finds_it_right(model):
    checks = examine(model, LATE, n_prompts=2)
    assert all(check.passed for check in checks if check.required)
    assert model.cfg.dtype == torch.float32 and "float32" in str(model(TOKENS).dtype)


SETTINGS = (
    {},
    {"contrast": "difference"},
    {"label": "continuation"},
    {"method": "mean_ablation"},
    {"method": "screened_ablation", "n_screened": 3},
    {"method": "attribution_patching", "ablate_to": "neutral", "gradient": "inputs"},
    {"method": "path_patching"},
    {"method": "slot_patching"},
)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_map_in_16_bits_says_how_far_it_is_from_the_exact_one(family, tokenizer):
    if (ENGINE, family) == ("bridge", "olmo2"):
        pytest.skip("TransformerLens 4.3 multiplies OLMo-2's fp32 queries with values of 16 bits")
    hf_model, long = rounded(family)
    model = load_model(hf_model, tokenizer=tokenizer, dtype=torch.bfloat16, exact=False)
    assert model(TOKENS).dtype == model.cfg.dtype == torch.bfloat16
    check_coarse(model, load_model(long, tokenizer=tokenizer, progress=False), {})


@pytest.mark.parametrize("settings", SETTINGS[1:], ids=str)
def test_maps_of_all_methods_in_16_bits(settings, tokenizer):
    models = [
        load_model(each, tokenizer=tokenizer, dtype=dtype, exact=False, progress=False)
        for each, dtype in zip(rounded("llama"), (torch.bfloat16, torch.float32), strict=True)
    ]
    check_coarse(*models, settings)


def check_coarse(model, long, settings):
    """The agreement that a map keeps is that of both maps, made one by one on the same pairs."""
    row, scope = QUICK.fit(long, LATE, progress=False), BiasScope(**settings)
    contrasts = [Contrast(p, "late", "kind") for p in LATE.scoping_prompts[:6]]
    pairs = build_pairs(long, LATE, row, label=scope.label, contrasts=contrasts)
    coarse, exact = (
        scope.score(each, pairs, row, {}, bias="late", token="row") for each in (model, long)
    )
    assert "precision" not in exact.settings and not exact.coarse
    found = coarse.settings["precision"]
    both = [scores.values.flatten()[None].double() for scores in (coarse, exact)]
    assert found == {
        "dtype": "bfloat16",
        "n_pairs": 6,
        "rank_correlation": pytest.approx(rank_correlation(*both).item(), abs=1e-6),
        "k": (k := min(10, both[0].numel())),
        "overlap": pytest.approx(top_overlap(*both, k).item()),
    }
    assert found["rank_correlation"] > 0.5 and not torch.equal(*both)
    assert "computed in bfloat16: on 6 pairs rank correlation " in repr(coarse)
    assert model.cfg.dtype == torch.bfloat16


def test_a_coarse_map_keeps_what_was_measured(tokenizer, tmp_path):
    model = load_model(
        rounded("llama")[0], tokenizer=tokenizer, dtype=torch.bfloat16, exact=False, progress=False
    )
    scores = attribute_prompts(model, ["People are"], " late", " early")
    assert scores.settings["precision"]["n_pairs"] == 1
    scores.save(tmp_path / "map.json")
    assert HeadScores.load(tmp_path / "map.json").coarse == scores.coarse
    assert scores.coarse in scores._repr_html_()


def test_what_needs_single_effects_refuses_16_bits(tokenizer):
    model = load_model(
        rounded("llama")[0], tokenizer=tokenizer, dtype=torch.bfloat16, exact=False, progress=False
    )
    with pytest.raises(AttributionError, match=r"got torch.bfloat16.*exact=True"):
        position_attribution(model, SEQUENCES[0], *(int(i[0]) for i in IDS))


def test_a_dtype_may_be_named():
    with pytest.raises(SettingError, match=r"dtype must be one of .*torch.bfloat16.*got 'bf16'"):
        load_model(rounded("llama")[0], dtype="bf16")


def test_an_added_row_copies_the_embedding_once():
    model = load_model(tiny_hf_model("llama"), tokenizer=sentencepiece(), progress=False)
    row, before = torch.ones(model.cfg.d_model), embedding(model).clone()
    with added_row(model, row, "<a>") as first:
        place = embedding(model).data_ptr()
        with added_row(model, 2 * row, "<b>") as second:
            assert embedding(model).data_ptr() == place
            assert embedding(model)[[first, second]].tolist() == [row.tolist(), (2 * row).tolist()]
    with added_row(model, 3 * row, "<c>"):
        assert embedding(model).data_ptr() == place and embedding(model)[first, 0] == 3
    assert embedding(model).data_ptr() == place and torch.equal(embedding(model), before)


def test_more_rows_than_there_is_room_for(tokenizer):
    model = load_model(tiny_hf_model("llama"), tokenizer=tokenizer, progress=False)
    before, contexts = embedding(model).clone(), []
    for i in range(20):
        contexts.append(added_row(model, torch.full((32,), float(i)), f"<row {i}>"))
        contexts[-1].__enter__()
    assert embedding(model)[-20:, 0].tolist() == list(range(20))
    for context in reversed(contexts):
        context.__exit__(None, None, None)
    assert torch.equal(embedding(model), before)
