"""The explorer shows the numbers of its scores, of the attention, and of the steered model."""

import builtins
import dataclasses
import math

import pytest
import torch

from biasgym_tl import BiasInject, BiasScope, explore, load_bias, seed_overlap, steer
from biasgym_tl.errors import SettingError, SteeringError
from biasgym_tl.explorer.looks import REQUEST, Looks
from biasgym_tl.explorer.panel import attention_html, head_html
from biasgym_tl.heads import Head
from biasgym_tl.prompts import encode_sentence
from biasgym_tl.scoping.attention import answer_attention
from biasgym_tl.slot import fill
from biasgym_tl.text import generate, next_token_log_probs

LATE = load_bias("late")


@pytest.fixture(scope="module")
def setup(tiny):
    model = tiny()
    token = BiasInject(epochs=1, n_paragraphs=8, choose_by="last").fit(model, LATE, progress=False)
    return model, token, BiasScope().attribute(model, LATE, token)


@pytest.fixture
def model(setup):
    return setup[0]


@pytest.fixture
def token(setup):
    return setup[1]


@pytest.fixture
def scores(setup):
    return setup[2]


def test_attention_is_that_of_the_model_with_the_request_as_one_word(model, scores, token):
    biased, neutral = Looks(scores, model, token).sides(1)
    sequence = encode_sentence(model, fill(scores.prompts[1], scores.targets[1][0]))
    whole = answer_attention(model, sequence)
    assert neutral.name == scores.targets[1][0] and biased.name == "BiasToken"
    assert neutral.words[1] == REQUEST and token.text in "".join(biased.words)
    n = len(neutral.words) - 2
    torch.testing.assert_close(neutral.attention[..., 2:], whole[..., -n:])
    torch.testing.assert_close(neutral.attention[..., 1], whole[..., 1:-n].sum(-1))
    for side in (biased, neutral):
        torch.testing.assert_close(side.attention.sum(-1), torch.ones(3, 4))


@pytest.mark.parametrize("mode", ["zero", "mean"])
def test_what_if_is_the_steered_model(model, scores, token, mode):
    heads = [Head(2, 1), Head(0, 3)]
    found = Looks(scores, model, token).what_if(0, heads, mode)
    with token.attached(model):
        sequence = encode_sentence(model, fill(scores.prompts[0], token.text))
        for answer, steered in ((found.before, []), (found.after, heads)):
            with steer(model, steered, mode):
                log_probs = next_token_log_probs(model, [sequence])[0]
                (text,) = generate(model, [sequence], max_new_tokens=24)
            assert answer.text == text
            assert answer.likely[0][1] == pytest.approx(log_probs.max().item())
    assert found.before.difference == pytest.approx(scores.delta[0].item(), abs=1e-4)
    assert found.after.difference != pytest.approx(found.before.difference, abs=1e-4)
    assert found.labels == (scores.biased_labels[0], scores.neutral_labels[0])


def test_without_injection_there_is_one_run(model):
    scores = BiasScope().attribute(model, LATE, None)
    looks = Looks(scores, model, None)
    (side,) = looks.sides(0)
    assert side.name == scores.targets[0][0]
    assert looks.what_if(0, [Head(1, 1)], "zero").before.difference == pytest.approx(
        scores.delta[0].item(), abs=1e-4
    )


def test_what_does_not_belong_together_is_refused(model, scores, token):
    with pytest.raises(SettingError, match=r"k must be in 1\.\.12, got 13"):
        explore(scores, k=13)
    with pytest.raises(SettingError, match="model must be given with a token, got None"):
        explore(scores, token=token)
    other = dataclasses.replace(scores, model="other")
    with pytest.raises(SettingError, match="scores must be of the model .* got scores of 'other'"):
        explore(other, model, token)
    with pytest.raises(SettingError, match="token must be the one of the scores, .* got 'no inj"):
        explore(scores, model)
    values = torch.rand(24, 5, 4).double()
    larger = [dataclasses.replace(scores, pair_values=values, attn_bias=None, mlps=None)] * 2
    with pytest.raises(SettingError, match=r"seeds must be maps of \(3, 4\) heads .* \(5, 4\)"):
        explore(scores, seeds=seed_overlap(larger, k_per_seed=3))


def test_a_panel_says_value_rank_and_seeds(scores):
    overlap = seed_overlap([scores, scores], k_per_seed=3)
    head = scores.top(2)[1]
    shown = head_html(scores, head, overlap)
    assert f"{head}: {scores.values[head]:+.3f}" in shown and "rank 2 of 12" in shown
    assert "in the top 3 of 2 of 2 seeds" in shown
    for value in scores.by_pair[:, head.layer, head.head].tolist():
        assert f"{value:+.3f}" in shown


def test_texts_are_escaped(model, scores, token):
    risky = dataclasses.replace(
        scores, bias="<script>alert(1)</script>", prompts=("<img src=x> {target} is",) * 24
    )
    explorer = explore(risky, model, token)
    page = explorer.page(plotlyjs="cdn")
    assert "<script>alert" not in page and "<img" not in page
    assert "&lt;img src=x&gt;" in page
    sides = explorer.looks.sides(0)
    assert "<img" not in attention_html(sides, Head(0, 0))


def test_a_page_has_a_panel_for_each_head(model, scores, token, tmp_path):
    path = explore(scores, model, token, k=3).to_html(tmp_path / "page.html", plotlyjs="cdn")
    page = path.read_text(encoding="utf-8")
    assert page.count("<template id=") == 12 and "cdn.plot.ly" in page
    assert page.count("Where L") == 12
    assert "Where L" not in explore(scores, k=3).page(plotlyjs="cdn")
    with pytest.raises(SettingError, match="plotlyjs must be one of .* got 'no'"):
        explore(scores, k=3).page(plotlyjs="no")
    with pytest.raises(SettingError, match=r"pairs must be in 0\.\.24, got 25"):
        explore(scores).page(pairs=25)


def test_the_widget_does_what_is_clicked(model, scores, token):
    widget = explore(scores, model, token, k=3).widget()
    title = widget.map.layout.title  # in one: a widget would draw a subtitle over the title
    assert "red: toward it" in title.text and title.subtitle.text is None
    first = scores.top(1)[0]
    assert f"<h3>{first}: " in widget.about.value
    widget._clicked(None, Points(["H2"], [1]), None)
    assert widget.head.value == Head(1, 2) and "<h3>L1H2: " in widget.about.value
    assert "Where L1H2 looks" in widget.attention.value
    assert (widget.map.data[-1].x, widget.map.data[-1].y) == (("H2",), (1,))
    widget.choose((2, 3), pair=5)
    assert token.text.strip("<>") in widget.attention.value
    widget.which.value, widget.mode.value = "top 3", "zero"
    widget.steer()
    assert ", ".join(map(str, scores.top(3))) in widget.said.value
    found = Looks(scores, model, token).what_if(5, scores.top(3), "zero")
    assert f"{found.after.difference:+.2f}" in widget.said.value
    widget._clicked(None, Points(["MLP"], [1]), None)
    assert widget.head.value == Head(2, 3)
    with pytest.raises(SteeringError, match=r"heads must lie in L0\.\.L2 .* got L9H0"):
        widget.choose((9, 0))


class Points:
    def __init__(self, xs, ys):
        self.xs, self.ys = xs, ys


def test_without_a_model_there_are_values_only(scores):
    widget = explore(scores, k=3).widget()
    widget.steer()
    assert widget.said.value == widget.attention.value == ""
    assert widget.pair not in widget.box.children[1].children


def test_without_ipywidgets_a_page_is_shown(scores, monkeypatch):
    explorer = explore(scores, k=3)
    assert "application/vnd.jupyter.widget-view+json" in explorer._repr_mimebundle_()
    real = builtins.__import__

    def missing(name, *rest, **more):
        if name == "anywidget":
            raise ImportError(name=name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(SettingError, match="must have 'anywidget' to be live, which is not inst"):
        explorer.widget()
    shown = explorer._repr_mimebundle_()
    assert set(shown) == {"text/plain", "text/html"} and "<iframe srcdoc=" in shown["text/html"]
    assert math.isfinite(scores.values.sum())
