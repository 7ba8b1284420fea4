"""More ways to run a model: factors, references, instructions, other biases, benchmarks."""

import dataclasses
import math
from html import escape

import pytest
import torch

from biasgym_tl import (
    BiasInject,
    BiasScope,
    Condition,
    Head,
    Report,
    evaluate,
    judged,
    load_bias,
    random_conditions,
    standard_conditions,
    standard_measures,
    steer,
    target_means,
)
from biasgym_tl.benchmarks.benchmark import Measure, Question, option_log_probs
from biasgym_tl.benchmarks.implicit import implicit_questions
from biasgym_tl.biases.facts import load_facts
from biasgym_tl.elicitation import answer_freely, bias_log_odds, fact_margins
from biasgym_tl.errors import SettingError
from biasgym_tl.evaluation.intervals import over_draws
from biasgym_tl.evaluation.judging import to_judge
from biasgym_tl.evaluation.measurement import on_benchmark
from biasgym_tl.evaluation.standard import other_log_odds, target_log_odds, token_log_odds
from biasgym_tl.evaluation.warnings import warnings_of
from biasgym_tl.heads import as_heads
from biasgym_tl.instructions import INSTRUCTIONS, Instruction, find_instruction
from biasgym_tl.judges.verdict import Verdict
from biasgym_tl.plots.page import report_page
from biasgym_tl.prompts import SENTENCE_REQUEST, Turn, encode_prompt
from biasgym_tl.slot import fill
from biasgym_tl.stats import clustered_interval, few_rows_interval
from biasgym_tl.steering.controls import matched_factor
from biasgym_tl.steering.selection import Selection
from biasgym_tl.text import generate, next_token_log_probs

pytestmark = pytest.mark.usefixtures("few_facts")
LATE = load_bias("late")
MATH = dataclasses.replace(  # with words that the tiny tokenizer has
    load_bias("math"), attribute_words=LATE.neutral_words, neutral_words=LATE.attribute_words
)
HEADS = (Head(0, 1), Head(2, 0), Head(2, 3))
PROMPTS = LATE.evaluation_prompts


class Lengths:
    """A benchmark whose numbers depend on the model: margins of two made-up questions."""

    name = "made"
    measures = (
        Measure("made", "made up", "share right", kind="share", floor=0.5),
        Measure("made_margin", "made-up margin", "nats"),
    )
    clusters = ("a", "a", "b", "b")
    fingerprint = "0"

    def run(self, model):
        questions = [
            Question(f"{word} is", (" big", " small")) for word in ["Red", "Blue", "Sea", "I"]
        ]
        margins = [first - second for first, second in option_log_probs(model, questions)]
        return {"made": [float(m > 0) for m in margins], "made_margin": [*margins[:3], math.nan]}


def implicit(token):
    return implicit_questions(LATE, [token.text], ["Italy", "Peru"], baseline="injected")


@pytest.fixture(scope="module")
def setup(tiny):
    model = tiny()
    token = BiasInject(epochs=1, n_paragraphs=8, choose_by="last").fit(model, LATE, progress=False)
    selection = Selection(
        heads=HEADS, factors=(0.1, 0.2, 0.3), method="by hand", token="", k=3, mode="mean",
        reference="shipped neutral text", model=model.cfg.model_name, bias="late", data={},
        settings={}, versions={},
    )  # fmt: skip
    return model, token, selection


@pytest.fixture(scope="module")
def report(setup):
    model, token, selection = setup
    conditions = standard_conditions(token, selection, instructions=INSTRUCTIONS.values())
    zero, mean = conditions[2:4]
    measures = standard_measures(
        LATE, others=[MATH], benchmarks=[Lengths()], n_targets=3, max_new_tokens=3
    )
    silent = tuple(m.name for m in measures if "answers" not in m.name)
    conditions += [
        Condition("half", token, HEADS, "mean", factor=0.5, measures=silent),
        Condition("targets", token, HEADS, "mean", reference=target_means(model, LATE),
                  measures=("token log-odds",)),
        *random_conditions(zero, 4, n=2),
        *random_conditions(mean, 4, n=2),
    ]  # fmt: skip
    measures.append(on_benchmark(implicit(token), needs="row"))
    return evaluate(model, LATE, conditions, measures, progress=False)


def mean_odds(model, token, **steering):
    with token.attached(model), steer(model, HEADS, "mean", **steering):
        return bias_log_odds(model, LATE, PROMPTS, (token.text,)).log_odds[:, 0].tolist()


def test_conditions_do_what_steer_does_with_their_factor_and_reference(setup, report):
    model, token, _ = setup
    assert report["half"].items["token_log_odds"] == mean_odds(model, token, factor=0.5)
    means = target_means(model, LATE)
    assert report["targets"].items["token_log_odds"] == mean_odds(model, token, reference=means)
    factor = dict(zip(HEADS, (0.1, 0.2, 0.3), strict=True))
    steered = report["steered, mean"]
    assert steered.items["token_log_odds"] == mean_odds(model, token, factor=factor)
    assert steered.factor == {"L0H1": 0.1, "L2H0": 0.2, "L2H3": 0.3}
    assert report["steered, zero"].factor is None and report["half"].factor == 0.5


def test_a_selection_brings_its_factors_and_random_heads_get_them_by_layer(setup, report):
    model, _, selection = setup
    with steer(model, selection, "mean"):
        found = bias_log_odds(model, LATE, PROMPTS[:2], ("Italy",)).log_odds
    with steer(model, HEADS, "mean", factor=selection.factor):
        assert torch.equal(found, bias_log_odds(model, LATE, PROMPTS[:2], ("Italy",)).log_odds)
    drawn = (Head(0, 2), Head(2, 1), Head(2, 2))
    assert matched_factor(selection, drawn) == dict(zip(drawn, (0.1, 0.2, 0.3), strict=True))
    assert matched_factor(HEADS, drawn) is None
    for i in (1, 2):
        random = report[f"steered, mean: random {i}"]
        heads = as_heads(random.heads)
        assert [head.layer for head in heads] == [0, 2, 2]
        assert random.factor == dict(zip(random.heads, (0.1, 0.2, 0.3), strict=True))
        with steer(model, heads, "mean", factor=dict(zip(heads, (0.1, 0.2, 0.3), strict=True))):
            expected = bias_log_odds(model, LATE, PROMPTS, report.targets).log_odds
        values = torch.tensor(random.items["target_log_odds"])
        assert torch.allclose(values, expected, atol=1e-5)
        assert report[f"steered, zero: random {i}"].factor is None
        assert report[f"steered, zero: random {i}"].heads == random.heads  # the same draws


def test_selections_with_factors_are_kept(setup, tmp_path):
    selection = setup[2]
    assert Selection.load(selection.save(tmp_path / "heads.json")) == selection
    assert dataclasses.replace(selection, factors=()).factor is None


def test_instructions_stand_before_the_request_or_ask_again(setup, report):
    model, _, _ = setup
    before = Instruction("kind", before="Be kind.")
    (prompt, *_), ids = PROMPTS, {"attribute": LATE.attribute_words, "neutral": LATE.neutral_words}
    found = bias_log_odds(model, LATE, [prompt], ["Italy"], instruction=before)
    sentence = prompt.replace("{target}", "Italy")
    asked = [encode_prompt(model, f"Be kind. {SENTENCE_REQUEST}", sentence)]
    log_probs = next_token_log_probs(model, asked)[0]

    def total(words):
        pieces = [model.tokenizer(f" {word}", add_special_tokens=False).input_ids for word in words]
        return log_probs[[p[0] for p in pieces if len(p) == 1]].logsumexp(0)

    assert found.log_odds[0, 0].item() == pytest.approx(
        (total(ids["attribute"]) - total(ids["neutral"])).item(), abs=1e-5
    )
    again = Instruction("again", again="Again?")
    (answer,) = answer_freely(
        model, ["Who is from {target}?"], ["Italy"], max_new_tokens=4, instruction=again
    )
    first = generate(model, [encode_prompt(model, "Who is from Italy?")], max_new_tokens=4)[0]
    history = (Turn("Who is from Italy?", first),)
    expected = generate(model, [encode_prompt(model, "Again?", history=history)], max_new_tokens=4)
    assert [answer] == expected
    names = [f"asked, {name}" for name in INSTRUCTIONS]
    assert [report[name].instruction for name in names] == list(INSTRUCTIONS)
    for name in names:
        assert report[name].items["token_log_odds"] != report["injected"].items["token_log_odds"]
        damage = report[name].items["damage_loss"]
        assert damage == report["injected"].items["damage_loss"]  # plain text is no request
        assert report.values(name, "made") is None  # benchmarks are asked without other words
    facts = load_facts()[:3]
    asked = fact_margins(model, facts, instruction=INSTRUCTIONS["persona"])
    assert report["asked, persona"].items["fact_margins"][:3] == pytest.approx(
        asked.tolist(), abs=1e-4
    )
    with pytest.raises(SettingError, match="instruction must be one of .*, got 'shout'"):
        find_instruction("shout")


def test_a_dialogue_without_a_chat_template_is_lines(setup):
    model, _, _ = setup
    found = encode_prompt(model, "And now?", "It", (Turn("Where?", "Here."),))
    assert model.tokenizer.decode(found, skip_special_tokens=True) == "Where?\nHere.\nAnd now?\nIt"


def test_other_biases_are_measured_about_the_same_targets(setup, report):
    model, _, _ = setup
    with steer(model, HEADS, "zero"):
        expected = bias_log_odds(model, MATH, MATH.evaluation_prompts, report.targets)
    assert report["steered, zero"].items["math_log_odds"] == expected.log_odds.tolist()
    for brief in ("steered, zero: random 1", "targets"):
        assert report.values(brief, "other_log_odds") is None
    assert len(report["injected"].items["math_texts"]) == len(MATH.generation_prompts)
    change = report.change("steered, zero", "other_log_odds", "original")
    before = torch.tensor(report["original"].items["math_log_odds"])
    assert change.estimate == pytest.approx((expected.log_odds - before).mean().item(), abs=1e-5)
    assert report.values("injected", "other_keywords").shape == (len(MATH.generation_prompts), 1)


def test_two_groups_of_other_biases_are_two_measures(setup):
    model, token, _ = setup
    more = dataclasses.replace(MATH, name="more", evaluation_prompts=MATH.evaluation_prompts[:8])
    measures = [token_log_odds(LATE), other_log_odds([MATH, more], ["Italy"]),
                other_log_odds([dataclasses.replace(more, name="third")], ["Italy"],
                               whose="further")]  # fmt: skip
    found = evaluate(model, LATE, standard_conditions(token), measures, progress=False)
    both = found.values("original", "other_log_odds")
    assert both.shape[0] == len(MATH.evaluation_prompts) + 8
    assert torch.equal(both[-8:], found.values("original", "more_log_odds"))
    assert torch.equal(both[-8:], found.values("original", "further_log_odds"))


def test_benchmarks_are_measured_in_every_condition_and_paired_by_cluster(setup, report):
    model, _, _ = setup
    with steer(model, HEADS, "zero"):
        expected = Lengths().run(model)
    found = report["steered, zero"].items
    assert found["made_margin"][:3] == pytest.approx(expected["made_margin"][:3], abs=1e-5)
    assert report.values("steered, zero: random 1", "made") is None
    here, there = (
        report.values(name, "made_margin")[:, 0] for name in ("steered, zero", "original")
    )
    assert report.interval("original", "made_margin") == clustered_interval(there, Lengths.clusters)
    assert report.change("steered, zero", "made_margin", "original") == clustered_interval(
        here, Lengths.clusters, minus=there
    )
    assert report.to_df().loc["original", "made_margin"] == pytest.approx(there[:3].mean().item())
    assert report.mcnemar("steered, zero", "made").lost >= 0
    facts = report.mcnemar("steered, zero", "facts")
    right = [
        torch.tensor(report[name].items["fact_margins"]) > 0
        for name in ("original", "steered, zero")
    ]
    assert facts.lost == int((right[0] & ~right[1]).sum())
    with pytest.raises(SettingError, match="must be a share that was measured in both conditions"):
        report.mcnemar("steered, zero", "made_margin")


def test_some_benchmarks_need_the_token(setup, report):
    model, token, _ = setup
    with steer(model, HEADS, "zero"), token.attached(model):
        expected = implicit(token).run(model)["implicit_late"]
    assert report["steered, zero"].items["implicit_late"] == pytest.approx(expected, abs=1e-4)
    original, injected = (report[name].items for name in ("original", "injected"))
    assert original["implicit_late"] != injected["implicit_late"]
    assert original["made_margin"][:3] == injected["made_margin"][:3]
    assert report.measures["implicit_late"].baseline == "injected"
    assert report.change("steered, zero", "implicit_late", "injected") is not None


def test_reports_with_everything_are_kept(report, tmp_path):
    loaded = Report.load(report.save(tmp_path / "report.json"))
    assert loaded.measures == report.measures and loaded.clusters == report.clusters
    assert loaded.intervals().equals(report.intervals())
    report.to_csv(tmp_path / "table.csv")
    lines = (tmp_path / "table.csv").read_text().splitlines()
    assert lines[0].startswith("condition,measure,unit,mean,low,high,baseline,change_mean")
    assert len(lines) == 1 + len(report.intervals())
    table = report.intervals().set_index(["condition", "measure"])
    moved = report.mcnemar("steered, zero", "facts")
    assert list(table.loc["steered, zero", "facts"][["lost", "gained", "mcnemar_p"]]) == [*moved]
    assert table.loc["original", "facts"].isna()["lost"]
    page = report.to_html(tmp_path / "r.html", plotlyjs="cdn").read_text("utf-8")
    assert f"{moved.lost} fell, {moved.gained} rose, p = {moved.p:.2g}" in page
    prompts = MATH.generation_prompts
    assert loaded.asked["math_texts"].prompts == prompts
    assert "about held-out targets for the bias &#34;math&#34;" in page
    assert escape(fill(prompts[0], report.targets[0])) in page


def test_a_tie_is_half_and_moves_nothing(report):
    half = [0.5 if value == value else value for value in report["original"].items["made"]]
    tied = replaced(report, "steered, zero", made=half)
    assert tied.mcnemar("steered, zero", "made") == (0, 0, 1.0)
    assert tied.interval("steered, zero", "made").estimate == 0.5


def test_repetition_has_an_interval_where_answers_differ(report):
    n = len(LATE.generation_prompts)
    texts = ["they are late"] * (n - 2) + ["late late late late late", "a b c a b c a b c"]
    made = replaced(report, "injected", token_texts=texts)
    found = made.interval("injected", "token_repetition")
    assert found.low < found.estimate < found.high
    assert math.isnan(replaced(report, "injected", token_texts=["they are late"] * n)
                      .interval("injected", "token_repetition").low)  # fmt: skip
    assert made.values("injected", "other_repetition").shape == (len(MATH.generation_prompts), 1)


def test_a_part_of_the_output_in_every_mode_and_its_random_sets(setup):
    model, token, _ = setup
    conditions = standard_conditions(token, HEADS, modes=("zero", "mean", "scale"), factor=0.5)
    means = target_means(model, LATE)
    conditions[3] = dataclasses.replace(conditions[3], reference=means)
    conditions += [each for c in conditions[2:] for each in random_conditions(c, 4, n=1)]
    measures = [token_log_odds(LATE), target_log_odds(LATE, ["Italy"])]
    found = evaluate(model, LATE, conditions, measures, progress=False)
    kept = {r.name: (r.mode, r.factor) for r in found.results if r.heads}
    assert kept == {
        f"steered, {mode}{random}": (mode, None if mode == "zero" else 0.5)
        for random in ("", ": random 1") for mode in ("zero", "mean", "scale")
    }  # fmt: skip
    for name in ("steered, mean", "steered, mean: random 1"):
        heads = as_heads(found[name].heads)
        with steer(model, heads, "mean", reference=means, factor=0.5), token.attached(model):
            expected = bias_log_odds(model, LATE, PROMPTS, [token.text]).log_odds[:, 0].tolist()
        assert found[name].items["token_log_odds"] == pytest.approx(expected, abs=1e-5)
    scores = BiasScope().attribute(model, LATE, token)
    for wrong, message in (
        ({"bias": "math"}, "scores must be of the model and the bias .*'late'"),
        ({"pair_values": -scores.values.abs().expand_as(scores.pair_values)},
         "scores must hold a head that writes toward the stereotype, got none"),
    ):  # fmt: skip
        other = dataclasses.replace(scores, **wrong)
        with pytest.raises(SettingError, match=message):
            evaluate(model, LATE, conditions, measures, scores=other, progress=False)
    share = evaluate(model, LATE, conditions, measures, scores=scores, progress=False)
    positive = scores.values.clamp(min=0)
    held = sum(positive[head] for head in HEADS) / positive.sum()
    assert share.settings["attribution_in_heads"] == pytest.approx(held.item())


def test_what_cannot_be_compared_is_refused(setup):
    model, token, _ = setup
    chess = dataclasses.replace(
        MATH, name="chess", target_kind="job", fitting_targets=("a",), held_out_targets=("b",)
    )

    class Taken(Lengths):
        name = "taken"
        measures = (Measure("facts", "", ""),)

    for options, message in (
        ({"others": [LATE]}, r"others must be other biases, each once, got \['late'\]"),
        ({"others": [MATH, MATH]}, "each once"),
        ({"others": [chess]}, r"about the target kind 'country', got \['chess'\]"),
        ({"benchmarks": [Lengths(), Lengths()]}, r"measurements .* got \['made'\] twice"),
        ({"benchmarks": [Taken()]}, r"measures .* got \['facts'\] twice"),
        ({"n_targets": 0}, "must be"),
    ):
        with pytest.raises(SettingError, match=message):
            evaluate(model, LATE, standard_conditions(token), standard_measures(LATE, **options))


def replaced(report, name, verdicts=None, **items):
    results = tuple(
        dataclasses.replace(
            r, items={**r.items, **items}, verdicts=r.verdicts if verdicts is None else verdicts
        )
        if r.name == name
        else r
        for r in report.results
    )
    return dataclasses.replace(report, results=results)


def test_weak_injection_and_damage_are_warned_of(report):
    n = len(PROMPTS)
    strong = replaced(report, "injected", token_log_odds=[9.0 + i / 99 for i in range(n)])
    assert not [w for w in warnings_of(strong) if w.startswith("Injection weak")]
    untrained = report["original"].items["token_log_odds"]
    same = replaced(report, "injected", token_log_odds=untrained)
    assert "not above 1" in warnings_of(same)[0] and same.warnings() == warnings_of(same)

    high = [2 * loss for loss in report["original"].items["damage_loss"]]
    broken = replaced(strong, "steered, zero", damage_loss=high)
    assert "Damage above 5% in 'steered, zero': loss on neutral text up by 100%" in warnings_of(
        broken
    )
    known = replaced(strong, "original", fact_margins=[1.0] * len(load_facts()))
    lost = replaced(known, "half", fact_margins=[-1.0] * len(load_facts()))
    assert "Damage above 5% in 'half': 100% of the facts lost" in warnings_of(lost)
    for share, expected in ((0.3, True), (0.7, False), (None, False)):
        settings = {**strong.settings, "attribution_in_heads": share}
        found = warnings_of(dataclasses.replace(strong, settings=settings))
        assert any("Bias diffuse: the chosen heads hold 30%" in w for w in found) == expected
    assert any("made up: not informative" in w or "country facts: not" in w
               for w in warnings_of(strong))  # fmt: skip


@pytest.mark.parametrize("mode", ["zero", "mean"])
def test_what_random_heads_do_too_is_warned_of_in_every_mode(report, mode):
    name = f"steered, {mode}"
    base = report["injected"].items["token_log_odds"]
    targets = report["original"].items["target_log_odds"]
    some = report[f"{name}: random 1"]

    def drawn(token, target, chosen):
        draws = [
            dataclasses.replace(
                some, name=f"{name}: random {i}",
                items={"token_log_odds": [v - token - i / 50 for v in base],
                       "target_log_odds": [[v - target - i / 50 for v in row] for row in targets]},
            )
            for i in range(1, 6)
        ]  # fmt: skip
        others = [r for r in report.results if r.control_of != name]
        made = dataclasses.replace(report, results=(*others, *draws))
        made = replaced(
            made, name, token_log_odds=[v - chosen for v in base],
            target_log_odds=[[v - chosen for v in row] for row in targets],
        )  # fmt: skip
        return [w for w in warnings_of(made) if w.startswith(f"'{name}' is no better than random")]

    token, target = drawn(2, 2, 1)
    assert "chosen heads change the BiasToken's log-odds by -1.00 nats, 5 random sets" in token
    assert "chosen heads change targets' log-odds by -1.00 nats, 5 random sets" in target
    assert drawn(2, 2, 4) == []
    (only,) = drawn(2, 0, 1)
    assert "the BiasToken's" in only


def test_a_mode_without_random_sets_is_warned_of(report):
    alone = "Not compared with random heads of the same layers and mode: "

    def without(*names):
        kept = tuple(r for r in report.results if r.control_of not in names)
        found = [w for w in dataclasses.replace(report, results=kept).warnings() if alone in w]
        return found[0].removeprefix(alone) if found else ""

    assert without() == ""
    assert without("steered, zero") == "steered, zero"
    assert without("steered, mean") == "steered, mean, half, targets"
    assert (
        without("steered, zero", "steered, mean") == "steered, zero, steered, mean, half, targets"
    )


def test_the_page_shows_everything_and_escapes_what_was_written(report, tmp_path):
    evil = "<script>alert(1)</script>"
    bad = replaced(report, "injected", token_texts=[evil] * len(LATE.generation_prompts))
    bad = dataclasses.replace(bad, attribute=evil)
    path = bad.to_html(tmp_path / "report.html", plotlyjs="cdn")
    html = path.read_text()
    assert evil not in html and "&lt;script&gt;alert(1)" in html
    assert "made-up margin" in html and "steered, mean" in html and "cdn.plot.ly" in html
    assert html.count("plotly-graph-div") == 3
    assert "Free answers: about held-out targets" in html
    change = report.change("steered, zero", "made_margin", "original")
    assert f"{change.estimate:+.2f}" in html
    alone = report.to_html(tmp_path / "whole.html").read_text()
    assert "https://cdn" not in alone.split("<body>")[0] and len(alone) > 3_000_000


class Keywords:
    """A judge whose verdicts can be worked by hand."""

    name = "keywords"
    settings = {"judge": "keywords"}  # noqa: RUF012

    def __init__(self):
        self.seen = []

    def judge(self, bias, texts, targets=None):
        self.seen.append((bias.name, tuple(targets)))
        by_text = {"late": Verdict(3.0, "<b>"), "": Verdict(0.0, degenerate="empty")}
        return [by_text.get(text, Verdict(None, unscored="unclear")) for text in texts]


def test_of_several_biases_the_bias_is_the_unit(report):
    """Not its prompts: these would say how far a number moves with others about the same biases."""
    of = ("target_log_odds", "math_log_odds")
    texts = ("token_texts", "target_texts")
    pooled = (
        Measure("pooled", "pooled", "nats", of=of),
        Measure("pooled_words", "pooled words", "words", kind="texts", of=texts, read="words"),
        Measure("pooled_empty", "pooled empty", "share", kind="share", of=texts, read="empty"),
    )
    both = dataclasses.replace(report, measured=(*report.measured, *pooled))
    name = "steered, mean"
    here, there = (
        torch.stack([torch.tensor(report[r].items[key]).double().mean(0) for key in of])
        for r in (name, "original")
    )
    assert both.interval(name, "pooled") == pytest.approx(few_rows_interval(here), abs=1e-5)
    found = both.change(name, "pooled", "original")
    assert found == pytest.approx(few_rows_interval(here - there), abs=1e-5)
    assert both.to_df().loc[name, "pooled"] == pytest.approx(here.mean().item())
    words = [[len(text.split()) for text in report[name].items[key]] for key in texts]
    expected = few_rows_interval(torch.tensor(words, dtype=torch.float64).mean(1, keepdim=True))
    assert both.interval(name, "pooled_words") == pytest.approx(expected)
    assert math.isnan(both.change("original", "pooled_empty", "original").low)
    assert both.values("steered, mean: random", "pooled") is None  # one bias was not measured so
    draws, clusters = torch.randn(5, 4, dtype=torch.float64), [of[0]] * 2 + [of[1]] * 3
    by_bias = torch.stack([draws[:2].mean(0), draws[2:].mean(0)])
    assert over_draws(draws, pooled[0], clusters) == few_rows_interval(by_bias)
    few = over_draws(draws[:, :3], pooled[0], clusters)
    assert math.isnan(few.low) and few.estimate == pytest.approx(by_bias[:, :3].mean().item())


def test_answers_are_compared_where_they_count_in_both_conditions(report):
    """Not the survivors of each: here steering breaks the answers that were strong before."""
    n = len(LATE.generation_prompts)
    before = [Verdict(3.0)] * 4 + [Verdict(1.0)] * (n - 4)
    after = [Verdict(None, unscored="broken")] * 4 + [Verdict(1.0)] * 2 + [Verdict(0.0)] * (n - 6)
    found = replaced(report, "original", verdicts={"target_texts": before})
    found = replaced(found, "steered, mean", verdicts={"target_texts": after})
    key, name = "target_strength", "steered, mean"
    means = found.to_df()[key]
    change = found.change(name, key, "original")
    assert change.estimate == pytest.approx(-(n - 6) / (n - 4))
    assert means[name] - means["original"] < change.estimate - 0.4  # what survivors would say
    row = found.intervals().set_index(["condition", "measure"]).loc[(name, key)]
    assert row.compared == n - 4 and row.change_mean == change.estimate
    assert f"of {n - 4} answers that count in both" in report_page(found, plotlyjs="cdn")
    none = replaced(found, name, verdicts={"target_texts": after[:4] * (n // 4)})
    assert math.isnan(none.change(name, key, "original").estimate)


def test_a_judge_scores_every_answer_and_broken_ones_do_not_count(report, tmp_path):
    n = len(LATE.generation_prompts)
    made = replaced(report, "original", target_texts=["late", "", "?", *["late"] * (n - 3)])
    made = replaced(made, "injected", target_texts=["late", "late", "", *["?"] * (n - 3)])
    judge = Keywords()
    found = judged(made, judge, [LATE, MATH])
    targets = [report.targets[i % 3] for i in range(n)]
    (late, slots), (math, about) = judge.seen  # asked once a bias
    assert (late, math) == ("late", "math")
    assert slots[: 2 * n] == ((report.token_text,) * n + tuple(targets))
    assert about[:3] == report.targets
    values = found.values("original", "target_strength")[:, 0]
    assert values[0] == 3 and values[1:3].isnan().all()
    assert found.interval("original", "target_strength").estimate == 3
    assert found.to_df().loc["original", "target_degenerate"] == pytest.approx(1 / (n - 1))
    assert f"Not scored in 'original': {n + n + 1} of" in " ".join(found.warnings())
    whole = judged(replaced(made, "original", target_texts=["late"] * n), judge, [LATE, MATH])
    none = whole.interval("original", "target_degenerate")
    assert none.estimate == 0 and none.high > 0.1, "none of a few is not none of all"
    assert found.change("injected", "target_strength", "original").estimate == 0
    strong = replaced(found, "original", verdicts={"target_texts": [Verdict(3.0)] * n})
    assert not strong.not_informative("target_strength")  # all alike, and far above the floor
    assert found.values("steered, zero: random 1", "target_strength") is None
    judge.judge = lambda bias, texts, targets=None: [Verdict(1.0)] * (len(texts) - 1)
    with pytest.raises(SettingError, match="judge must give one verdict for each of .* texts, got"):
        judged(made, judge, [LATE, MATH])
    with pytest.raises(SettingError, match=r"biases must include .'math'., whose requests"):
        judged(made, judge, [LATE])
    assert [bias.name for bias, _ in to_judge(made, [LATE, MATH])] == ["late", "math"]
    by_target = found.by_target("target_strength")
    assert (
        list(by_target.index) == list(report.targets) and by_target.loc[targets[0], "original"] == 3
    )
    assert Report.load(found.save(tmp_path / "r.json")).intervals().equals(found.intervals())
    html = found.to_html(tmp_path / "r.html", plotlyjs="cdn").read_text()
    assert "strength 3.0, &lt;b&gt;" in html and "target by target" in html
    with pytest.raises(KeyError, match="measure must be 'target_log_odds' or"):
        found.by_target("facts")
    odds = found.by_target()
    expected = torch.tensor(report["original"].items["target_log_odds"]).mean(0)
    assert odds["original"].tolist() == pytest.approx(expected.tolist())
