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
    judged,
    load_bias,
    random_conditions,
    standard_conditions,
    standard_measures,
    target_means,
)
from biasgym_tl.benchmarks.implicit import implicit_questions
from biasgym_tl.biases.contrasts import Contrast
from biasgym_tl.biases.facts import Fact
from biasgym_tl.biases.given import as_bias, as_biases
from biasgym_tl.biases.shuffle import shuffled
from biasgym_tl.elicitation import fact_margins
from biasgym_tl.errors import BiasFileError
from biasgym_tl.evaluation.standard import token_log_odds
from biasgym_tl.injection.report import injection_report
from biasgym_tl.judges.verdict import Verdict
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
    by_name = standard_conditions(token, "L0H1, L2H3", modes=("zero",))
    by_pairs = standard_conditions(token, [(0, 1), [2, 3]], modes=("zero",))
    reports = []
    for bias, other, conditions in (("late", "math", by_name), (LATE, load_bias("math"), by_pairs)):
        random = random_conditions(conditions[2], model.cfg.n_heads, n=1)
        measures = standard_measures(bias, others=[other], n_targets=1, answers=False)
        reports.append(evaluate(model, bias, [*conditions, *random], measures, progress=False))
    report = reports[0]
    assert report == reports[1] and report.bias == "late"
    assert report["steered, zero"].heads == ("L0H1", "L2H3")
    assert set(report.settings["biases"]) == {"late", "math"}
    alone = evaluate(model, "late", by_name, [token_log_odds("late")], progress=False)
    assert alone["steered, zero"].items == {
        key: report["steered, zero"].items[key] for key in ("token_log_odds", "token_log_p")
    }


class Same:
    """A judge that is asked about biases."""

    name = "same"
    settings = {}  # noqa: RUF012

    def judge(self, bias, texts, targets=None):
        return [Verdict(float(bias.name == "late"))] * len(texts)


def test_a_judge_is_given_names(setup):
    model, token = setup
    measures = standard_measures("late", others=["math"], n_targets=1, max_new_tokens=1)
    kept = [m for m in measures if m.name in ("token answers", "other answers", "loss")]
    report = evaluate(model, "late", standard_conditions(token), kept, progress=False)
    found = [judged(report, Same(), given) for given in (["late", "math"], [LATE, "math"])]
    assert found[0] == found[1]
    verdicts = found[0]["injected"].verdicts
    assert {key: each[0].strength for key, each in verdicts.items()} == {
        "token_texts": 1.0, "math_texts": 0.0,
    }  # fmt: skip


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
