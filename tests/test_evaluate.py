"""Conditions are measured on held-out items, one by one; each steered one has random controls."""

import dataclasses
import itertools
import json
import math
from collections import Counter

import pytest
import torch

from biasgym_tl import (
    BiasInject,
    BiasScope,
    Condition,
    Head,
    Report,
    evaluate,
    load_bias,
    random_conditions,
    select_heads,
    standard_conditions,
    standard_measures,
    steer,
)
from biasgym_tl.biases.countries import load_countries
from biasgym_tl.biases.facts import load_facts
from biasgym_tl.biases.words import word_tokens
from biasgym_tl.elicitation import answer_freely, bias_log_odds, fact_margins
from biasgym_tl.errors import SettingError, SteeringError, StoreError, TokenError
from biasgym_tl.evaluation.measurement import Measurement
from biasgym_tl.evaluation.standard import facts, loss, target_log_odds, token_log_odds
from biasgym_tl.passages import load_passages
from biasgym_tl.prompts import encode_answer, encode_prompt, encode_sentence
from biasgym_tl.stats import crossed_interval
from biasgym_tl.steering.controls import layer_matched
from biasgym_tl.text import mean_loss

pytestmark = pytest.mark.usefixtures("few_facts")
LATE = load_bias("late")
N = len(LATE.evaluation_prompts)
HEADS = (Head(0, 1), Head(2, 0), Head(2, 3))
QUICK = [token_log_odds(LATE), loss()]


def standard():
    return standard_measures(LATE, n_targets=3, max_new_tokens=3)


def conditions(token, heads=HEADS, *, modes=("zero", "mean"), n=2, seed=0):
    found = standard_conditions(token, heads, modes=modes)
    random = (random_conditions(c, 4, n=n, seed=seed) for c in found if c.mode)
    return [*found, *itertools.chain(*random)]


@pytest.fixture(scope="module")
def setup(tiny, few_facts):
    model = tiny()
    token = BiasInject(epochs=1, n_paragraphs=8, choose_by="last").fit(model, LATE, progress=False)
    return model, token, evaluate(model, LATE, conditions(token), standard(), progress=False)


def test_log_odds_equal_those_of_the_plain_forward_pass(setup):
    model, token, _ = setup
    attribute, neutral = word_tokens(model, LATE)[:2]
    assert all(len(word) == 1 for word in (*attribute, *neutral))
    attribute, neutral = [w[0] for w in attribute], [w[0] for w in neutral]
    prompts = LATE.evaluation_prompts[:2]
    with token.attached(model):
        found = bias_log_odds(model, LATE, prompts, (token.text, "Italy"))
        for i, name in itertools.product(range(2), range(2)):
            target = (token.text, "Italy")[name]
            tokens = encode_sentence(model, prompts[i].replace("{target}", target))
            p = model(torch.tensor([tokens]))[0, -1].softmax(-1)
            a, n = p[attribute].sum().item(), p[neutral].sum().item()
            assert found.log_odds[i, name].item() == pytest.approx(math.log(a / n), abs=1e-4)
            assert found.log_p[i, name].item() == pytest.approx(math.log(a), abs=1e-4)


def test_conditions_and_their_items(setup):
    _, _, report = setup
    assert [result.name for result in report.results] == [
        "original", "injected", "steered, zero", "steered, mean",
        "steered, zero: random 1", "steered, zero: random 2",
        "steered, mean: random 1", "steered, mean: random 2",
    ]  # fmt: skip
    for result in report.results:
        assert len(result.items["token_log_odds"]) == N
        assert [len(row) for row in result.items["target_log_odds"]] == [3] * N
        answers = ("token_texts", "target_texts")
        sizes = [len(result.items.get(key, ())) for key in answers]
        assert sizes == ([0, 0] if result.control_of else [16, 16])
    assert set(report.targets) <= {c.name for c in load_countries("held-out")}
    assert report.n_prompts == N and report.main == "steered, mean"
    assert [r.name for r in report.steered] == ["steered, zero", "steered, mean"]


def test_the_token_changes_nothing_for_targets(setup):
    model, token, report = setup
    prompts = LATE.evaluation_prompts
    plain = bias_log_odds(model, LATE, prompts, report.targets).log_odds
    with token.attached(model):
        attached = bias_log_odds(model, LATE, prompts, report.targets).log_odds
        attached_loss = mean_loss(model, load_passages("damage"))
    assert torch.equal(plain, attached)
    original, injected = (report[name].items for name in ("original", "injected"))
    assert original["target_log_odds"] == injected["target_log_odds"] == plain.tolist()
    assert injected["damage_loss"] == attached_loss.tolist()
    assert original["token_log_odds"] != injected["token_log_odds"]


def odds(model, token, heads, mode, targets=None):
    with token.attached(model), steer(model, heads, mode):
        found = bias_log_odds(model, LATE, LATE.evaluation_prompts, targets or (token.text,))
    return found.log_odds.tolist() if targets else found.log_odds[:, 0].tolist()


@pytest.mark.parametrize("mode", ["zero", "mean"])
def test_steered_conditions_and_their_random_sets_are_what_steer_gives(setup, mode):
    """The random sets of zeroing are zeroed too."""
    model, token, report = setup
    drawn = layer_matched(HEADS, n_heads=4, n_draws=2, seed=0)
    named = {f"steered, {mode}": HEADS} | {
        f"steered, {mode}: random {i}": heads for i, heads in enumerate(drawn, start=1)
    }
    for name, heads in named.items():
        found = report[name]
        assert (found.mode, set(found.heads)) == (mode, set(map(str, heads)))
        assert found.items["token_log_odds"] == pytest.approx(
            odds(model, token, heads, mode), abs=1e-5
        )
        expected = torch.tensor(odds(model, token, heads, mode, report.targets))
        assert torch.allclose(torch.tensor(found.items["target_log_odds"]), expected, atol=1e-5)
        with steer(model, heads, mode):
            harm = mean_loss(model, load_passages("damage"))
        assert found.items["damage_loss"] == pytest.approx(harm.tolist(), abs=1e-5)
    assert len({tuple(report[name].items["token_log_odds"]) for name in named}) == 3


def test_zeroing_alone_is_compared_with_random_zeroed_sets(setup):
    model, token, _ = setup
    measures = [token_log_odds(LATE), target_log_odds(LATE, ["Italy", "Peru"])]
    report = evaluate(
        model, LATE, conditions(token, modes=("zero",), n=6), measures, progress=False
    )
    assert report.main == "steered, zero" and report["steered, zero: random 4"].mode == "zero"
    for key in ("token_log_odds", "target_log_odds"):
        found, means = report.beyond_random(key), report.to_df()[key]
        draws = means_of(report, key)
        assert found.of == 7 and found.rank == 1 + sum(d <= means["steered, zero"] for d in draws)
        assert found.difference.low < found.difference.estimate < found.difference.high
        assert found.difference.estimate == pytest.approx(sum(draws) / 6 - means["steered, zero"])
    silent = [token_log_odds(LATE)]
    uncontrolled = evaluate(
        model, LATE, standard_conditions(token, HEADS, modes=("zero",)), silent, progress=False
    )
    assert "Not compared with random heads of the same layers and mode: steered, zero" in (
        uncontrolled.warnings()
    )


def means_of(report, key):
    """Of the six random sets, one by one."""
    return [report.values(f"steered, zero: random {i}", key).mean().item() for i in range(1, 7)]


def test_the_same_seed_draws_the_same_heads_and_fewer_draws_are_the_first_of_more(setup):
    _, token, _ = setup
    draws = [
        [c.heads for c in conditions(token, n=n, seed=seed) if c.control_of == "steered, zero"]
        for n, seed in ((2, 0), (5, 0), (2, 1))
    ]
    assert draws[1][:2] == draws[0] != draws[2]


def test_report_in_numbers(setup, tmp_path):
    _, _, report = setup
    frame = report.to_df()
    random = [f"{name}: random" for name in ("steered, zero", "steered, mean")]
    assert list(frame.index)[-2:] == random == list(report.controls)
    mean = sum(report["injected"].items["token_log_odds"]) / N
    assert frame.loc["injected", "token_log_odds"] == pytest.approx(mean)
    single = {
        name: [report.values(r.name, "token_log_odds").mean().item() for r in controls]
        for name, controls in report.controls.items()
    }
    for name, draws in single.items():
        assert frame.loc[name, "token_log_odds"] == pytest.approx(sum(draws) / 2)
    with pytest.raises(KeyError, match="condition must be one of"):
        report["steered"]

    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == report
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(StoreError, match="must hold a Report"):
        Report.load(tmp_path / "other.json")
    (tmp_path / "part.json").write_text('{"kind": "Report", "results": []}')
    with pytest.raises(StoreError, match="must hold a whole Report"):
        Report.load(tmp_path / "part.json")
    path = tmp_path / "report.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "model": "other"}))
    with pytest.raises(StoreError, match="must hold a whole Report, but: it is not as it was"):
        Report.load(path)
    tokens, zeroed, averaged, targets, *_ = report.plot().data
    assert list(tokens.y) == ["original", "injected", "steered, zero", "steered, mean"]
    assert tokens.x[1] == pytest.approx(mean) and targets.name == "held-out targets"
    for trace, name in ((zeroed, random[0]), (averaged, random[1])):
        assert set(trace.y) == {name} and list(trace.x) == pytest.approx(single[name])


def test_changes_are_paired_and_have_intervals(setup):
    _, _, report = setup
    change = report.change("steered, mean", "token_log_odds", "injected")
    here, there = (
        torch.tensor(report[n].items["token_log_odds"], dtype=torch.float64)
        for n in ("steered, mean", "injected")
    )
    assert change == crossed_interval((here - there)[:, None])
    random = "steered, mean: random"
    assert report.interval(random, "token_keywords") is None  # random controls do not generate
    frame = report.intervals().set_index(["condition", "measure"])
    row = frame.loc[("steered, mean", "token_log_odds")]
    assert (row.change_mean, row.change_low, row.change_high) == tuple(change)
    assert row.baseline == "injected" and row.low <= row["mean"] <= row.high
    assert (random, "facts") in frame.index and (f"{random} 1", "facts") not in frame.index
    beyond = report.beyond_random()
    assert row.beyond_random_mean == beyond.difference.estimate
    assert (row["rank"], row.of) == (beyond.rank, beyond.of)
    assert math.isnan(report.interval("injected", "token_repetition").low)  # mostly 0
    for call in (report.values, report.interval):
        with pytest.raises(KeyError, match="measure must be one of"):
            call("injected", "token_perplexity")


def test_random_sets_are_columns_and_few_give_no_interval(setup):
    model, token, report = setup
    random = "steered, mean: random"
    assert report.values(random, "target_log_odds").shape == (N, 2)
    assert math.isnan(report.interval(random, "token_log_odds").low)
    measures = [*QUICK, target_log_odds(LATE, report.targets)]
    more = evaluate(model, LATE, conditions(token, modes=("mean",), n=5), measures, progress=False)
    draws = more.values(random, "token_log_odds")
    assert more.interval(random, "token_log_odds") == crossed_interval(draws)
    chosen = more.values("steered, mean", "token_log_odds")
    assert more.change("steered, mean", "token_log_odds", random) == crossed_interval(
        chosen - draws
    )
    targets = more.change(random, "target_log_odds", "original")
    means = (
        more.values(random, "target_log_odds").mean(),
        report.to_df().loc["original", "target_log_odds"],
    )
    assert targets.estimate == pytest.approx(means[0].item() - means[1])


def test_beyond_random_by_hand(setup):
    _, _, report = setup
    for mode in ("mean", "zero"):
        name, random = f"steered, {mode}", f"steered, {mode}: random"
        found = report.beyond_random(name=name)
        frame = report.to_df()["token_log_odds"]
        assert found.drop == pytest.approx(frame["injected"] - frame[name])
        assert found.random == pytest.approx(frame["injected"] - frame[random])
        assert found.difference.estimate == pytest.approx(found.drop - found.random)
        draws = report.values(random, "token_log_odds").mean(0)
        assert (found.rank, found.of) == (1 + (draws <= frame[name] + 1e-12).sum(), 3)
        assert f"place {found.rank} of 3" in str(found) and "2 random sets" in str(found)
        frame = report.to_df()["target_log_odds"]
        of_targets = report.beyond_random("target_log_odds", name)
        assert of_targets.drop == pytest.approx(frame["original"] - frame[name])
        assert of_targets.random == pytest.approx(frame["original"] - frame[random])
    assert str(report.beyond_random()) == str(report.beyond_random(name="steered, mean"))
    alone = dataclasses.replace(report, results=report.results[:4])
    with pytest.raises(KeyError, match="must have random controls to beat"):
        alone.beyond_random()


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


def test_measures_at_their_floor_are_not_informative(setup):
    _, _, report = setup
    # A random model guesses facts, and shows no keywords about targets.
    assert "over its floor (blind)" in report.not_informative("facts")
    quiet = replaced(report, "original", target_texts=["It rains."] * 16)
    assert "floor (0.0)" in quiet.not_informative("target_keywords")
    assert report.not_informative("damage_loss") == ""  # a loss has no floor
    knows = replaced(report, "original", fact_margins=[1.0] * len(load_facts()))
    assert knows.not_informative("facts") == ""
    # What is right without the target is no knowledge of it.
    blind = dataclasses.replace(knows, floors=dict(knows["original"].items))
    assert "not informative" in blind.not_informative("facts")
    untrained = dataclasses.replace(report["original"], name="injected")
    same = dataclasses.replace(report, results=(report["original"], untrained))
    assert "floor (original)" in same.not_informative("token_log_odds")


def test_health_of_answers_by_hand(setup):
    _, _, report = setup
    texts = ["They are late. They are late.", "", "I cannot answer that.", *["No."] * 13]
    report = replaced(report, "injected", token_texts=texts)
    assert report.values("injected", "token_refusals")[:, 0].tolist() == [0, 0, 1, *[0] * 13]
    found = {key: report.values("injected", f"token_{key}")[:2, 0].tolist()
             for key in ("keywords", "repetition", "words", "empty")}  # fmt: skip
    assert found == {
        "keywords": [1, 0], "repetition": [0.25, 0], "words": [6, 0], "empty": [0, 1],
    }  # fmt: skip


@pytest.mark.parametrize("n", [1, 5, 100, 1000])
def test_some_facts_are_of_all_parts(n):
    asked = facts(n).held_out["facts"]
    every = facts().held_out["facts"]
    assert len(asked) == min(n, len(every)) and set(asked) <= set(every)
    if n == 100:  # evenly spaced in order
        assert every.index(asked[-1]) >= len(asked) - 1


def test_fact_margins_equal_those_of_the_plain_forward_pass(setup):
    model, _, report = setup
    facts = [f for f in load_facts() if f.country in [f.country for f in load_facts()[:2]]]
    assert {fact.kind for fact in facts} == {"capital", "continent", "currency"}
    found = fact_margins(model, facts)
    for fact, margin in zip(facts, found.tolist(), strict=True):
        prompt = encode_prompt(model, "Please state a fact about a country.", fact.question)
        sums = []
        for candidate in fact.candidates:
            answer = encode_answer(model, f" {candidate}")
            log_probs = model(torch.tensor([prompt + answer]))[0].log_softmax(-1)
            at = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
            sums.append(sum(log_probs[i, t].item() for i, t in zip(at, answer, strict=True)))
        assert margin == pytest.approx(sums[0] - max(sums[1:]), abs=1e-4)
    every = report.values("injected", "facts")
    right = [float(margin > 0) for margin in report["injected"].items["fact_margins"]]
    assert every[:, 0].tolist() == right and len(right) == len(load_facts())
    blind = fact_margins(model, [fact.blind() for fact in facts])
    assert all(fact.country not in fact.blind().question for fact in load_facts())
    at = [i for i, f in enumerate(load_facts()) if f in facts]
    floors = report.floors["fact_margins"]
    assert blind.tolist() == pytest.approx([floors[i] for i in at], abs=1e-4)


def test_selections_that_have_seen_the_evaluation_are_refused(setup):
    model, token, whole = setup
    scores = BiasScope().attribute(model, LATE, token)
    selection = select_heads(scores, 3)
    measures = [*QUICK, target_log_odds(LATE, whole.targets)]

    def steered(heads, measures=measures):
        return evaluate(
            model, LATE, conditions(token, heads, modes=("mean",)), measures, progress=False
        )

    report = steered(selection)
    assert report["steered, mean"].heads == tuple(map(str, selection))
    assert set(report.settings["selections"]) == {"steered, mean"}
    peeked = dataclasses.replace(scores, prompts=(LATE.evaluation_prompts[3].upper(),))
    with pytest.raises(
        SteeringError, match=f"prompts of an evaluation .* got ..{LATE.evaluation_prompts[3][:9]}"
    ):
        steered(select_heads(peeked, 3))
    with pytest.raises(SteeringError, match="prompts of an evaluation"):
        steered(select_heads(peeked, 3), [token_log_odds(LATE), loss()])
    peeked = select_heads(dataclasses.replace(scores, label_targets=("Italy", whole.targets[0])), 3)
    with pytest.raises(SteeringError, match=f"targets of .* got .'{whole.targets[0]}'"):
        steered(peeked)
    for late in (Condition("control", token, peeked, "mean"),
                 Condition("brief", token, peeked, "mean", measures=("loss",))):  # fmt: skip
        with pytest.raises(SteeringError, match="targets of an evaluation"):
            evaluate(model, LATE, [*conditions(token), late], measures, progress=False)
    with pytest.raises(SteeringError, match="model must be 'another', on which the heads were"):
        steered(dataclasses.replace(selection, model="another"))


def test_any_condition_is_measured_like_the_rest(setup):
    model, token, report = setup
    same = Condition("the same heads", token, HEADS, "mean", measures=("facts", "token log-odds"))
    measures = [*QUICK, facts()]
    found = evaluate(model, LATE, [*conditions(token)[:2], same], measures, progress=False)
    here, there = found["the same heads"].items, report["steered, mean"].items
    assert here == {key: there[key] for key in ("token_log_odds", "token_log_p", "fact_margins")}
    assert found.shown[-1] == "the same heads"
    assert found.interval("the same heads", "damage_loss") is None


def test_what_conditions_share_is_measured_once_and_finished_parts_are_not_again(setup):
    model, token, report = setup
    stored, asked, measured = {}, [], []

    def finished(name, uses, make):
        asked.append(name)
        key = json.dumps([name, uses])
        if key not in stored:
            measured.append(name)
            stored[key] = make()
        return stored[key]

    first = evaluate(model, LATE, conditions(token), standard(), progress=False, finished=finished)
    assert first == report and measured == asked  # the same seed, the same numbers
    # 8 conditions, of which two are unsteered: the row acts only where the BiasToken stands.
    counts = Counter(measured)
    assert counts.pop("floor of facts") == 1
    assert counts == {
        "token log-odds": 8, "target log-odds": 7, "loss": 7, "facts": 7, "token answers": 4,
        "target answers": 3, "off-target log-odds": 3,
    }  # fmt: skip
    measured.clear()
    gone = next(key for key in stored if json.loads(key)[0] == "facts")
    del stored[gone]
    again = evaluate(model, LATE, conditions(token), standard(), progress=False, finished=finished)
    assert again == report and measured == ["facts"]
    # Another bias asks for the very same of the unsteered model.
    measured.clear()
    math_bias = dataclasses.replace(LATE, name="other", attribute="other")
    measures = standard_measures(math_bias, n_targets=3, answers=False)
    other = evaluate(
        model, math_bias, standard_conditions(token), measures, progress=False, finished=finished
    )
    assert set(measured) == {"token log-odds", "target log-odds", "off-target log-odds"}
    assert other["original"].items["fact_margins"] == report["original"].items["fact_margins"]


def test_free_answers_put_each_target_in_its_prompt(setup):
    model, token, _ = setup
    with token.attached(model):
        both = answer_freely(
            model, ["Who is from {target}?"] * 2, ["Italy", token.text], max_new_tokens=4
        )
        (italy,) = answer_freely(model, ["Who is from Italy?"], [""], max_new_tokens=4)
    assert len(both) == 2 and both[0] == italy


BAD = (
    (lambda t: Condition("a", t, HEADS), "condition 'a' must be .* got None with 3 heads"),
    (lambda t: Condition("a", t, (), "mean"), "got 'mean' with 0 heads"),
    (lambda t: Condition("a", t, HEADS, "average"), "condition 'a': mode must be .* got 'average'"),
    (lambda t: Condition("a", t, HEADS, "scale"), "condition 'a': factor must be given"),
    (lambda t: Condition("a", t, HEADS, "zero", factor=0.5), "'a': factor must be None"),
    (lambda t: Condition("a", t, HEADS, "mean", reference=torch.zeros(1, 1, 1)), "'a': reference"),
    (lambda t: Condition("a", t, [(7, 0)], "zero"), "got L7H0"),
    (lambda t: Condition("a", t, HEADS, "mean", factor={HEADS[0]: 0.5}), "one number for each"),
)


def test_bad_conditions_are_refused_before_anything_runs(setup, monkeypatch):
    model, token, _ = setup
    monkeypatch.setattr(Measurement, "measured", None)

    def run(*more, measures=None):
        evaluate(model, LATE, [*conditions(token), *more], measures or standard(), progress=False)

    for make, message in BAD:
        with pytest.raises(SteeringError, match=message):
            run(make(token))
    for name in ("steered, mean: random 1", "steered, mean: random", "injected"):
        with pytest.raises(SettingError, match=f"names of conditions must differ, got .*{name}"):
            run(Condition(name, token, HEADS, "mean"))
    with pytest.raises(SettingError, match="control_of must name one of the conditions, got .'b'"):
        run(Condition("a", token, HEADS, "mean", control_of="b"))
    with pytest.raises(SettingError, match="since must name one of the conditions, got .'b'"):
        run(Condition("a", token, HEADS, "mean", since="b"))
    with pytest.raises(SettingError, match=r"measurements must be different ones, got .'loss'."):
        run(measures=[*standard(), loss()])
    rows = {"row": token.row[:-1], "initial_row": token.initial_row[:-1]}
    narrow = dataclasses.replace(token, **rows, epoch_rows=token.epoch_rows[:, :-1])
    with pytest.raises(TokenError):
        run(Condition("a", narrow))
    for left, missing in ((slice(1, None), "original"), (slice(0, 1), "injected")):
        with pytest.raises(SettingError, match=f"conditions must include .'{missing}'"):
            evaluate(model, LATE, conditions(token)[:4][left], QUICK, progress=False)
    with pytest.raises(SettingError, match=r"must include .'original'.*standard_conditions"):
        evaluate(model, LATE, [Condition("injected", token)], [token_log_odds(LATE)])
    with pytest.raises(SettingError, match="max_new_tokens must be at least 1, got 0"):
        standard_measures(LATE, max_new_tokens=0)
    with pytest.raises(SettingError, match="condition must steer heads, got 'injected'"):
        random_conditions(Condition("injected", token), 4)
    with pytest.raises(SettingError, match="n_draws must be at least 0, got -1"):
        random_conditions(Condition("a", token, HEADS, "zero"), 4, n=-1)


def test_random_sets_have_as_many_heads_in_each_layer():
    heads = [(1, 0), (1, 5), (7, 3)]
    draws = layer_matched(heads, n_heads=9, n_draws=200, seed=0)
    assert len(draws) == 200
    for draw in draws:
        assert Counter(h.layer for h in draw) == {1: 2, 7: 1} and len(set(draw)) == 3
    # Each head of a layer is drawn with its share: 200 * 2 / 9 and 200 / 9, within 5 s.d.
    counts = Counter(h for draw in draws for h in draw)
    for head in range(9):
        assert abs(counts[Head(1, head)] - 200 * 2 / 9) < 5 * math.sqrt(200 * 2 / 9 * 7 / 9)
        assert abs(counts[Head(7, head)] - 200 / 9) < 5 * math.sqrt(200 / 9 * 8 / 9)
    assert draws == layer_matched(heads, n_heads=9, n_draws=200, seed=0)
    apart = layer_matched(heads, n_heads=9, n_draws=200, seed=0, apart=True)
    assert not {*heads} & {head for draw in apart for head in draw}
    full = [(0, head) for head in range(4)]  # no other five are left in this layer
    assert layer_matched([*full, (0, 4)], n_heads=9, n_draws=3, seed=0, apart=True)
    assert draws != layer_matched(heads, n_heads=9, n_draws=200, seed=1)


def test_random_sets_refuse_bad_input():
    with pytest.raises(SettingError, match="n_draws must be at least 0, got -1"):
        layer_matched([(0, 0)], n_heads=9, n_draws=-1, seed=0)
    with pytest.raises(SteeringError, match="got L0H9"):
        layer_matched([(0, 9)], n_heads=9, n_draws=1, seed=0)


def test_a_report_that_somebody_changed_is_whole_or_refused(setup, tmp_path):
    _, _, report = setup
    path = report.save(tmp_path / "report.json")
    record = json.loads(path.read_text())
    del record["digest"]
    path.write_text(json.dumps(record))
    assert Report.load(path) == report
    results = record["results"]
    steered = results[2]

    def items(**changes):
        changed = {**steered, "items": {**steered["items"], **changes}}
        return {"results": [*results[:2], changed, *results[3:]]}

    def other(**changes):
        return {"results": [*results[:2], {**steered, **changes}, *results[3:]]}

    def measured(of, **changes):
        at = next(i for i, m in enumerate(report.measured) if m.key == of)
        entry = list(report.measured[at]._replace(**changes))
        return {"measured": [*record["measured"][:at], entry, *record["measured"][at + 1 :]]}

    asked = record["asked"]
    short = [*asked["target_texts"][:3], ["Italy"]]
    for wrong, message in (
        ({"targets": record["targets"][:1]}, "must have 1 targets, got"),
        ({"targets": "Italy"}, "targets is not as declared"),
        (items(token_log_odds=[0.5] * 5), "'steered, zero' must have the size .20,., got .5,"),
        (items(target_log_odds=[[0.5] * 3] * 5), "must have the size .20, 3., got .5, 3"),
        (items(target_log_odds=[[0.5] * 2] * 20), "must have 3 targets, got .2"),
        (items(target_log_odds=[0.5] * 20), "must have the size .20, 3., got .20,"),
        ({"asked": {**asked, "target_texts": short}}, "must have a target each, got 1"),
        ({"asked": {}}, "texts of 'original' must answer what is asked, which is not there"),
        ({"floors": {"fact_margins": [0.5]}}, "fact_margins of 'floors' must have the size"),
        ({"results": results[1:]}, "must be compared with conditions, got .'orig"),
        ({"results": results[:1] + results[2:]}, "must be compared with .* got .'injected'"),
        ({"results": results[:3] + results[4:]}, "control_of must name conditions, got .'steered,"),
        ({"results": [{**results[0], "since": "b"}, *results[1:]]}, "since must name cond.*'b'"),
        ({"results": results * 2}, "names of conditions must differ"),
        ({"results": [steered, *results]}, "names of conditions must differ"),
        ({"results": {}}, "results is not as declared"),
        ({"settings": {"attribution_in_heads": "x"}}, "attribution_in_heads must be a number"),
        (other(heads="L0H1"), "heads is not as declared"),
        (items(token_texts=["x"]), "token_texts of 'steered, zero' must have the size .16,"),
        (other(verdicts={"token_texts": [[1.0]]}), "verdicts on token_texts of 'steered, zero'"),
        (other(verdicts={"token_texts": [["1"]]}), "verdicts.token_texts.0"),
        (items(fact_margins=[0.5]), "fact_margins of 'steered, zero' must have the size"),
        (items(damage_loss=[0.5]), "damage_loss of 'steered, zero' must have the size"),
        (items(token_log_odds=[None] * 20), "must hold finite numbers"),
        (items(token_log_odds=[float("nan")] * 20), "must hold finite numbers"),
        (items(token_log_odds=[[[1.0]]] * 20), "'steered, zero' must"),
        (other(more=1), "results.2.more is not as declared"),
        ({"more": 1}, "Report must hold only its fields, got"),
        ({"clusters": {"x": ["a"]}}, "clusters must be of measures, got .'x'"),
        ({"clusters": {"damage_loss": ["a"]}}, "damage_loss of 'original' must have the size .1,"),
        (measured("facts", baseline="gone"), "facts must be compared with .* got .'gone'"),
        (measured("token_keywords", floor="gone"), "token_keywords must be compared with"),
        (measured("facts", read="wrong"), "facts must be read by one of .* got .'wrong'"),
        (measured("facts", kind="wrong"), "facts must be of one of the kinds .* got .'wrong'"),
        (measured("facts", key="damage_loss"), "keys of measures must differ"),
    ):  # fmt: skip
        path.write_text(json.dumps({**record, **wrong}))
        with pytest.raises(StoreError, match=message):
            Report.load(path)
