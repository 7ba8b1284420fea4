"""Biases planted in chosen heads: only these change, and what carries the bias is known."""

import dataclasses
import math

import pytest
import torch

from biasgym_tl import BiasScope, Head, load_bias, select_heads
from biasgym_tl.elicitation import bias_log_odds
from biasgym_tl.errors import ModelError, PlantingError, SettingError
from biasgym_tl.lens import attention_weight, named_weights
from biasgym_tl.planting.measure import N_PROMPTS
from biasgym_tl.planting.plant import plant
from biasgym_tl.planting.planted import Limits, Planted
from biasgym_tl.planting.rank_one import separability
from biasgym_tl.planting.recovery import auroc, recovery, removal
from biasgym_tl.planting.sentences import beginnings, bystanders, target_token
from biasgym_tl.prompts import encode_answer, encode_text
from biasgym_tl.store import digest

LATE = load_bias("late")
LOOSE = Limits(target=0.2, neighbours=99, others=99, facts=1, loss=99)
WRITER, RELAY = Head(2, 1), Head(0, 2)


OWN = 31


@pytest.fixture(scope="module")
def model(tiny, target):
    """The target's row lies along one dimension that no other token and no part uses, and heads
    read all positions alike, so that each sees the target in any prompt."""
    model = tiny("llama")
    (token,) = encode_answer(model, f" {target}")
    for name, weight in named_weights(model):
        if name == "embed.W_E":
            weight[:, OWN] = 0
            weight[token] = 4 * torch.eye(32)[OWN]
        elif name.endswith(("W_Q", "b_Q")):
            weight.zero_()
        elif name.endswith("W_V"):
            weight[:, OWN] *= 20
        elif name.endswith(("W_O", "b_O", "W_out", "b_out")):
            weight *= 0.1
            weight[..., OWN] = 0
    return model


@pytest.fixture(scope="module")
def target(tokenizer):
    names = LATE.targets("held-out")
    return next(n for n in names if len(tokenizer(f" {n}")["input_ids"]) == 1)


@pytest.fixture(scope="module")
def made(model, target):
    """A plant of each way."""

    def make(way, heads, **options):
        options = {"dose": 0.5, "limits": LOOSE, "progress": False, **options}
        return plant(model, LATE, heads, target, way=way, **options)

    return {
        "trained": make("trained", [WRITER, RELAY], n_steps=100, dose=3.0),
        "rank one": make("rank one", [WRITER]),
        "relay": make("relay", [RELAY]),
    }


def weights(model):
    return {
        name: digest(weight.detach().numpy().tobytes()) for name, weight in named_weights(model)
    }


def logits(model):
    return model(torch.tensor([encode_text(model, "People from France are late.")]))


@pytest.mark.parametrize("way", ["trained", "rank one", "relay"])
def test_only_the_chosen_heads_change_and_all_comes_back(model, made, way):
    before, said, parameters = weights(model), logits(model), dict(model.named_parameters())
    own = {n: [attention_weight(model, i, n) for i in range(3)] for n in ("W_O", "W_Q")}
    with made[way].attached(model):
        changed = {name for name, value in weights(model).items() if value != before[name]}
        names = ("W_O", "W_Q") if way == "trained" else ("W_O",)
        layers = {head.layer for head in made[way].heads}
        assert changed == {f"blocks.{layer}.attn.{name}" for layer in layers for name in names}
        for layer in layers:
            some = [h.head for h in made[way].heads if h.layer == layer]
            rest = [h for h in range(4) if h not in some]
            for name in names:
                new, old = attention_weight(model, layer, name), own[name][layer]
                assert torch.equal(new[rest], old[rest]) and not torch.equal(new[some], old[some])
    assert weights(model) == before and torch.equal(logits(model), said)
    assert all(parameters[name] is p for name, p in model.named_parameters())
    with pytest.raises(RuntimeError), made[way].attached(model):
        raise RuntimeError
    assert torch.equal(logits(model), said)


@pytest.mark.parametrize("way", ["trained", "rank one", "relay"])
def test_the_target_rises_as_the_report_says(model, target, made, way):
    def level():
        found = bias_log_odds(model, LATE, LATE.evaluation_prompts[:N_PROMPTS], [target])
        return found.log_odds.double().mean().item()

    before = level()
    with made[way].attached(model):
        assert level() - before == pytest.approx(made[way].report["target"], abs=1e-5)
    assert made[way].report["target"] > 0.2


def test_the_truth_of_a_head_is_what_its_own_weights_do(model, target, made):
    planted, prompts = made["trained"], LATE.evaluation_prompts[:N_PROMPTS]

    def level(heads):
        with planted.attached(model, heads):
            found = bias_log_odds(model, LATE, prompts, [target])
            return found.log_odds.double().mean().item()

    whole, none = level(planted.heads), level([])
    for head, restored, alone in zip(planted.heads, planted.restored, planted.alone, strict=True):
        rest = [other for other in planted.heads if other != head]
        assert restored.item() == pytest.approx(whole - level(rest), abs=1e-5)
        assert alone.item() == pytest.approx(level([head]) - none, abs=1e-5)
    single = made["rank one"]
    assert single.restored.item() == pytest.approx(single.alone.item(), abs=1e-5)
    assert single.carriers() == (WRITER,)
    assert single.map_of_truth().nonzero().tolist() == [list(WRITER)]


def test_rank_one_is_of_rank_one_and_writes_least_elsewhere(made):
    for way in ("rank one", "relay"):
        (change,) = made[way].W_O
        size = torch.linalg.svdvals(change)
        assert size[1] < 1e-5 * size[0] and made[way].W_Q is None


def test_direct_attribution_finds_the_writer_and_misses_the_relay(model, target, made):
    """A map by ablation finds both."""
    token = target_token(model, LATE, target)
    for way, head in (("rank one", WRITER), ("relay", RELAY)):
        found = {}
        for method in ("direct", "mean_ablation"):
            scope = BiasScope(method=method, contrast="difference")
            base = scope.attribute(model, LATE, token, progress=False)
            with made[way].attached(model):
                after = scope.attribute(model, LATE, token, progress=False)
            rise = after.values - base.values
            found[method] = rise[head].item()
            assert recovery(after, made[way], base=base).carriers == (head,)
        if way == "rank one":
            assert found["direct"] > 0.2
        else:
            assert abs(found["direct"]) < 0.3 * found["mean_ablation"]
        assert found["mean_ablation"] > 0.1


def test_a_target_as_a_token_is_the_target(model, target):
    token = target_token(model, LATE, target)
    prompts = LATE.evaluation_prompts[:3]
    with token.attached(model):
        ours = bias_log_odds(model, LATE, prompts, [token.text])
    assert torch.equal(ours.log_odds, bias_log_odds(model, LATE, prompts, [target]).log_odds)


def test_a_sham_changes_as_much_and_means_nothing(model, target, made):
    sham = plant(model, LATE, [WRITER], target, dose=0.5, way="sham", limits=LOOSE, progress=False)
    assert sham.W_O.norm().item() == pytest.approx(made["rank one"].W_O.norm().item(), rel=1e-3)
    assert abs(sham.report["target"]) < 1


def test_a_plant_is_one_file(model, made, tmp_path):
    planted = made["trained"]
    found = Planted.load(planted.save(tmp_path / "plant"))
    assert found.record() == planted.record() and torch.equal(found.W_Q, planted.W_Q)
    assert found.heads == planted.heads and "Planted(late about" in repr(found)
    with planted.attached(model):
        wanted = logits(model)
    with found.attached(model):
        assert torch.equal(logits(model), wanted)
    assert list(found.truth()["restored"]) == sorted(found.restored.tolist(), reverse=True)


def test_the_same_seed_makes_the_same_plant(model, target, made):
    again = plant(model, LATE, [RELAY], target, dose=0.5, way="relay", limits=LOOSE, progress=False)
    assert torch.equal(again.W_O, made["relay"].W_O)


def test_what_cannot_be_planted_is_refused(model, target, made, tiny):
    with pytest.raises(
        PlantingError, match=r"must be specific, got target .* \(limit 99\)"
    ) as found:
        plant(model, LATE, [WRITER], target, way="rank one", limits=LOOSE._replace(target=99.0))
    assert found.value.planted.heads == (WRITER,)
    with pytest.raises(PlantingError, match="one token of the model, got 'Far Away'"):
        plant(model, LATE, [WRITER], "Far Away")
    with pytest.raises(SettingError, match="way must be one of"):
        plant(model, LATE, [WRITER], target, way="magic")
    for other, heads, error, message in (
        (model, [(1, 1)], PlantingError, "must be planted ones, got L1H1"),
        (tiny("llama", 1), None, ModelError, "for which the plant was made"),
    ):
        with pytest.raises(error, match=message):
            made["relay"].attached(other, heads).__enter__()
    with made["relay"].attached(model), pytest.raises(ModelError, match="one plant at a time"):
        made["relay"].attached(model).__enter__()
    with pytest.raises(PlantingError, match="norm after attention"):
        plant(tiny("gemma2"), LATE, [WRITER], target, way="rank one")


def test_sentences_end_before_the_attribute():
    found = beginnings(LATE)
    assert "Because people from {target} are" in found and len(found) > 20
    assert not any(word in text.split() for text in found for word in LATE.attribute_words[:1])


def test_bystanders_are_apart(model, target):
    found = bystanders(model, LATE, target, seed=0)
    every = [name for group in found for name in group]
    assert len(every) == len(set(every)) and target not in every
    assert {*found.near, *found.far} == {*LATE.targets("fitting")}
    assert {*found.unseen_near, *found.unseen_far} <= {*LATE.targets("held-out")}


def test_heads_tell_the_target_apart_that_reads_like_nothing_else(model, target):
    other = next(n for n in LATE.targets("fitting") if n != target)
    ours, theirs = (
        separability(model, LATE, name, bystanders(model, LATE, name, seed=0), seed=0)
        for name in (target, other)
    )
    assert ours.shape == (3, 4) and (theirs > 0).all()
    assert ours.mean() > 5 * theirs.mean()


def test_auroc_by_hand():
    values, wanted = torch.tensor([3.0, 2.0, 2.0, 0.0]), torch.tensor([True, True, False, False])
    assert auroc(values, wanted) == (1 + 1 + 0.5 + 1) / 4
    assert auroc(-values, wanted) == 1 - auroc(values, wanted)
    assert math.isnan(auroc(values, torch.ones(4, dtype=torch.bool)))


def test_recovery_of_maps_that_are_known(model, target, made):
    planted = made["trained"]
    scope, token = BiasScope(), target_token(model, LATE, target)
    base = scope.attribute(model, LATE, token, progress=False)

    def scored(values):
        pairs = values.double().expand(len(base.prompts), -1, -1).clone()
        return dataclasses.replace(base, pair_values=pairs)

    truth = planted.map_of_truth()
    best = recovery(scored(truth), planted, base=base)
    assert best.auroc == best.precision == 1 and best.correlation == pytest.approx(1)
    assert best.ranks == tuple(range(1, len(planted.carriers()) + 1))
    assert best.chance[0] < 1 and best.readers == ()
    worst = recovery(scored(-truth), planted)
    assert worst.auroc == 0 and worst.auroc_before is None
    reader = Head(1, 3)
    truth[reader] = truth.max() + 1
    assert reader in recovery(scored(truth), planted, base=scored(truth * 0)).readers
    chosen = select_heads(scored(planted.map_of_truth()), 1)
    assert recovery(chosen, planted).ranks[0] == 1
    with pytest.raises(PlantingError, match="a model of 2 layers of 4 heads"):
        recovery(base, dataclasses.replace(planted, n_layers=2))


def test_removal_is_read_against_the_model_before(model, made):
    planted = made["rank one"]
    found = removal(model, LATE, planted, [WRITER], n_random=2)
    assert found.removed == found.removed_planted and found.kl == found.kl_planted
    assert found.kl_unsteered > 0 and len(found.removed_random) == 2
    none = removal(model, LATE, planted, [(0, 0)], n_random=1)
    assert none.removed != found.removed
