"""A bias given by its name is the bias of that name, at every entry that takes one."""

import dataclasses

import pytest
import torch

from biasgym_tl import (
    BiasInject,
    BiasScope,
    bias_log_odds,
    check_bias,
    evaluate,
    examine,
    load_bias,
    random_control,
    target_means,
)
from biasgym_tl.benchmarks.implicit import implicit_questions
from biasgym_tl.biases.facts import Fact, fact_margins
from biasgym_tl.biases.given import as_bias, as_biases
from biasgym_tl.biases.shuffle import shuffled
from biasgym_tl.biases.writer import Contrast
from biasgym_tl.errors import BiasFileError
from biasgym_tl.injection.report import injection_report
from biasgym_tl.slot import spaced

pytestmark = pytest.mark.usefixtures("few_facts")
LATE = load_bias("late")
QUICK = BiasInject(epochs=1, n_paragraphs=8, batch_size=4, choose_by="last")


@pytest.fixture(scope="module")
def setup(tiny):
    model = tiny()
    return model, QUICK.fit(model, "late", progress=False)


def test_a_name_a_file_and_a_bias_are_the_same(tmp_path):
    path = LATE.save(tmp_path / "mine.toml") if hasattr(LATE, "save") else None
    assert as_bias("late") == as_bias(LATE) == LATE
    assert as_biases(["late", LATE]) == (LATE, LATE) and as_biases(()) == ()
    assert path is None or as_bias(path) == LATE
    with pytest.raises(BiasFileError, match="bias must be one of .*got 'lates'"):
        as_bias("lates")


def test_training_scoping_and_references_take_the_name(setup):
    model, token = setup
    assert torch.equal(QUICK.fit(model, LATE, progress=False).row, token.row)
    by_name, by_bias = (BiasScope().attribute(model, bias, token) for bias in ("late", LATE))
    assert torch.equal(by_name.values, by_bias.values) and by_name.bias == "late"
    assert torch.equal(target_means(model, "late"), target_means(model, LATE))
    assert shuffled("late") == shuffled(LATE)
    asked = [implicit_questions(bias, ["Italy"], ["Spain"]) for bias in ("late", LATE)]
    assert asked[0] == asked[1]
    for about in (lambda bias: injection_report(model, bias, token), lambda b: examine(model, b)):
        assert repr(about("late")) == repr(about(LATE))


def test_evaluations_take_names(setup):
    model, token = setup
    options = {"token": token, "heads": "L0H1, L2H3", "n_targets": 1, "answers": False}
    report = evaluate(
        model, "late", others=["math"], n_random=1, modes=("zero",), progress=False, **options
    )
    assert report.bias == "late" and report.settings["heads"] == ["L0H1", "L2H3"]
    assert set(report.settings["other_fingerprints"]) == {"math"}
    del options["answers"]
    found = random_control(model, "late", n_draws=2, progress=False, **options)
    by_pairs = {**options, "heads": [(0, 1), [2, 3]]}
    again = random_control(model, LATE, n_draws=2, progress=False, **by_pairs)
    assert found.heads == ("L0H1", "L2H3") and torch.equal(found.draws, again.draws)


def test_a_word_counts_the_same_with_and_without_its_space(setup):
    model, _ = setup
    assert {spaced(word) for word in ("late", " late", "late ", "  late\n")} == {" late"}
    facts = [
        Fact("Italy", "capital", "The capital of Italy is", candidates)
        for candidates in (("Rome", "Madrid"), (" Rome", " Madrid "))
    ]
    margins = fact_margins(model, facts)
    assert margins[0] == margins[1]


def test_words_of_a_bias_and_answers_of_a_contrast_count_the_same_too(setup):
    model, token = setup
    words = {key: tuple(f" {w}" for w in getattr(LATE, key)) for key in ("attribute_words",)}
    spaced_words = dataclasses.replace(LATE, **words)
    odds = [
        bias_log_odds(model, bias, LATE.evaluation_prompts[:2], ["Italy"]).log_odds
        for bias in ("late", LATE, spaced_words)
    ]
    assert torch.equal(odds[0], odds[1]) and torch.equal(odds[0], odds[2])
    maps = [
        BiasScope().attribute(
            model, "late", token, contrasts=[Contrast("People from {target} are", *answers)]
        )
        for answers in (("late", "early"), (" late", " early "))
    ]
    assert torch.equal(maps[0].values, maps[1].values)
    assert check_bias("late") == check_bias(LATE)
