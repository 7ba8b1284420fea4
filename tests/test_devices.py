"""A model over several devices gives what it gives on one, to the last bit.

The devices are pretended (``pretended.py``): numbers are those of the CPU, and what would be
computed with tensors of two devices raises. Nothing was run on GPUs, which may round otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from command import biasgym
from conftest import tiny_hf_model
from pretended import DEVICES, PretendedDevices
from test_bridge import boot
from torch import Tensor

from biasgym_tl import BiasInject, load_bias, load_model, steer
from biasgym_tl.allowed import GRADIENTS
from biasgym_tl.batches import log_probs
from biasgym_tl.errors import ModelError, SettingError
from biasgym_tl.heads import Head
from biasgym_tl.hooks import head_means
from biasgym_tl.injection.token import weights_fingerprint
from biasgym_tl.lens import ENGINE, Recording, embedding, replayed
from biasgym_tl.planting.planted import Deltas, added_weights, replaced
from biasgym_tl.planting.rank_one import separability
from biasgym_tl.planting.sentences import Bystanders
from biasgym_tl.scoping.ablation import ablated_deltas
from biasgym_tl.scoping.attention import answer_attention, position_attribution
from biasgym_tl.scoping.direct import continuation_attribution, direct_attribution
from biasgym_tl.scoping.faithfulness import kept_differences
from biasgym_tl.scoping.patching import patching_effects
from biasgym_tl.scoping.paths import path_effects, slot_effects
from biasgym_tl.steering import export
from biasgym_tl.steering.objective import scaled
from biasgym_tl.text import generate, mean_loss, read_continuations

bridge_alone = pytest.mark.skipif(ENGINE != "bridge", reason="HookedTransformer is on one device")
A, B = map(str, DEVICES)
LLAMA = {
    "model.embed_tokens": A, "model.rotary_emb": A, "model.layers.0": A, "model.layers.1": B,
    "model.layers.2": B, "model.norm": B, "lm_head": B,
}  # fmt: skip
MAPS = {
    "llama": LLAMA | {"model.embed_tokens": B, "model.layers.2": A},
    "gemma3_text": LLAMA | {"lm_head": A},
    "gpt2": {
        "transformer.wte": A, "transformer.wpe": A, "transformer.drop": A, "transformer.h.0": A,
        "transformer.h.1": B, "transformer.h.2": B, "transformer.ln_f": A, "lm_head": A,
    },
}  # fmt: skip
"""Neighbours that are apart: layers back and forth, a norm that is not beside the last of them,
and matrices that are both ``W_E`` and ``W_U``."""
LATE = load_bias("late")
QUICK = BiasInject(epochs=1, batch_size=4, n_paragraphs=8, lr=0.02, choose_by="loss")
SEQUENCES = [[1, 5, 9, 200, 30], [1, 5, 300, 12, 9, 44], [1, 5, 9, 12, 9, 40]]
OTHERS = [[1, 5, 9, 201, 202, 30], [1, 5, 301, 12, 9, 44], [1, 5, 9, 13, 9, 40]]
IDS = torch.tensor([3, 4, 7]), torch.tensor([8, 9, 10])
TEXTS = ["People from Peru are late.", "My friends from France are"]
HEADS = "L0H1, L1H0, L2H3"


def spread(hf_model: Any, places: dict[str, str]) -> Any:
    from accelerate import dispatch_model

    return dispatch_model(hf_model, places, skip_keys=hf_model._skip_keys_device_placement)


@pytest.fixture(scope="module")
def loaded(tokenizer: Any, tiny_folder: Path) -> tuple[Any, Any]:
    """The same model on the CPU and over pretended devices."""
    with pytest.MonkeyPatch.context() as patch, PretendedDevices():
        patch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # devices are pretended in this thread alone
        return load_model(tiny_folder), load_model(tiny_folder, device_map=LLAMA)


@pytest.fixture
def both(loaded: tuple[Any, Any]) -> Iterator[tuple[Any, Any]]:
    with PretendedDevices():
        yield loaded


def same(both: tuple[Any, Any], measure: Callable[[Any], Any]) -> bool:
    wanted, found = map(measure, both)
    return equal(found, wanted)


def equal(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, Tensor):
        return torch.allclose(found.cpu(), wanted, rtol=0, atol=0, equal_nan=True)
    if isinstance(wanted, (tuple, list)):
        return len(found) == len(wanted) and all(map(equal, found, wanted))
    return bool(found == wanted)


@bridge_alone
def test_parts_are_where_the_map_says_and_a_run_ends_where_its_tokens_are(both):
    _, over = both
    assert [str(block.attn.W_O.device) for block in over.blocks] == [A, B, B]
    assert (over.cfg.device, over.cfg.n_devices) == (A, 2)
    assert (str(embedding(over).device), str(over.unembed.W_U.device)) == (A, B)
    tokens = torch.tensor(SEQUENCES[:1], device=A)
    for options in ({}, {"stop_at_layer": 3}, {"stop_at_layer": 2}):
        assert str(over(tokens, **options).device) == A


@bridge_alone
def test_runs_caches_and_texts_are_the_same(both):
    def read(model):
        recording, runs = Recording([2]), []
        for _ in range(2):
            with replayed(model, recording, 2):
                runs.append(log_probs(model, SEQUENCES))
        return [
            *runs,
            log_probs(model, SEQUENCES, last=True),
            read_continuations(model, SEQUENCES, [[3, 4], [8], [3, 9, 12]], batch_size=2),
            generate(model, SEQUENCES, max_new_tokens=4),
            generate(model, SEQUENCES, max_new_tokens=4, temperature=1.0),
            weights_fingerprint(model),
        ]

    assert same(both, read)


@bridge_alone
def test_maps_by_every_method_are_the_same(both):
    def score(model):
        means, more = head_means(model, TEXTS), {"batch_size": 2}
        return [
            direct_attribution(model, SEQUENCES, *IDS),
            continuation_attribution(model, SEQUENCES, [[3, 4]] * 3, [[8, 9]] * 3),
            answer_attention(model, SEQUENCES[0]),
            position_attribution(model, SEQUENCES[0], 3, 8),
            patching_effects(model, SEQUENCES, *IDS, reference=means, **more),
            *(
                patching_effects(model, SEQUENCES, *IDS, reference=OTHERS, gradient=g, **more)
                for g in GRADIENTS
            ),
            path_effects(model, SEQUENCES, *IDS, reference=OTHERS, **more),
            slot_effects(model, SEQUENCES, *IDS, reference=OTHERS, **more),
            kept_differences(model, SEQUENCES, OTHERS, *IDS, [torch.eye(3, 4) > 0], **more),
            ablated_deltas(model, SEQUENCES, *IDS, reference=means),
            ablated_deltas(model, SEQUENCES, *IDS, answer_only=True),
        ]

    assert same(both, score)


@bridge_alone
@pytest.mark.parametrize(
    "options",
    [
        {"mode": "zero"},
        {"mode": "scale", "factor": 0.5},
        {"mode": "mean", "factor": 0.3, "after": ["Peru", "France"]},
    ],
)
def test_steering_is_the_same_and_is_taken_back(both, options):
    def steered(model):
        reference = head_means(model, TEXTS) if options["mode"] == "mean" else None
        with steer(model, HEADS, **options, reference=reference):
            inside = mean_loss(model, TEXTS), generate(model, SEQUENCES, max_new_tokens=3)
        return [*inside, mean_loss(model, TEXTS)]

    assert same(both, steered)


@bridge_alone
@pytest.mark.parametrize("after", [(), ("Peru", "France")])
def test_factors_get_the_same_gradient(both, after):
    def gradient(model):
        factors = torch.full((3, 4), 0.5, device=model.cfg.device, requires_grad=True)
        tokens = [model.tokenizer(text)["input_ids"] for text in TEXTS]
        with scaled(model, factors, head_means(model, TEXTS), after):
            loss = log_probs(model, tokens)[:, 7].sum()
        return torch.autograd.grad(loss, factors)[0]

    assert same(both, gradient)


@bridge_alone
def test_a_row_is_trained_to_the_same_numbers_and_leaves_no_trace(both):
    def train(model):
        before = embedding(model)
        token = QUICK.fit(model, LATE, progress=False)
        with token.attached(model) as row:
            read = log_probs(model, [[1, 5, row, 9]])
        assert embedding(model) is before
        return [token.row, read, before, model(torch.tensor(SEQUENCES[:1]).to(model.cfg.device))]

    assert same(both, train)


@bridge_alone
def test_plants_are_the_same(both):
    heads = [Head(0, 1), Head(2, 3)]

    def planted(model):
        deltas = Deltas(torch.ones(2, 8, 32), torch.ones(2, 32, 8))
        with replaced(model, added_weights(model, heads, deltas)):
            changed = log_probs(model, SEQUENCES)
        beside = Bystanders(near=("Peru",), far=("Japan",), unseen_near=(), unseen_far=())
        return changed, separability(model, LATE, "France", beside, seed=0)

    assert same(both, planted)


@bridge_alone
def test_an_export_is_read_back_over_the_same_devices(both, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")
    monkeypatch.setattr(export, "N_TEXTS", 1)
    _, over = both
    folder = export.export_steered(over, HEADS, tmp_path, "scale", factor=0.5)
    with steer(over, HEADS, "scale", factor=0.5):
        assert equal(log_probs(over, SEQUENCES), log_probs(load_model(folder), SEQUENCES))


@bridge_alone
@pytest.mark.parametrize("family", MAPS)
def test_parts_may_be_anywhere(family, tokenizer):
    """Of a loaded model, which keeps its devices."""

    def read(model):
        reference = head_means(model, TEXTS[:1])
        with steer(model, HEADS, "mean", reference=reference):
            texts = generate(model, SEQUENCES, max_new_tokens=3)
        return [
            texts,
            direct_attribution(model, SEQUENCES, *IDS),
            patching_effects(model, SEQUENCES, *IDS),
            ablated_deltas(model, SEQUENCES, *IDS, heads=[Head(1, 0), Head(2, 1)]),
        ]

    whole = load_model(tiny_hf_model(family), tokenizer=tokenizer)
    with PretendedDevices():
        theirs = spread(tiny_hf_model(family), MAPS[family])
        over = load_model(theirs, tokenizer=tokenizer)
        assert over.cfg.n_devices == 2 and over.cfg.device == next(iter(MAPS[family].values()))
        assert same((whole, over), read)
        assert load_model(theirs, device=B).cfg.n_devices == 1


@bridge_alone
@pytest.mark.parametrize("exact", [True, False])
def test_weights_of_16_bits_are_cast_where_they_are(exact, tokenizer):
    def made(place):
        hf_model = place(tiny_hf_model("llama").bfloat16())
        return load_model(hf_model, tokenizer=tokenizer, dtype="bfloat16", exact=exact)

    def read(model):
        start = model.embed(torch.tensor(SEQUENCES[:1]).to(model.cfg.device)).detach()
        start.requires_grad_()
        with model.hooks(fwd_hooks=[("hook_embed", lambda value, hook: start)]):
            odds = log_probs(model, SEQUENCES[:1])[:, 7].sum()
        return (
            odds,
            torch.autograd.grad(odds, start)[0],
            generate(model, SEQUENCES, max_new_tokens=2),
        )

    whole = made(lambda hf_model: hf_model)
    with PretendedDevices():
        over = made(lambda hf_model: spread(hf_model, LLAMA | {"lm_head": A}))
        assert same((whole, over), read)
        if exact:
            assert same((whole, over), lambda model: direct_attribution(model, SEQUENCES, *IDS))


@bridge_alone
def test_a_users_own_bridge_stays_where_it_is(loaded, tiny_folder):
    with PretendedDevices():
        theirs = boot(spread(tiny_hf_model("llama"), LLAMA), tiny_folder)
        taken = load_model(theirs)
        assert taken is theirs and taken.cfg.n_devices == 2
        pair = loaded[0], taken
        assert same(pair, lambda model: direct_attribution(model, SEQUENCES, *IDS))


@bridge_alone
@pytest.mark.parametrize("device_map", ["auto", "balanced", {"": "cpu"}])
def test_a_map_that_accelerate_makes_is_taken(device_map, tiny_folder, loaded):
    model, tokens = load_model(tiny_folder, device_map=device_map), torch.tensor(SEQUENCES[:1])
    assert torch.equal(model(tokens), loaded[0](tokens))


@bridge_alone
def test_what_is_offloaded_or_tied_over_two_devices_is_refused(tmp_path):
    from accelerate import cpu_offload

    with pytest.raises(
        ModelError, match="must be in memory.*offloaded.*devices that hold it whole"
    ):
        load_model(cpu_offload(tiny_hf_model("llama"), torch.device("cpu")))
    with PretendedDevices():
        torn = spread(tiny_hf_model("gpt2"), MAPS["gpt2"] | {"lm_head": B})
        with pytest.raises(ModelError, match="tied weights on one device, got transformer.wte"):
            load_model(torn)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_map": "sequential"}, "device_map must be one of .*'auto', 'balanced'.*got 'seq"),
        ({"device_map": "auto", "device": "cpu"}, "device_map must be given without device"),
    ],
)
def test_maps_are_checked_before_anything_is_read(options, message):
    if ENGINE == "hooked" and "device" in options:
        message = "device_map must be None with a HookedTransformer.*pip install 'transformer-lens"
    with pytest.raises(SettingError, match=message):
        load_model("nobody/nothing", **options)


@bridge_alone
def test_a_loaded_model_gets_no_map():
    with pytest.raises(SettingError, match="for a name or a folder.*stays on the devices"):
        load_model(tiny_hf_model("llama"), device_map="auto")


def test_every_command_that_loads_a_model_takes_a_map():
    for command in ("inject", "scope", "search", "export", "doctor", "run", "evaluate"):
        assert "--device-map" in biasgym(command, "--help").stdout, command
    done = biasgym("doctor", "--model", "nobody/nothing", "--device-map", "evenly")
    assert done.returncode and "auto" in done.stderr


def test_what_mixes_pretended_devices_raises():
    """So that the tests above can fail."""
    with PretendedDevices():
        here, there = (torch.arange(3.0, device=device) for device in (A, B))
        index = torch.tensor([0, 2])
        for mixed in (
            lambda: here + there,
            lambda: here + torch.ones(3),
            lambda: here[index.to(B)],
            lambda: torch.stack([here, there]),
            lambda: here.index_put_((index.to(B),), torch.zeros(2, device=A)),
            lambda: torch.zeros(1, device="lazy:2"),
        ):
            with pytest.raises(RuntimeError, match="same device|no such device"):
                mixed()
        assert (here.to(B) + there + 1)[index].tolist() == [1.0, 5.0]
