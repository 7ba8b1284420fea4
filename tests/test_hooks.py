"""Zeroing hook_z of a head == zeroing its W_O == zeroing its columns of o_proj in Hugging Face."""

import copy
import dataclasses
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import FAMILIES, tiny_hf_model

from biasgym_tl import Head, load_bias, load_model, steer, target_means
from biasgym_tl.added_row import added_row
from biasgym_tl.errors import ModelError, SteeringError
from biasgym_tl.families.convert import FAMILIES as CONVERTED
from biasgym_tl.heads import as_heads, by_head, check_heads
from biasgym_tl.hooks import head_means
from biasgym_tl.prompts import encode_sentence

HEADS = (Head(0, 3), Head(2, 1), Head(2, 2))
TOKENS = torch.randint(2, 1000, (2, 17), generator=torch.Generator().manual_seed(4))


def logits(model):
    with torch.inference_mode():
        return model(TOKENS, attention_mask=torch.ones_like(TOKENS))


def test_zeroing_equals_zeroing_W_O(any_model):
    with steer(any_model, HEADS):
        steered = logits(any_model)
    edited = copy.deepcopy(any_model)
    with torch.no_grad():
        for layer, head in HEADS:
            edited.blocks[layer].attn.W_O[head] = 0
    assert (steered - logits(edited)).abs().max() < 1e-5
    assert (steered - logits(any_model)).abs().max() > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_zeroing_equals_the_weight_edit_in_hugging_face(family):
    hf_model = tiny_hf_model(family)
    model = load_model(hf_model)
    with torch.no_grad():
        for layer, head in HEADS:
            weight = hf_model.get_submodule(CONVERTED[family].output.format(layer)).weight
            part = slice(model.cfg.d_head * head, model.cfg.d_head * (head + 1))
            weight[(part,) if family == "gpt2" else (slice(None), part)] = 0
        expected = hf_model(TOKENS).logits.log_softmax(-1)
    with steer(model, HEADS):
        assert (logits(model).log_softmax(-1) - expected).abs().max() < 1e-4


def test_mean_puts_the_reference_in_place(model):
    reference = torch.randn(3, 4, 8)
    with steer(model, HEADS, "mean", reference=reference):
        _, cache = model.run_with_cache(TOKENS)
    for layer, head in HEADS:
        z = cache[f"blocks.{layer}.attn.hook_z"][:, :, head]
        assert torch.equal(z, reference[layer, head].expand_as(z))


@pytest.mark.parametrize("mode", ["scale", "mean"])
def test_a_factor_keeps_a_share_of_the_heads_own_output(model, mode):
    reference = torch.randn(3, 4, 8) if mode == "mean" else None
    kept = {Head(2, 1): 1.5, Head(2, 2): -1.0}
    _, whole = model.run_with_cache(TOKENS)
    with steer(model, kept, mode, reference=reference, factor=kept):
        _, steered = model.run_with_cache(TOKENS)
    for head, factor in kept.items():
        before, after = (c["blocks.2.attn.hook_z"][:, :, head.head] for c in (whole, steered))
        instead = 0 if reference is None else reference[head]
        assert torch.allclose(after, factor * before + (1 - factor) * instead, atol=1e-5)


def test_factors_0_and_1_are_zeroing_and_leaving_alone(model):
    with steer(model, HEADS, "scale", factor=0.0):
        scaled = logits(model)
    with steer(model, HEADS):
        assert torch.equal(scaled, logits(model))
    with steer(model, HEADS, "scale", factor=1.0):
        scaled = logits(model)
    assert torch.equal(scaled, logits(model))


def test_head_means_are_the_means_over_positions_but_the_first(model):
    tokens = torch.tensor([model.tokenizer("<s>People from Italy")["input_ids"]])
    _, cache = model.run_with_cache(tokens)
    means = head_means(model, ["People from Italy"])
    for layer in range(3):
        expected = cache[f"blocks.{layer}.attn.hook_z"][0, 1:].mean(0)
        assert torch.allclose(means[layer], expected, atol=1e-6)


def test_target_means_are_over_the_sentences_with_other_targets(model):
    bias = dataclasses.replace(load_bias("late"), scoping_prompts=("People from {target} are",))
    names = bias.sample_targets("fitting", 2, 0)
    start = encode_sentence(model, "People from")
    sums = []
    for name in names:
        ids = encode_sentence(model, f"People from {name} are")
        _, cache = model.run_with_cache(torch.tensor([ids]))
        sums += [cache["blocks.1.attn.hook_z"][0, len(start) :]]
    found = target_means(model, bias, n_targets=2)
    assert torch.allclose(found[1], torch.cat(sums).mean(0), atol=1e-6)


def test_the_default_reference_is_the_shipped_neutral_text(model):
    with steer(model, HEADS, "mean", reference=head_means(model)):
        expected = logits(model)
    with steer(model, HEADS, "mean"):
        assert torch.equal(logits(model), expected)


def test_greedy_text_is_the_same_with_and_without_cache(any_model):
    options = {"max_new_tokens": 12, "do_sample": False, "verbose": False, "stop_at_eos": False}
    with steer(any_model, HEADS, "mean"):
        cached = any_model.generate(TOKENS[:1], use_past_kv_cache=True, **options)
        plain = any_model.generate(TOKENS[:1], use_past_kv_cache=False, **options)
    assert torch.equal(cached, plain)


def test_contexts_nest_and_the_inner_one_wins(model):
    with steer(model, HEADS[:1]), steer(model, HEADS[1:]):
        nested = logits(model)
    with steer(model, HEADS):
        assert torch.equal(nested, logits(model))
    reference = torch.randn(3, 4, 8)
    with steer(model, HEADS), steer(model, HEADS, "mean", reference=reference):
        inner = logits(model)
    with steer(model, HEADS, "mean", reference=reference):
        assert torch.equal(inner, logits(model))


def test_means_inside_a_steering_are_those_of_the_unsteered_model(model):
    reference = head_means(model)
    with steer(model, HEADS[:1]):
        with steer(model, HEADS[1:], "mean", reference=reference):
            expected = logits(model)
        steered = logits(model)
        with steer(model, HEADS[1:], "mean"):
            assert torch.equal(logits(model), expected)
        assert torch.equal(logits(model), steered)
    with steer(model, HEADS[:1], "mean"), steer(model, HEADS, "mean"):
        found = logits(model)
    with steer(model, HEADS, "mean", reference=reference):
        assert torch.equal(found, logits(model))


def test_contexts_can_be_left_in_any_order(model):
    """Whichever is left, the model is as if only the others had been entered."""
    before = logits(model)
    first, second = steer(model, HEADS[:1]), steer(model, HEADS[1:], "mean")
    row = added_row(model, torch.ones(32), "<row>")
    for context in (first, row, second):
        context.__enter__()
    first.__exit__(None, None, None)
    found = logits(model)
    row.__exit__(None, None, None)
    with_second = logits(model)
    second.__exit__(None, None, None)
    assert torch.equal(logits(model), before)
    with steer(model, HEADS[1:], "mean"):
        assert torch.equal(found, logits(model)) and torch.equal(with_second, logits(model))


def test_a_model_cast_or_moved_inside_stays_steered(model):
    twin = copy.deepcopy(model).to(torch.bfloat16)
    reference = head_means(model)
    with steer(model, HEADS, "mean", reference=reference, factor=0.5):
        model.to(torch.bfloat16)
        found = logits(model)
        with steer(twin, HEADS, "mean", reference=reference, factor=0.5):
            assert found.dtype == torch.bfloat16 and torch.equal(found, logits(twin))
    assert torch.equal(logits(model), logits(twin))


def test_a_steered_model_is_not_copied(model):
    attributes = set(vars(model))
    with steer(model, HEADS):
        for copied in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(ModelError, match="must not be copied or pickled while"):
                copied(model)
    assert set(vars(model)) == attributes
    assert torch.equal(logits(copy.deepcopy(model)), logits(model))


def test_two_threads_do_not_steer_one_model(model):
    def steered():
        with steer(model, HEADS[1:]):
            return logits(model)

    with ThreadPoolExecutor(1) as pool:
        with steer(model, HEADS[:1]):
            error = pool.submit(steered).exception()
            assert isinstance(error, ModelError)
            assert "one thread at a time, got one that is steered by another" in str(error)
            expected = logits(model)
        with steer(model, HEADS[:1]):
            assert torch.equal(logits(model), expected)
        assert torch.equal(pool.submit(steered).result(), steered())


def test_factors_go_with_heads_however_they_are_written(model):
    with steer(model, HEADS, "scale", factor={(0, 3): 0.5, (2, 1): 2.0, (2, 2): -1.0}):
        expected = logits(model)
    with steer(model, "L2H1, L2H2, L0H3", "scale", factor={"L2H2": -1.0, "L0H3": 0.5, "L2H1": 2.0}):
        assert torch.equal(logits(model), expected)
    twice = {"L0H3": 0.5, (0, 3): 0.6}
    with pytest.raises(SteeringError, match=r"one number for each head, got two for \['L0H3'\]"):
        steer(model, ["L0H3"], "scale", factor=twice).__enter__()


def test_survives_reset_hooks_and_leaves_other_hooks_alone(model):
    before = logits(model)
    seen = []
    point = model.blocks[0].attn.hook_z
    point.add_perma_hook(lambda z, hook: seen.append(hook.name))
    with steer(model, HEADS):
        steered = logits(model)
        model.reset_hooks()
        assert torch.equal(logits(model), steered)
    assert torch.equal(logits(model), before) and not torch.equal(steered, before)
    assert len(seen) == 3 and len(point.fwd_hooks) == 1


def test_restored_after_an_error_and_after_removing_all_hooks(model):
    before = logits(model)
    with pytest.raises(RuntimeError), steer(model, HEADS):
        raise RuntimeError
    with steer(model, HEADS):
        model.reset_hooks(including_permanent=True)
    assert torch.equal(logits(model), before)
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_no_gradient_passes_a_steered_head(model):
    z = {}
    with steer(model, [(2, 0), (2, 1)]), model.hooks([("blocks.2.attn.hook_v", _keep(z))]):
        model(TOKENS)[0, -1].sum().backward()
    first, second = z["v"].grad.abs().sum((0, 1, 3))  # KV groups: heads 0 and 1, heads 2 and 3
    assert first == 0 and second > 0


def _keep(store):
    def hook(value, hook):
        store["v"] = value.detach().requires_grad_()
        return store["v"]

    return hook


@pytest.mark.parametrize(
    ("heads", "options", "message"),
    [
        ([(3, 0)], {}, r"L0\.\.L2 and H0\.\.H3 of this model, got L3H0"),
        ([(0, -1)], {}, "got L0H-1"),
        ([(0, 0)], {"mode": "median"}, r"one of \['zero', 'mean', 'scale'\], got 'median'"),
        ([(0, 0)], {"reference": torch.zeros(3, 4, 8)}, "reference must be None in mode 'zero'"),
        ([(0, 0)], {"factor": 0.5}, "factor must be None in mode 'zero', got 0.5"),
        ([(0, 0)], {"mode": "scale"}, "factor must be given in mode 'scale'"),
        ({"L0H0": 0.5}, {}, "factor must be given beside heads that have numbers, got None"),
        ([(0, 0)], {"mode": "scale", "factor": float("nan")}, "factor must be a finite number"),
        ([(0, 0)], {"mode": "mean", "factor": {(0, 1): 0.5}}, r"got \['L0H0', 'L0H1'\] in only"),
        ([(0, 0)], {"mode": "mean", "reference": torch.zeros(1, 4, 8)},
         r"shape \(3, 4, 8\).*got \(1, 4, 8\)"),
    ],
)  # fmt: skip
def test_bad_input(model, heads, options, message):
    with pytest.raises(SteeringError, match=message):
        steer(model, heads, **options).__enter__()


def test_means_of_no_text_are_refused(model):
    with pytest.raises(SteeringError, match="texts must hold at least one of more than 1 tokens"):
        head_means(model, [])


def test_heads_are_taken_as_they_are_printed():
    written = (Head(9, 8), "L9H8", " l9h8 ", (9, 8), [9, 8], torch.tensor([9, 8]), np.array([9, 8]))
    assert {Head.parse(head) for head in written} == {Head(9, 8)} and str(Head(9, 8)) == "L9H8"
    several = (["L9H8", (3, 1)], "L9H8, L3H1", [[9, 8], [3, 1], "L9H8"], iter([(9, 8), "L3H1"]),
               {"L9H8": 0.5, "L3H1": 1.0}, torch.tensor([[9, 8], [3, 1]]))  # fmt: skip
    assert {as_heads(heads) for heads in several} == {(Head(9, 8), Head(3, 1))}
    assert as_heads((9, 8)) == as_heads("L9H8") == as_heads(Head(9, 8)) == (Head(9, 8),)
    assert as_heads([]) == () and check_heads("L1H0, L0H1", 2, 2) == (Head(0, 1), Head(1, 0))
    assert by_head({"L9H8": 0.5, (3, 1): 1.0}) == {Head(9, 8): 0.5, Head(3, 1): 1.0}


@pytest.mark.parametrize(
    "head", ["9.8", "", "L9H8 L3H1", "L-1H0", (9,), (9, 8, 7), (9.0, 8.0), 9, None]
)
def test_what_is_no_head_is_refused(head):
    with pytest.raises(SteeringError, match=r"head must be a pair such as \(9, 8\) or written"):
        Head.parse(head)


def test_what_holds_no_heads_is_refused():
    with pytest.raises(SteeringError, match=r"heads must be such as \['L9H8', \(3, 1\)\].*got 9"):
        as_heads(9)
    with pytest.raises(SteeringError, match=r"head must be a pair .*, got 1\."):
        as_heads([1, 2, 3])
    with pytest.raises(SteeringError, match=r"got two for \['L9H8'\]"):
        by_head({"L9H8": 0.5, (9, 8): 0.6})


@pytest.mark.parametrize(
    "mask", [torch.tensor([[True, True], [False, False]]), [(True, False)], (True, True)]
)
def test_a_mask_is_no_list_of_heads(mask):
    from biasgym_tl.heads import as_heads

    with pytest.raises(SteeringError, match="head must be a pair such as"):
        as_heads(mask)
