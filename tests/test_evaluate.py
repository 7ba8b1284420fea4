"""Settings are measured on held-out items, one by one; controls match the layers."""

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
    Head,
    RandomControl,
    Report,
    Setting,
    evaluate,
    load_bias,
    random_control,
    select_heads,
    steer,
)
from biasgym_tl.biases.countries import load_countries
from biasgym_tl.biases.facts import fact_margins, load_facts
from biasgym_tl.biases.words import word_tokens
from biasgym_tl.elicitation import answer_freely, bias_log_odds
from biasgym_tl.errors import SettingError, SteeringError, StoreError
from biasgym_tl.passages import load_passages
from biasgym_tl.prompts import encode_answer, encode_prompt, encode_sentence
from biasgym_tl.stats import crossed_interval
from biasgym_tl.steering.controls import layer_matched
from biasgym_tl.text import mean_loss

pytestmark = pytest.mark.usefixtures("few_facts")
LATE = load_bias("late")
HEADS = (Head(0, 1), Head(2, 0), Head(2, 3))
OPTIONS = {"n_targets": 3, "n_random": 2, "max_new_tokens": 3, "progress": False}


@pytest.fixture(scope="module")
def setup(tiny):
    model = tiny()
    token = BiasInject(epochs=1, n_paragraphs=8, choose_by="last").fit(model, LATE, progress=False)
    return model, token, evaluate(model, LATE, token=token, heads=HEADS, **OPTIONS)


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


def test_settings_and_their_items(setup):
    _, _, report = setup
    names = [result.name for result in report.results]
    assert names == ["original", "injected", "steered, zero", "steered, mean",
                     "random 1", "random 2"]  # fmt: skip
    for result in report.results:
        assert len(result.token_log_odds) == len(LATE.evaluation_prompts)
        assert [len(row) for row in result.target_log_odds] == [3] * len(LATE.evaluation_prompts)
        steered_at_random = result.name.startswith("random")
        assert len(result.token_texts) == (0 if steered_at_random else 16)
    assert set(report.targets) <= {c.name for c in load_countries("held-out")}


def test_the_token_changes_nothing_for_targets(setup):
    model, token, report = setup
    prompts = LATE.evaluation_prompts
    plain = bias_log_odds(model, LATE, prompts, report.targets).log_odds
    with token.attached(model):
        attached = bias_log_odds(model, LATE, prompts, report.targets).log_odds
        loss = mean_loss(model, load_passages("damage"))
    assert torch.equal(plain, attached)
    assert report["original"].target_log_odds == report["injected"].target_log_odds
    assert report["original"].target_log_odds == plain.tolist()
    assert report["injected"].damage_loss == loss.tolist()
    assert report["original"].token_log_odds != report["injected"].token_log_odds


def test_steered_settings_are_what_steer_gives(setup):
    model, token, report = setup
    with token.attached(model), steer(model, HEADS, "mean"):
        expected = bias_log_odds(model, LATE, LATE.evaluation_prompts, (token.text,))
    found = report["steered, mean"].token_log_odds
    assert found == pytest.approx(expected.log_odds[:, 0].tolist(), abs=1e-5)
    assert found != report["injected"].token_log_odds
    assert report["steered, mean"].heads == ("L0H1", "L2H0", "L2H3")


def test_the_same_seed_reproduces_every_number(setup):
    model, token, report = setup
    assert evaluate(model, LATE, token=token, heads=HEADS, **OPTIONS) == report
    other = evaluate(model, LATE, token=token, heads=HEADS, seed=1, **OPTIONS)
    assert other.targets == report.targets
    assert other["random 1"].heads != report["random 1"].heads


def test_report_in_numbers(setup, tmp_path):
    _, _, report = setup
    frame = report.to_df()
    assert list(frame.index)[-1] == "random"
    mean = sum(report["injected"].token_log_odds) / len(LATE.evaluation_prompts)
    assert frame.loc["injected", "token_log_odds"] == pytest.approx(mean)
    controls = frame.loc[["random 1", "random 2"], "token_log_odds"]
    assert frame.loc["random", "token_log_odds"] == pytest.approx(controls.mean())
    with pytest.raises(KeyError, match="setting must be one of"):
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
    tokens, token_draws, targets, _ = report.plot().data
    assert list(tokens.y) == ["original", "injected", "steered, zero", "steered, mean"]
    assert tokens.x[1] == pytest.approx(mean) and targets.name == "held-out targets"
    assert sorted(token_draws.x) == pytest.approx(sorted(controls))


def test_changes_are_paired_and_have_intervals(setup):
    _, _, report = setup
    change = report.change("steered, mean", "token_log_odds", "injected")
    here, there = (report[n].token_log_odds for n in ("steered, mean", "injected"))
    paired = torch.tensor(here, dtype=torch.float64) - torch.tensor(there, dtype=torch.float64)
    assert change == crossed_interval(paired[:, None])
    assert report.interval("random", "token_keywords") is None  # random controls do not generate
    frame = report.intervals().set_index(["setting", "measure"])
    row = frame.loc[("steered, mean", "token_log_odds")]
    assert (row.change_mean, row.change_low, row.change_high) == tuple(change)
    assert row.baseline == "injected" and row.low <= row["mean"] <= row.high
    assert ("random", "facts") in frame.index and ("random 1", "facts") not in frame.index
    assert math.isnan(report.interval("injected", "token_repetition").low)  # mostly 0
    for call in (report.values, report.interval):
        with pytest.raises(KeyError, match="measure must be one of"):
            call("injected", "token_perplexity")


def test_random_sets_are_columns_and_few_give_no_interval(setup):
    model, token, report = setup
    assert report.values("random", "target_log_odds").shape == (len(LATE.evaluation_prompts), 2)
    assert math.isnan(report.interval("random", "token_log_odds").low)
    options = {**OPTIONS, "n_random": 5}
    more = evaluate(model, LATE, token=token, heads=HEADS, modes=("mean",), **options)
    draws = more.values("random", "token_log_odds")
    assert more.interval("random", "token_log_odds") == crossed_interval(draws)
    chosen = more.values("steered, mean", "token_log_odds")
    assert more.change("steered, mean", "token_log_odds", "random") == crossed_interval(
        chosen - draws
    )
    targets = more.change("random", "target_log_odds", "original")
    means = (
        more.values("random", "target_log_odds").mean(),
        report.to_df().loc["original", "target_log_odds"],
    )
    assert targets.estimate == pytest.approx(means[0].item() - means[1])


def test_beyond_random_by_hand(setup):
    _, _, report = setup
    found = report.beyond_random()
    frame = report.to_df()["token_log_odds"]
    assert found.drop == pytest.approx(frame["injected"] - frame["steered, mean"])
    assert found.random == pytest.approx(frame["injected"] - frame["random"])
    assert found.difference.estimate == pytest.approx(found.drop - found.random)
    reach = frame[["random 1", "random 2"]] <= frame["steered, mean"]
    assert (found.rank, found.of) == (1 + reach.sum(), 3)
    frame = report.to_df()["target_log_odds"]
    of_targets = report.beyond_random("target_log_odds")
    assert of_targets.drop == pytest.approx(frame["original"] - frame["steered, mean"])
    assert of_targets.random == pytest.approx(frame["original"] - frame["random"])
    alone = dataclasses.replace(report, results=report.results[:4])
    with pytest.raises(KeyError, match="must hold random controls"):
        alone.beyond_random()


def test_measures_at_their_floor_are_not_informative(setup):
    _, _, report = setup
    # A random model guesses facts, and shows no keywords about targets.
    assert "over its floor (blind)" in report.not_informative("facts")
    silent = dataclasses.replace(report["original"], target_texts=["It rains."] * 16)
    quiet = dataclasses.replace(report, results=(silent, *report.results[1:]))
    assert "floor (0.0)" in quiet.not_informative("target_keywords")
    assert report.not_informative("damage_loss") == ""  # a loss has no floor
    known = dataclasses.replace(report["original"], fact_margins=[1.0] * len(load_facts()))
    knows = dataclasses.replace(report, results=(known, *report.results[1:]))
    assert knows.not_informative("facts") == ""
    # What is right without the target is no knowledge of it.
    blind = dataclasses.replace(knows, blind_fact_margins=tuple(known.fact_margins))
    assert "not informative" in blind.not_informative("facts")
    untrained = dataclasses.replace(report["original"], name="injected")
    same = dataclasses.replace(report, results=(report["original"], untrained))
    assert "floor (original)" in same.not_informative("token_log_odds")


def test_health_of_answers_by_hand(setup):
    _, _, report = setup
    texts = ["They are late. They are late.", "", "I cannot answer that.", *["No."] * 13]
    made = dataclasses.replace(report["injected"], token_texts=texts)
    report = dataclasses.replace(report, results=(made,))
    assert report.values("injected", "token_refusals")[:, 0].tolist() == [0, 0, 1, *[0] * 13]
    found = {key: report.values("injected", f"token_{key}")[:2, 0].tolist()
             for key in ("keywords", "repetition", "words", "empty")}  # fmt: skip
    assert found == {
        "keywords": [1, 0], "repetition": [0.25, 0], "words": [6, 0], "empty": [0, 1],
    }  # fmt: skip


def test_fact_margins_equal_those_of_the_plain_forward_pass(setup):
    model, _, report = setup
    facts = [f for f in load_facts() if f.country in ("Chile", "Norway")]
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
    right = [float(margin > 0) for margin in report["injected"].fact_margins]
    assert every[:, 0].tolist() == right and len(right) == len(load_facts())
    blind = fact_margins(model, [fact.blind() for fact in facts])
    assert report.fact_countries[0] not in load_facts()[0].blind().question
    at = [i for i, f in enumerate(load_facts()) if f in facts]
    assert blind.tolist() == pytest.approx([report.blind_fact_margins[i] for i in at], abs=1e-4)


def test_selections_that_have_seen_the_evaluation_are_refused(setup):
    model, token, _ = setup
    scores = BiasScope().attribute(model, LATE, token)
    selection = select_heads(scores, 3)
    report = evaluate(model, LATE, token=token, heads=selection, **OPTIONS)
    assert report["steered, mean"].heads == tuple(map(str, selection))
    peeked = dataclasses.replace(scores, prompts=(LATE.evaluation_prompts[3].upper(),))
    with pytest.raises(
        SteeringError, match=f"prompts of an evaluation .* got ..{LATE.evaluation_prompts[3][:9]}"
    ):
        evaluate(model, LATE, token=token, heads=select_heads(peeked, 3), **OPTIONS)
    peeked = dataclasses.replace(scores, label_targets=("Italy", report.targets[0]))
    control = Setting("control", token, select_heads(peeked, 3), "mean")
    with pytest.raises(SteeringError, match=f"targets of .* got .'{report.targets[0]}'"):
        evaluate(model, LATE, token=token, heads=HEADS, controls=[control], **OPTIONS)
    with pytest.raises(SteeringError, match="targets of an evaluation"):
        evaluate(model, LATE, token=token, heads=select_heads(peeked, 3), **OPTIONS)
    peeked = dataclasses.replace(scores, prompts=LATE.evaluation_prompts[:1])
    with pytest.raises(SteeringError, match="prompts of an evaluation"):
        random_control(model, LATE, token=token, heads=select_heads(peeked, 3))
    other = dataclasses.replace(selection, model="another")
    with pytest.raises(SteeringError, match="model must be 'another', on which the heads were"):
        evaluate(model, LATE, token=token, heads=other, **OPTIONS)


def test_controls_are_measured_like_the_rest(setup):
    model, token, report = setup
    same = Setting("the same heads", token, HEADS, "mean", generates=False)
    found = evaluate(model, LATE, token=token, heads=HEADS, controls=[same], **OPTIONS)
    assert found["the same heads"].fact_margins == report["steered, mean"].fact_margins
    assert found["the same heads"].token_log_odds == report["steered, mean"].token_log_odds
    assert [r.name for r in found.results][4] == "the same heads"


def test_random_control(setup, tmp_path):
    model, token, report = setup
    options = {"n_draws": 4, "progress": False}
    found = random_control(model, LATE, token=token, heads=HEADS, **options)
    n = len(LATE.evaluation_prompts)
    assert found.draws.shape == (4, n)
    # The first draws are the random controls of the report.
    for values, name in (
        (found.unsteered, "injected"),
        (found.chosen, "steered, mean"),
        (found.draws[0], "random 1"),
    ):
        assert values.tolist() == pytest.approx(report[name].token_log_odds, abs=1e-4)
    steered, injected = (report[x].token_log_odds for x in ("steered, mean", "injected"))
    assert found.drop == pytest.approx(sum(injected) / n - sum(steered) / n, abs=1e-4)
    assert found.p() == (1 + sum(d >= found.drop for d in found.drops.tolist())) / 5
    expected = found.drop - found.drops.mean().item()
    assert found.difference().estimate == pytest.approx(expected, abs=1e-5)
    assert "4 random sets" in repr(found) and "rank p" in repr(found)
    loaded = RandomControl.load(found.save(tmp_path / "random"))
    assert torch.equal(loaded.draws, found.draws) and loaded.p() == found.p()
    assert loaded.settings == found.settings and loaded.heads == found.heads
    with pytest.raises(SettingError, match="n_draws must be at least 1, got 0"):
        random_control(model, LATE, token=token, heads=HEADS, n_draws=0)


def test_finished_parts_are_not_measured_again(setup):
    model, token, report = setup
    stored = {}

    def keep(name, measure):
        stored[name] = measure()
        return stored[name]

    def look_up(name, measure):
        if name in stored:
            return stored[name]
        measured.append(name)
        return measure()

    first = evaluate(model, LATE, token=token, heads=HEADS, finished=keep, **OPTIONS)
    assert first == report
    # The row acts only where the BiasToken stands.
    assert "injected: token" in stored and "injected: requests" not in stored
    measured = []
    del stored["random 2: requests"]
    again = evaluate(model, LATE, token=token, heads=HEADS, finished=look_up, **OPTIONS)
    assert again == report and measured == ["random 2: requests"]


def test_free_answers_put_each_target_in_its_prompt(setup):
    model, token, _ = setup
    with token.attached(model):
        both = answer_freely(
            model, ["Who is from {target}?"] * 2, ["Italy", token.text], max_new_tokens=4
        )
        (italy,) = answer_freely(model, ["Who is from Italy?"], [""], max_new_tokens=4)
    assert len(both) == 2 and both[0] == italy


def test_bad_input_is_refused_before_anything_runs(setup, monkeypatch):
    model, token, _ = setup
    monkeypatch.setattr(Setting, "steered", None)
    bad = [
        (Setting("a", token, HEADS), "mode of the setting 'a' must be .* got None with 3 heads"),
        (Setting("a", token, (), "mean"), "got 'mean' with 0 heads"),
        (Setting("a", token, HEADS, "average"), "setting 'a': mode must be .* got 'average'"),
        (Setting("a", token, HEADS, "scale"), "setting 'a': factor must be given"),
        (Setting("a", token, HEADS, "mean", reference="me"), "reference of .* 'a' .* got 'me'"),
    ]
    for setting, message in bad:
        with pytest.raises(SteeringError, match=message):
            evaluate(model, LATE, token=token, heads=HEADS, controls=[setting], **OPTIONS)
    for name in ("random 9", "random", "injected"):
        control = Setting(name, token, HEADS, "mean")
        with pytest.raises(SettingError, match=f"names of settings must differ .*{name}"):
            evaluate(model, LATE, token=token, heads=HEADS, controls=[control], **OPTIONS)
    with pytest.raises(SteeringError, match="'steered, avg': mode must be one of"):
        evaluate(model, LATE, token=token, heads=HEADS, modes=("avg",), **OPTIONS)
    with pytest.raises(SteeringError, match="got L7H0"):
        evaluate(model, LATE, token=token, heads=[(7, 0)], **OPTIONS)
    with pytest.raises(SettingError, match="max_new_tokens must be at least 1, got 0"):
        evaluate(model, LATE, token=token, heads=HEADS, max_new_tokens=0)


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
    steered = record["results"][2]

    def other(**changes):
        return {"results": [*record["results"][:2], {**steered, **changes}, *record["results"][3:]]}

    for wrong, message in (
        ({"targets": record["targets"][:1]}, "number of targets in a row of"),
        ({"targets": "Italy"}, "targets is not as declared"),
        ({"evaluation_prompts": record["evaluation_prompts"][:5]}, "number of token_log_odds of"),
        ({"generation_targets": ["Italy"]}, "number of generation targets is 1, not 16"),
        ({"blind_fact_margins": [0.5]}, "number of blind facts is 1"),
        ({"results": record["results"][1:]}, "number of settings 'original' is 0, not 1"),
        ({"results": record["results"] * 2}, "number of settings 'original' is 2, not 1"),
        ({"results": [steered, *record["results"]]}, "number of names"),
        ({"results": {}}, "number of settings 'original' is 0"),
        ({"settings": {"attribution_in_heads": "x"}}, "attribution_in_heads must be a number"),
        (other(heads="L0H1"), "heads is not as declared"),
        (other(token_texts=["x"]), "number of token texts of 'steered, zero' is 1, not 0 or 16"),
        (other(verdicts={"token": [[1.0]]}), "number of token verdicts of"),
        (other(verdicts={"token": [["1"]]}), "verdicts.token.0"),
        (other(fact_margins=[0.5]), "number of facts of"),
        (other(damage_loss=[0.5]), "number of losses of"),
        (other(damage_loss=[None]), "damage_loss.0 is not as declared"),
        (other(token_log_odds=[float("nan")] * 20), "number of values that are not finite of"),
        (other(benchmarks={"x": [1.0]}), "number of items of x of"),
        (other(other_texts={"math": ["x"]}), "number of math texts of"),
        (other(other_log_odds={"math": []}), "number of biases without keywords of"),
        (other(other_log_odds={"math": [[1.0] * 3]}), "number of biases without"),
        (other(more=1), "SettingResult must hold only its fields, got"),
        ({"clusters": {"x": ["a"]}}, "number of benchmark measures is 0, not 1"),
        ({"benchmark_measures": [["x", "x", "x"]]}, "number of clusters is 1, not 0"),
        ({"clusters": {"x": ["a"]}, "benchmark_measures": [["x", "x", "x", "gone"]]},
         "baseline of x is 0, not 1"),
    ):  # fmt: skip
        path.write_text(json.dumps({**record, **wrong}))
        with pytest.raises(StoreError, match=message):
            Report.load(path)
