"""A selection says what it rests on, and comes back as it was written."""

import dataclasses

import pytest

from biasgym_tl import (
    BiasInject,
    BiasScope,
    Condition,
    HeadScores,
    Selection,
    layer_matched,
    load_bias,
    select_heads,
    steer,
)
from biasgym_tl.biases.countries import load_countries
from biasgym_tl.errors import AttributionError, SettingError, SteeringError, StoreError
from biasgym_tl.passages import load_passages
from biasgym_tl.prompts import encode_sentence
from biasgym_tl.scoping.scores import top_heads
from biasgym_tl.steering.controls import matched_factor
from biasgym_tl.text import next_token_log_probs

LATE = load_bias("late")


@pytest.fixture(scope="module")
def setup(tiny):
    model = tiny()
    token = BiasInject(epochs=1, n_paragraphs=8, choose_by="last").fit(model, LATE, progress=False)
    return model, token, BiasScope().attribute(model, LATE, token)


def test_it_is_the_top_k_and_steers_as_it_is(setup):
    model, _, scores = setup
    selection = select_heads(scores, 3)
    assert tuple(selection) == scores.top(3) and len(selection) == 3
    sequences = [encode_sentence(model, "People from Italy are")]
    with steer(model, selection, selection.mode):
        found = next_token_log_probs(model, sequences)
    with steer(model, scores.top(3), "mean"):
        assert next_token_log_probs(model, sequences).equal(found)


def test_it_comes_back_from_its_file(setup, tmp_path):
    _, _, scores = setup
    selection = select_heads(scores, 3, mode="zero")
    assert Selection.load(selection.save(tmp_path / "selection.json")) == selection
    assert selection.data["texts"] == () and "direct on late, seed 0, zero" in repr(selection)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(StoreError, match="must hold a Selection"):
        Selection.load(tmp_path / "other.json")


def test_it_knows_all_that_it_has_seen_and_nothing_held_out(setup):
    selection = select_heads(setup[2], 3)
    held_out = [target.name for target in load_countries("held-out")]
    prompts = LATE.evaluation_prompts + LATE.generation_prompts
    selection.check_held_out(prompts=prompts, targets=held_out, texts=load_passages("damage"))
    seen = {
        "prompts": LATE.scoping_prompts,
        "targets": setup[2].label_targets,
        "texts": load_passages("reference"),
    }
    for kind, items in seen.items():
        for item in items:
            with pytest.raises(SteeringError, match=f"{kind} of an evaluation must not be"):
                selection.check_held_out(**{kind: [item]})
    with pytest.raises(SteeringError, match="in both"):  # not by a change of case or space
        selection.check_held_out(targets=[f" {setup[2].label_targets[0].upper()}"])


def test_of_several_seeds_it_is_what_they_agree_on(setup):
    model, token, _ = setup
    maps = [BiasScope(seed=seed).attribute(model, LATE, token) for seed in range(3)]
    tops = [set(one.top(6)) for one in maps]
    selection = select_heads(maps, 6)
    assert set(selection) == tops[0] & tops[1] & tops[2] and selection.k == 6
    mean = sum(one.values for one in maps)
    assert list(selection) == sorted(selection, key=lambda head: -mean[head])
    assert set(select_heads(maps, 6, at_least=1)) == tops[0] | tops[1] | tops[2]
    assert selection.settings["seeds"] == [0, 1, 2] and selection.settings["at_least"] == 3
    for one in maps:
        with pytest.raises(SteeringError, match="in both"):
            selection.check_held_out(targets=one.label_targets)


def test_seeds_that_agree_on_nothing_are_no_selection(setup):
    _, _, scores = setup
    opposite = dataclasses.replace(scores, pair_values=-scores.pair_values)
    with pytest.raises(SettingError, match="agree on a head, got 2 with k = 6"):
        select_heads([scores, opposite], 6)


def test_wrong_input(setup):
    with pytest.raises(SettingError, match=r"k must be in 1\.\.12, got 13"):
        select_heads(setup[2], 13)
    with pytest.raises(SteeringError, match="mode must be one of"):
        select_heads(setup[2], 3, mode="average")


def test_without_injection_the_target_stands_on_both_sides(setup):
    model, _, _ = setup
    scores = BiasScope().attribute(model, LATE, None)
    assert scores.token == "no injection"
    assert scores.delta.tolist() == pytest.approx(scores.neutral_delta[:, 0].tolist(), abs=1e-4)
    assert select_heads(scores, 2).token == "no injection"
    words = {f" {word}" for word in LATE.attribute_words}
    assert set(scores.biased_labels) <= words and not set(scores.neutral_labels) & words


def test_heads_are_taken_as_they_are_printed(setup):
    selection = select_heads(setup[2], 3)
    names = [str(head) for head in selection]
    written = (names, ", ".join(names), [[*head] for head in selection])
    draws = [layer_matched(heads, n_heads=4, n_draws=5, seed=0) for heads in (selection, *written)]
    assert all(drawn == draws[0] for drawn in draws)
    factor = dict(zip(names, (0.1, 0.2, 0.3), strict=True))
    by_pairs = {head: factor[str(head)] for head in selection}
    assert matched_factor(names, draws[0][0], factor) == matched_factor(
        selection, draws[0][0], by_pairs
    )
    one, other = (
        Condition("x", setup[1], heads, "scale", factor=kept).uses("row")
        for heads, kept in ((selection, by_pairs), (", ".join(names[::-1]), factor))
    )
    assert one == other


def test_a_head_has_one_factor(setup):
    selection = select_heads(setup[2], 2)
    one, other = selection.heads
    again = dataclasses.replace(selection, heads=(one, other, one))
    assert again == selection
    for heads, factors in (((one, other, one), (0.1, 0.2, 0.3)), ((one, other), (0.5,))):
        with pytest.raises(SteeringError, match="one for each of 2 different heads, got [13] of"):
            dataclasses.replace(selection, heads=heads, factors=factors)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_no_head_is_chosen_by_what_is_no_number(setup, value):
    scores = dataclasses.replace(setup[2])
    broken = scores.pair_values.clone()
    broken[1, 2, 3] = value
    with pytest.raises(AttributionError, match=r"pair_values must be finite, got NaN .* of L2H3\."):
        dataclasses.replace(scores, pair_values=broken)
    with pytest.raises(AttributionError, match=r"^values must be finite"):
        top_heads(broken[1], 2)
    object.__setattr__(scores, "pair_values", broken)  # as an older version may have saved it
    with pytest.raises(AttributionError, match=r"values must be finite"):
        select_heads(scores, 2)


def test_scores_that_were_saved_broken_are_refused(setup, tmp_path):
    scores = dataclasses.replace(setup[2])
    broken = scores.pair_values.clone()
    broken[:, 0] = float("nan")
    object.__setattr__(scores, "pair_values", broken)
    path = scores.save(tmp_path / "scores")
    with pytest.raises(StoreError, match=r"pair_values must be finite, got .*L0H0, L0H1, L0H2 and"):
        HeadScores.load(path)
