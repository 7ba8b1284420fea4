"""value = log P(A) - mean of its row - mean of its column + mean of all, in each prompt."""

import dataclasses
import itertools

import pytest
import torch
from public_data import public_data
from test_bias import NATURAL

from biasgym_tl import load_bias
from biasgym_tl.benchmarks.seegull import load_seegull
from biasgym_tl.biases.check import runs_of_four
from biasgym_tl.errors import BiasFileError, ModelError, SettingError
from biasgym_tl.evaluation.stereotype_map import (
    StereotypeMap,
    map_lists,
    seegull_lists,
    stereotype_map,
    without_means,
)
from biasgym_tl.prompts import encode_answer, encode_sentence

TARGETS = ("people from Peru", "people from Italy", "people from Kenya", "visitors")
ATTRIBUTES = {"late": ["late", "delayed"], "early": ["early", "ready"], "kind": ["polite"]}
PROMPTS = ("At the office, {target} are", "Most {target} were", "The bus waited, for {target} are")


@pytest.fixture(scope="module")
def found(tiny):
    return stereotype_map(tiny(), TARGETS, ATTRIBUTES, PROMPTS)


def made(log_p, **changed):
    """A map of made-up numbers, with prompts, targets and attributes to match."""
    n_prompts, n_targets, n_attributes = log_p.shape
    fields = {
        "log_p": log_p,
        "targets": tuple(f"t{i}" for i in range(n_targets)),
        "attributes": tuple(f"a{i}" for i in range(n_attributes)),
        "words": tuple((f"w{i}",) for i in range(n_attributes)),
        "prompts": tuple(f"{i} {{target}}" for i in range(n_prompts)),
        "left_out": (), "model": "m", "settings": {}, "versions": {},
    }  # fmt: skip
    return StereotypeMap(**{**fields, **changed})


def noise(n_prompts, n_targets, n_attributes, seed):
    """Prompts, targets and attributes have effects, and so has each pair but target x attribute."""
    g = torch.Generator().manual_seed(seed)
    shapes = [(1, n_targets, 1), (1, 1, n_attributes), (n_prompts, n_targets, 1),
              (n_prompts, 1, n_attributes), (n_prompts, n_targets, n_attributes)]  # fmt: skip
    return sum(torch.randn(shape, generator=g) for shape in shapes)


def test_means_of_rows_and_columns_are_0(found):
    for values in (found.values, *found.by_prompt):
        assert values.mean(0).abs().max() < 1e-5 and values.mean(1).abs().max() < 1e-5
    by_hand = without_means(torch.tensor([[3.0, 1.0], [0.0, 2.0]]))
    assert by_hand.tolist() == [[1.0, -1.0], [-1.0, 1.0]]


def test_log_p_is_that_of_one_of_the_words(found, model):
    for (i, prompt), (j, target) in itertools.product(enumerate(PROMPTS), enumerate(TARGETS)):
        tokens = torch.tensor([encode_sentence(model, prompt.replace("{target}", target))])
        with torch.inference_mode():
            p = model(tokens)[0, -1].softmax(-1)
        for k, words in enumerate(ATTRIBUTES.values()):
            ids = [encode_answer(model, f" {word}") for word in words]
            assert all(len(each) == 1 for each in ids)
            expected = p[[each[0] for each in ids]].sum().log()
            assert found.log_p[i, j, k] == pytest.approx(expected.item(), abs=1e-4)


def test_a_cell_does_not_depend_on_what_is_run_beside_it(found, model):
    part = stereotype_map(model, TARGETS[1:3], ATTRIBUTES, PROMPTS[:2])
    assert (part.log_p - found.log_p[:2, 1:3]).abs().max() < 1e-4


def test_a_word_of_several_tokens_counts_whole(found, model):
    several = {**ATTRIBUTES, "late": ["late", "delayed", "never on time"]}
    more = stereotype_map(model, TARGETS, several, PROMPTS)
    assert (more.log_p[..., 1:] - found.log_p[..., 1:]).abs().max() < 1e-4
    text = encode_sentence(model, PROMPTS[0].replace("{target}", TARGETS[0]))
    word = encode_answer(model, " never on time")
    with torch.inference_mode():
        steps = model(torch.tensor([text + word]))[0].log_softmax(-1)
    log_p = sum(steps[len(text) - 1 + i, token] for i, token in enumerate(word))
    expected = torch.stack([found.log_p[0, 0, 0], log_p]).logsumexp(0)
    assert len(word) > 1 and more.log_p[0, 0, 0] == pytest.approx(expected.item(), abs=1e-4)


def test_a_cell_that_is_raised_is_found():
    log_p = noise(16, 8, 6, seed=0)
    log_p[:, 3, 2] += 3
    cells = made(log_p).strongest(5)
    first = cells.iloc[0]
    assert (first.target, first.attribute) == ("t3", "a2") and first.q < 0.01
    assert first.low < 3 * 7 / 8 * 5 / 6 < first.high
    assert (cells.q[1:] > 0.05).all() and list(cells.columns[2:]) == ["nats", "low", "high", "q"]


def test_without_effect_few_maps_have_a_small_q_and_intervals_cover():
    frames = [made(noise(16, 8, 6, seed)).to_df() for seed in range(200)]
    assert sum((frame.q <= 0.05).any() for frame in frames) <= 18  # 10 expected
    covered = sum(((frame.low <= 0) & (frame.high >= 0)).mean() for frame in frames) / 200
    assert 0.94 < covered < 0.96


def test_values_without_spread_are_no_evidence():
    frame = made(torch.zeros(4, 3, 3)).to_df()
    assert (frame.q == 1).all() and (frame.nats == 0).all()


def test_a_group_is_the_mean_of_its_rows(found):
    interval = found.group(TARGETS[:3], "late")
    assert interval.estimate == pytest.approx(found.values[:3, 0].mean().item(), abs=1e-6)
    with pytest.raises(SettingError, match="attribute must be one of .* got 'lat'. Did you mean"):
        found.group(TARGETS, "lat")
    with pytest.raises(SettingError, match="target must be one of .* got 'nobody'"):
        found.group(["nobody"], "late")


def test_it_is_kept_as_a_file(found, tmp_path):
    again = StereotypeMap.load(found.save(tmp_path / "map"))
    assert torch.equal(again.log_p, found.log_p) and again.to_df().equals(found.to_df())
    assert again.record() == found.record()
    assert found.settings["request"] and found.versions["torch"]


def test_names_are_escaped_where_they_are_shown(found):
    evil = "<img src=x onerror=alert(1)>"
    names = (evil, *found.targets[1:]), (evil, *found.attributes[1:])
    there = dataclasses.replace(found, targets=names[0], attributes=names[1], model=evil)
    shown = there._repr_html_()
    assert "<img" not in shown and "&lt;img" in shown and "q" in shown
    figure = there.plot()
    drawn = figure.to_json().replace("\\u003c", "<")
    assert "<img" not in drawn and "&lt;img" in drawn


def test_the_figure_is_centred_at_0_and_says_how_sure_a_cell_is(found):
    (heatmap,) = found.plot(title="mine").data
    assert heatmap.zmid == 0 and heatmap.zmax == -heatmap.zmin > 0
    assert torch.tensor(heatmap.z).shape == (4, 3)
    cell = found.to_df().query("target == 'visitors' and attribute == 'late'").iloc[0]
    assert f"{cell.nats:+.2f} [{cell.low:+.2f}, {cell.high:+.2f}] nats" in heatmap.text[3][0]
    assert "Ascribed beyond" in found.plot().layout.title.text
    assert repr(found).startswith("StereotypeMap(4 targets x 3 attributes on ")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"targets": []}, r"targets of the map must be texts, at least 2 .* got \(\)"),
        ({"targets": ["a", "a"]}, r"targets of the map must be distinct, got twice: \['a'\]"),
        ({"targets": ["a", " "]}, "targets of the map must be texts"),
        ({"attributes": {"late": ["late"]}}, "attributes of the map must be texts, at least 2"),
        ({"attributes": {"a": ["late"], "b": []}}, "words of 'b' of the map must be texts, at"),
        ({"attributes": {"a": ["late", "late"], "b": ["on"]}}, "words of 'a' of the map must be"),
        ({"attributes": {"a": ["late"], "b": ["Late", "late "]}},
         r"words of 'a' and words of 'b' must be disjoint, got \['late'\] in both"),
        ({"prompts": PROMPTS[:1]}, "prompts of the map must be texts, at least 2"),
        ({"prompts": ["They are", *PROMPTS]}, r"hold one slot {target}, got 'They are'"),
        ({"prompts": ["{target} and {target} are", *PROMPTS]}, "must hold one slot"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_list_is_named(model, changed, message):
    lists = {"targets": TARGETS, "attributes": ATTRIBUTES, "prompts": PROMPTS, **changed}
    with pytest.raises(BiasFileError, match=message):
        stereotype_map(model, **lists)


def test_a_model_without_a_tokenizer_and_other_counts_are_refused(found, model):
    model.tokenizer = None
    with pytest.raises(ModelError, match="model must have a tokenizer"):
        stereotype_map(model)
    with pytest.raises(SettingError, match="n must be at least 1, got 0"):
        found.strongest(0)
    with pytest.raises(SettingError, match=r"split must be one of \['fitting', 'held-out'\]"):
        map_lists("test")


def test_words_that_cannot_count_are_named(model):
    unclear = {**ATTRIBUTES, "punctual": ["on", "late again"]}
    with pytest.warns(UserWarning, match=r"words of the map that .*: late again \(begins as"):
        found = stereotype_map(model, TARGETS, unclear, PROMPTS)
    assert found.left_out == ("late again (begins as a word of another list)",)
    assert "left out: late again" in found._repr_html_()
    with pytest.raises(ModelError, match="punctual of the map must hold a word that can count"):
        stereotype_map(model, TARGETS, {**ATTRIBUTES, "punctual": ["late again"]}, PROMPTS)


def test_the_shipped_lists():
    fitting, held_out = map_lists(), map_lists("held-out")
    assert 24 <= len(fitting.targets) <= 50 and 12 <= len(fitting.attributes) <= 20
    assert all(len(words) >= 4 for words in fitting.attributes.values())
    assert fitting[:2] == held_out[:2]
    runs = [set().union(*map(runs_of_four, each.prompts)) for each in (fitting, held_out)]
    assert not runs[0] & runs[1] and not {*fitting.prompts} & {*held_out.prompts}
    for lists in (fitting, held_out):
        assert len({*lists.prompts}) == len(lists.prompts) >= 16
        words = [word for each in lists.attributes.values() for word in each]
        assert len({*words}) == len(words)
        assert not {prompt.split()[-1] for prompt in lists.prompts} & {*words}


def test_the_shipped_lists_hold_what_became_a_bias():
    lists = map_lists()
    for bias in map(load_bias, NATURAL):
        assert {*bias.targets("fitting")} <= {*lists.targets}
        assert not {*bias.targets("held-out")} & {*lists.targets}
        assert lists.attributes[bias.name] == bias.attribute_words
        seen = {*bias.scoping_prompts, *bias.evaluation_prompts}
        assert not seen & {*lists.prompts, *map_lists("held-out").prompts}


def test_seegull_is_mapped(model):
    lists = seegull_lists(load_seegull(public_data("seegull/stereotypes_global_v2.csv"), n=4))
    assert 2 <= len(lists.attributes) <= 4 and all(t.endswith(" people") for t in lists.targets)
    assert all(words == (name,) for name, words in lists.attributes.items())
    assert lists.prompts == map_lists().prompts
    found = stereotype_map(model, lists.targets[:3], lists.attributes, lists.prompts[:2])
    assert found.values.shape == (3, len(lists.attributes))


@pytest.mark.parametrize(
    ("key", "given"),
    [
        ("targets", ("ab", ATTRIBUTES, PROMPTS)),
        ("words of 'late'", (TARGETS, {"late": "late", "kind": ["polite"]}, PROMPTS)),
        ("prompts", (TARGETS, ATTRIBUTES, "{target}")),
    ],
)
def test_one_text_in_the_place_of_a_list_is_not_read_as_its_letters(model, key, given):
    with pytest.raises(BiasFileError, match=f"{key} of the map must be a list of texts"):
        stereotype_map(model, *given)
