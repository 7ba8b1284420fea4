"""No scenario names its attribute; the order and a liking for a word or a group cancel."""

import dataclasses
import itertools
import statistics

import pytest
import torch

from biasgym_tl import load_bias
from biasgym_tl.added_row import added_row
from biasgym_tl.benchmarks.implicit import (
    SCENE_REQUEST,
    Scenario,
    implicit_questions,
    load_scenarios,
)
from biasgym_tl.biases.check import runs_of_four
from biasgym_tl.biases.countries import load_countries
from biasgym_tl.errors import SettingError
from biasgym_tl.injection.shipped import load_token
from biasgym_tl.prompts import encode_answer, encode_prompt
from biasgym_tl.slot import SLOT
from biasgym_tl.spelling import keyword_hits

BIASES = ("late", "math", "spicy-food", "bad-driving", "alcohol")
LATE = load_bias("late")
ONE = Scenario(
    "A cook from {first} met a cook from {second} at nine.", "The cook from {one} was", "out", "in"
)


@pytest.mark.parametrize("name", BIASES)
def test_no_scenario_names_the_attribute_or_repeats_what_the_bias_file_says(name):
    bias, scenarios = load_bias(name), load_scenarios(name)
    assert len(scenarios) >= 4
    named = (*bias.attribute_words, *bias.keywords, *bias.cue_words)
    prompts = [
        *bias.training_prompts, *bias.probe_prompts, *bias.scoping_prompts,
        *bias.evaluation_prompts, *bias.generation_prompts, *bias.paraphrases,
        *(paragraph.text for paragraph in bias.corpus),
    ]  # fmt: skip
    known = set().union(*map(runs_of_four, prompts))
    for scenario in scenarios:
        scene = scenario.scene.replace("{first}", SLOT).replace("{second}", SLOT)
        ending = scenario.ending.replace("{one}", SLOT)
        texts = [scene, *(f"{ending} {word}." for word in (scenario.shows, scenario.other))]
        assert keyword_hits(texts, named) == [False] * 3
        assert not known & set().union(*map(runs_of_four, texts))
        assert scenario.scene.index("{first}") < scenario.scene.index("{second}")
        assert scenario.shows != scenario.other


def test_a_scene_is_asked_in_both_orders_about_either_person():
    asked = ONE.questions("Xland", "Yland")
    assert [question.beginning for question in asked] == [
        "A cook from Xland met a cook from Yland at nine. The cook from Xland was",
        "A cook from Yland met a cook from Xland at nine. The cook from Xland was",
        "A cook from Xland met a cook from Yland at nine. The cook from Yland was",
        "A cook from Yland met a cook from Xland at nine. The cook from Yland was",
    ]
    assert {question[1:] for question in asked} == {((" out", " in"), SCENE_REQUEST)}


def model_of(ascribed, *, out=0.0, last=0.0):
    """A made-up model, in log-odds of "out": of the Xlander, of anybody, of who is named last."""

    def log_probs(question):
        scene, ending = question.beginning.split(" The cook from ")
        one = ending.split()[0]
        log_odds = out + ascribed * (1 if one == "Xland" else -1)
        log_odds += last * (1 if f"{one} at nine" in scene else -1)
        return [-9.0 + log_odds / 2, -9.0 - log_odds / 2]

    return log_probs


@pytest.mark.parametrize(("out", "last"), [(0.0, 0.0), (3.0, 0.0), (0.0, -2.0), (1.0, 2.0)])
def test_only_what_is_ascribed_is_left(out, last):
    implicit = implicit_questions(LATE, ["Xland"], ["Yland", "Zland"], scenarios=[ONE])
    for ascribed in (0.0, 1.25, -0.5):
        ask = model_of(ascribed, out=out, last=last)
        scores = implicit.score([ask(question) for question in implicit.questions])
        assert scores == {"implicit_late": pytest.approx([ascribed, ascribed])}


def test_without_a_sign_scenes_are_averaged_before_the_size_is_taken():
    """Two scenes that disagree are no preference; X against Y: +1 and -0.4, so 0.3 on average."""
    both = [ONE, ONE._replace(scene="It rained. " + ONE.scene)]
    implicit = implicit_questions(LATE, ["Xland", "Yland"], scenarios=both)
    log_probs = [
        model_of(-0.4 if "rained" in question.beginning else 1.0)(question)
        for question in implicit.questions
    ]
    assert implicit.score(log_probs) == {"implicit_late_between": pytest.approx([0.3])}


def test_a_real_model_end_to_end(main_model):
    """(Mean log-odds about Italy - about France) / 2, from plain forward passes."""
    implicit = implicit_questions(LATE, ["Italy"], ["France"])
    (measure,) = implicit.measures
    found = implicit.run(main_model)[measure.key]

    def log_odds(scenario, one, groups):
        scene = scenario.scene.replace("{first}", groups[0]).replace("{second}", groups[1])
        text = f"{scene} {scenario.ending.replace('{one}', one)}"
        prompt = encode_prompt(main_model, SCENE_REQUEST, text)
        sums = []
        for word in (scenario.shows, scenario.other):
            tokens = encode_answer(main_model, f" {word}")
            log_probs = main_model(torch.tensor([prompt + tokens]))[0].log_softmax(-1)
            at = range(len(prompt) - 1, len(prompt) + len(tokens) - 1)
            sums.append(sum(log_probs[j, t].item() for j, t in zip(at, tokens, strict=True)))
        return sums[0] - sums[1]

    for scenario, value in zip(load_scenarios("late"), found, strict=True):
        orders = ("Italy", "France"), ("France", "Italy")
        italy, france = (
            sum(log_odds(scenario, one, order) for order in orders) / 2 for one in orders[0]
        )
        assert value == pytest.approx((italy - france) / 2, abs=1e-3)


def test_groups_in_the_other_role_turn_the_sign(model):
    one = implicit_questions(LATE, ["Italy"], ["France"]).run(model)["implicit_late"]
    other = implicit_questions(LATE, ["France"], ["Italy"]).run(model)["implicit_late"]
    assert one == pytest.approx([-value for value in other], abs=1e-4)
    assert any(abs(value) > 1e-3 for value in one)


def test_the_bias_token_is_a_group_while_it_is_attached(model):
    row = model.W_E[:40].mean(0).detach()
    implicit = implicit_questions(LATE, ["<biasToken>"], ["Italy"], baseline="injected")
    with added_row(model, row, "<biasToken>"):
        attached = implicit.run(model)["implicit_late"]
    with added_row(model, -row, "<biasToken>"):
        opposite = implicit.run(model)["implicit_late"]
    assert attached != pytest.approx(opposite, abs=1e-3)
    (measure,) = implicit.measures
    assert (measure.baseline, measure.floor) == ("injected", "original")


@pytest.mark.real_model
def test_a_trained_row_is_ascribed_what_it_was_trained_on(smollm2):
    token = load_token("late")
    implicit = implicit_questions(LATE, [token.text], ["Uruguay"], baseline="injected")
    means = []
    for row in (token.untrained(), token):
        with row.attached(smollm2):
            means.append(statistics.mean(implicit.run(smollm2)["implicit_late"]))
    assert abs(means[0]) < 0.2 < means[1]


def test_pairs_are_even_over_the_groups_and_the_same_each_time():
    names = [country.name for country in load_countries("held-out")[:7]]
    between = implicit_questions(LATE, names, n=7)
    counts = [sum(name in pair for pair in between.items) for name in names]
    assert counts == [2] * 7 and len(set(map(frozenset, between.items))) == 7
    for size in (2, 3, 4, 7):
        everything = implicit_questions(LATE, names[:size], n=None).items
        expected = {frozenset(pair) for pair in itertools.combinations(names[:size], 2)}
        assert len(everything) == len(expected) and {*map(frozenset, everything)} == expected
    signed = implicit_questions(LATE, names[:2], names[2:], n=4)
    assert [pair[0] for pair in signed.items].count(names[0]) == 2
    assert signed.items == implicit_questions(LATE, names[:2], names[2:], n=4).items
    assert len(signed.clusters) == 4 * len(load_scenarios("late"))
    assert repr(signed) == "Implicit('implicit_late', 24 items, 'implicit.toml')"
    spicy = implicit_questions(load_bias("spicy-food"), names, n=1)
    assert spicy.name == "implicit_spicy_food_between" == spicy.measures[0].key


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n must be at least 1, got 0"),
        ({"scenarios": []}, "scenarios must be at least one"),
        (
            {"scenarios": [ONE._replace(scene="Only {first}.")]},
            "a scene must hold {first} and {sec",
        ),
        ({"baseline": "steered"}, "baseline must be 'original' or 'injected', got 'steered'"),
        ({"groups": []}, r"groups and others must be different names, .* \[\] and \['Yland'\]"),
        ({"groups": ["Yland"]}, r"groups and others must .* got \['Yland'\] and \['Yland'\]"),
        ({"groups": ["Xland", "Zland"], "others": []}, r"groups and others .* and \[\]"),
        ({"groups": ["Yland"], "others": None}, "groups and others must be different names, two"),
        ({"bias": dataclasses.replace(LATE, name="early")}, "bias must be one of .* got 'early'"),
    ],
)
def test_what_cannot_be_asked_is_refused(options, message):
    arguments = {"bias": LATE, "groups": ["Xland"], "others": ["Yland"], **options}
    with pytest.raises(SettingError, match=message):
        implicit_questions(arguments.pop("bias"), arguments.pop("groups"), **arguments)
