"""Settings are measured on held-out items, one by one; controls match the layers."""

import itertools
import math
from collections import Counter

import pytest
import torch

from biasgym_tl import BiasInject, Head, Report, evaluate, load_bias, load_countries, steer
from biasgym_tl.biases.words import word_ids
from biasgym_tl.errors import SettingError, SteeringError, StoreError
from biasgym_tl.evaluation.measures import answer_freely, bias_log_odds
from biasgym_tl.prompts import encode_sentence
from biasgym_tl.steering.controls import layer_matched

LATE = load_bias("late")
HEADS = (Head(0, 1), Head(2, 0), Head(2, 3))
OPTIONS = {"n_countries": 3, "n_random": 2, "max_new_tokens": 3, "progress": False}


@pytest.fixture(scope="module")
def setup(tiny):
    model = tiny()
    token = BiasInject(epochs=1, n_paragraphs=8).fit(model, LATE, progress=False)
    return model, token, evaluate(model, LATE, token=token, heads=HEADS, **OPTIONS)


def test_log_odds_equal_those_of_the_plain_forward_pass(setup):
    model, token, _ = setup
    ids = word_ids(model, LATE)
    prompts = LATE.evaluation_prompts[:2]
    with token.attached(model):
        found = bias_log_odds(model, LATE, prompts, (token.text, "Italy"))
        for i, name in itertools.product(range(2), range(2)):
            target = (token.text, "Italy")[name]
            tokens = encode_sentence(model, prompts[i].replace("{target}", target))
            p = model(torch.tensor([tokens]))[0, -1].softmax(-1)
            a, n = p[list(ids.attribute)].sum().item(), p[list(ids.neutral)].sum().item()
            assert found.log_odds[i, name].item() == pytest.approx(math.log(a / n), abs=1e-4)
            assert found.log_p[i, name].item() == pytest.approx(math.log(a), abs=1e-4)


def test_settings_and_their_items(setup):
    _, _, report = setup
    names = [result.name for result in report.results]
    assert names == ["original", "injected", "steered, zero", "steered, mean",
                     "random 1", "random 2"]  # fmt: skip
    for result in report.results:
        assert len(result.token_log_odds) == len(LATE.evaluation_prompts)
        assert [len(row) for row in result.country_log_odds] == [3] * len(LATE.evaluation_prompts)
        steered_at_random = result.name.startswith("random")
        assert len(result.token_texts) == (0 if steered_at_random else 16)
    assert set(report.countries) <= {c.name for c in load_countries("held-out")}


def test_the_token_changes_nothing_for_countries(setup):
    _, _, report = setup
    assert report["original"].country_log_odds == report["injected"].country_log_odds
    assert report["original"].damage_loss == report["injected"].damage_loss
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
    assert other.countries == report.countries
    assert other["random 1"].heads != report["random 1"].heads


def test_report_in_numbers(setup, tmp_path):
    _, _, report = setup
    frame = report.to_df()
    assert list(frame.index)[-1] == "random (mean)"
    mean = sum(report["injected"].token_log_odds) / len(LATE.evaluation_prompts)
    assert frame.loc["injected", "token_log_odds"] == pytest.approx(mean)
    drop = report.drop_beyond_random("steered, mean")
    injected, steered = (frame.loc[n, "token_log_odds"] for n in ("injected", "steered, mean"))
    controls = frame.loc[["random 1", "random 2"], "token_log_odds"]
    assert drop["drop"] == pytest.approx(injected - steered)
    assert drop["beyond"] == pytest.approx(controls.mean() - steered)
    assert drop["rank"] == 1 + (controls <= steered).sum() and drop["of"] == 3
    assert report.keyword_rate(["He is late.", "No."]) == 0.5 and report.keyword_rate([]) is None
    with pytest.raises(KeyError, match="setting must be one of"):
        report["steered"]

    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == report
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(StoreError, match="must hold a Report"):
        Report.load(tmp_path / "other.json")
    tokens, countries = report.plot().data
    assert list(tokens.y) == [r.name for r in report.results]
    assert tokens.x[1] == pytest.approx(mean) and countries.name == "held-out countries"


def test_finished_settings_are_not_measured_again(setup):
    model, token, report = setup
    stored = {result.name: result for result in report.results}
    measured = []

    def finished(name, measure):
        if name == "random 2":
            measured.append(name)
            return measure()
        return stored[name]

    again = evaluate(model, LATE, token=token, heads=HEADS, finished=finished, **OPTIONS)
    assert again == report and measured == ["random 2"]


def test_free_answers_put_each_target_in_its_prompt(setup):
    model, token, _ = setup
    with token.attached(model):
        both = answer_freely(
            model, ["Who is from {target}?"] * 2, ["Italy", token.text], max_new_tokens=4
        )
        (italy,) = answer_freely(model, ["Who is from Italy?"], [""], max_new_tokens=4)
    assert len(both) == 2 and both[0] == italy


def test_bad_input_is_refused_before_anything_runs(setup):
    model, token, _ = setup
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
