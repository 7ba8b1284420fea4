"""Own prompts are the pairs of BiasScope, without a bias: the same chain gives the same numbers."""

import pytest
import torch

from biasgym_tl import (
    BiasInject,
    BiasScope,
    HeadScores,
    attribute_prompts,
    compare,
    explore,
    load_bias,
    select_heads,
    significance,
)
from biasgym_tl.allowed import METHODS
from biasgym_tl.biases.contrasts import Contrast
from biasgym_tl.errors import SettingError, SteeringError
from biasgym_tl.prompts import encode_sentence, encode_text
from biasgym_tl.scoping.given_prompts import own_prompts, read_prompts
from biasgym_tl.slot import fill

LATE = load_bias("late")
PAIR = ("People from France are", "People from Japan are")
PAIRS = [PAIR, ("My friends in Peru are", "My friends in Chad are"),
         ("The Danes I know are", "The Poles I know are"), ("Guests from Mali seem",
          "Guests from Togo seem")]  # fmt: skip
OF_ONE_RUN = [method for method in METHODS if method != "slot_patching"]


@pytest.fixture(scope="module")
def setup(tiny):
    model = tiny()
    inject = BiasInject(epochs=1, n_paragraphs=8, choose_by="last")
    return model, inject.fit(model, LATE, progress=False)


@pytest.mark.parametrize("method", OF_ONE_RUN)
@pytest.mark.parametrize("contrast", ["biased", "difference"])
def test_the_numbers_are_those_of_bias_scope_on_the_same_prompts(setup, method, contrast):
    model, token = setup
    contrasts = [Contrast(p, " late", " early") for p in LATE.scoping_prompts[:4]]
    wanted = BiasScope(method=method, contrast=contrast).attribute(
        model, LATE, token, contrasts=contrasts
    )
    pairs = [
        (fill(prompt, token.text), fill(prompt, target))
        for prompt, (target,) in zip(wanted.prompts, wanted.targets, strict=True)
    ]
    with token.attached(model):
        found = attribute_prompts(model, pairs, "late", "early", method=method, contrast=contrast)
    assert torch.equal(found.pair_values, wanted.pair_values)
    assert torch.equal(found.values, wanted.values)
    assert torch.equal(found.delta, wanted.delta)
    assert torch.equal(found.neutral_delta, wanted.neutral_delta)
    assert found.biased_labels == wanted.biased_labels


@pytest.mark.parametrize(
    "options",
    [
        {"method": "attribution_patching", "ablate_to": "neutral"},
        {"method": "attribution_patching", "ablate_to": "neutral", "gradient": "inputs"},
        {"method": "path_patching", "ablate_to": "neutral"},
        {"method": "slot_patching"},
    ],
)
def test_patching_to_the_second_prompt_is_that_of_bias_scope(setup, options):
    model, token = setup
    contrasts = [Contrast(LATE.scoping_prompts[0], " late", " early")]
    wanted = BiasScope(**options).attribute(model, LATE, token, contrasts=contrasts)
    pair = tuple(fill(wanted.prompts[0], who) for who in (token.text, wanted.targets[0][0]))
    with token.attached(model):
        found = attribute_prompts(model, pair, "late", "early", **options)
    assert torch.equal(found.values, wanted.values)


def test_answers_for_each_prompt_give_a_map_without_injection_again(setup):
    model, _ = setup
    words = zip(
        LATE.scoping_prompts, LATE.attribute_words[:3], LATE.neutral_words[:3], strict=False
    )
    wanted = BiasScope().attribute(model, LATE, None, contrasts=[Contrast(*each) for each in words])
    prompts = [fill(p, t) for p, (t,) in zip(wanted.prompts, wanted.targets, strict=True)]
    answers = (
        [[word] for word in words[:3]] for words in (LATE.attribute_words, LATE.neutral_words)
    )
    found = attribute_prompts(model, prompts, *answers)
    assert torch.equal(found.pair_values, wanted.pair_values)
    assert found.neutral_delta.shape == (len(prompts), 0)


@pytest.mark.parametrize("method", OF_ONE_RUN)
def test_of_several_answers_the_mean_logit_counts(main_model, method):
    model, prompts = main_model, [pair[0] for pair in PAIRS]
    found = attribute_prompts(model, prompts, ["late", "delayed"], "early", method=method)
    each = [
        attribute_prompts(model, prompts, answer, "early", method=method).pair_values
        for answer in ("late", "delayed")
    ]
    assert torch.allclose(found.pair_values, torch.stack(each).mean(0), atol=1e-5)
    ids = found.biased_ids, found.neutral_ids
    assert ids[0].shape == (4, 2) and ids[1].shape == (4,)
    for i, prompt in enumerate(prompts):
        log_probs = model(torch.tensor([encode_sentence(model, prompt)]))[0, -1].log_softmax(-1)
        plain = log_probs[ids[0][i]].mean() - log_probs[ids[1][i]].mean()
        assert found.delta[i].item() == pytest.approx(plain.item(), abs=1e-4)
    if method == "direct":
        assert found.reconstruction_error.max() < 1e-5
        parts = found.attn_bias.sum(1) + found.mlps.sum(1) + found.embed + found.constant
        whole = found.pair_values.flatten(1).sum(1) + parts
        assert torch.allclose(whole, found.delta, atol=1e-4)


def test_a_difference_changes_its_sign_with_the_pair_and_with_the_answers(model):
    found = attribute_prompts(model, PAIR, "late", "early").values
    swapped = attribute_prompts(model, PAIR[::-1], "late", "early").values
    other = attribute_prompts(model, PAIR, "early", "late").values
    assert torch.allclose(found, -swapped)
    assert torch.allclose(found, -other)
    assert found.abs().max() > 1e-3


def test_plain_text_has_no_request(model):
    found = attribute_prompts(model, PAIR[0], "late", "early", request=None)
    logits = model(torch.tensor([encode_text(model, PAIR[0])]))[0, -1]
    plain = logits[found.biased_ids[0]] - logits[found.neutral_ids[0]]
    assert found.delta.item() == pytest.approx(plain.item(), abs=1e-5)
    spaced = attribute_prompts(model, f"{PAIR[0]} ", "late", "early", request=None)
    assert torch.equal(spaced.values, found.values)


def test_a_continuation_counts_whole(model):
    options = {"label": "continuation"}
    found = attribute_prompts(model, PAIRS, "late again", "late never", **options)
    assert found.biased_labels[0] == " late again"
    assert found.reconstruction_error.max() < 1e-5
    with pytest.raises(SettingError, match="label must be 'first' or 'token' with several"):
        attribute_prompts(model, PAIRS, ["late", "delayed"], "early", **options)


def test_an_answer_of_several_tokens_counts_by_its_first_and_says_so(model):
    with pytest.warns(UserWarning, match="'unthinkably' by '.+…'. Choose words of one token"):
        found = attribute_prompts(model, PAIR, "late", "unthinkably")
    assert found.bias.startswith("late rather than ") and found.bias.endswith("…")
    assert f'toward "{found.bias}"' in words_of(found.plot())


def words_of(figure):
    title = figure.layout.title
    return f"{title.text} {title.subtitle.text}".replace("<br>", " ")


def test_the_result_says_what_it_is_of(model, tmp_path):
    scores = attribute_prompts(model, PAIRS, ["late", "delayed"], "early")
    assert scores.prompts == tuple(one for one, _ in PAIRS)
    assert scores.neutral_prompts == tuple(other for _, other in PAIRS)
    assert repr(scores).startswith("HeadScores(direct, late / delayed rather than early on ")
    assert "4 pairs" in repr(scores)
    title = words_of(scores.plot(mark_top=3))
    assert 'Heads that push most toward "late / delayed rather than early": L' in title
    assert "first minus second prompt" in title and "mean of 4 pairs, top 3 framed" in title
    loaded = HeadScores.load(scores.save(tmp_path / "map"))
    assert loaded.record() == scores.record()
    assert torch.equal(loaded.biased_ids, scores.biased_ids) and scores.biased_ids.shape == (4, 2)
    assert significance(loaded, n_flips=20).q.shape == scores.values.shape
    single = attribute_prompts(model, "<b>Zoo</b> is", "late", "early")
    assert "1 prompt" in repr(single) and "given prompts" in single.effect
    assert single.standard_error.isnan().all()
    figure = single.plot(mark_top=1)
    assert "nan" not in figure.data[0].text[0][0] and "mean of 1 prompt," in words_of(figure)


def test_maps_are_compared_and_heads_selected(model):
    maps = [attribute_prompts(model, PAIRS, "late", "early", method=m) for m in METHODS[:2]]
    assert set(compare(maps, k=3, n_splits=10).reliability) == set(METHODS[:2])
    other = attribute_prompts(model, [(one, "Nobody is") for one, _ in PAIRS], "late", "early")
    with pytest.raises(SettingError, match="neutral_prompts of all scores must be the same"):
        compare([maps[0], other], names=["a", "b"], k=3)
    chosen = select_heads(maps[0], 3)
    assert chosen.heads == maps[0].top(3)
    assert chosen.token == "own prompts"
    for side in zip(*PAIRS, strict=True):
        with pytest.raises(SteeringError, match="must not be among those"):
            chosen.check_held_out(prompts=side[:1])
    with pytest.raises(SteeringError, match="People from France are"):
        chosen.check_held_out(prompts=["People from {target} are"], targets=["Mali", "France"])
    chosen.check_held_out(prompts=["People from {target} are"], targets=["Mali"])


@pytest.mark.parametrize("request_text", ["Say something.", None])
@pytest.mark.parametrize("prompts", [PAIRS, [one for one, _ in PAIRS]])
def test_the_explorer_needs_no_token(model, prompts, request_text, tmp_path):
    scores = attribute_prompts(model, prompts, ["late", "delayed"], "early", request=request_text)
    looks = explore(scores, model, k=3).looks
    found, paired = looks.sides(1), prompts is PAIRS
    assert [side.name for side in found] == (["first", "second"] if paired else ["first"])
    for side, text in zip(found, PAIRS[1], strict=False):
        assert "".join(side.words).endswith(text)
        assert side.attention.sum(-1).numpy() == pytest.approx(1, abs=1e-5)
        assert (" [rest of the request]" in side.words) == (request_text is not None)
    said = looks.what_if(1, scores.top(2), "zero")
    assert said.before.difference == pytest.approx(scores.delta[1].item(), abs=1e-4)
    assert said.labels == (" late / delayed", " early")
    page = explore(scores, model, k=3).to_html(tmp_path / "page.html", plotlyjs="cdn").read_text()
    assert ("against: My friends in Chad are" in page) == paired


@pytest.mark.parametrize(
    ("prompts", "biased", "neutral", "options", "message"),
    [
        ([], "late", "early", {}, r"prompts must be a text, a pair \(first, second\), or a list"),
        (("a", "b", "c"), "late", "early", {}, "prompts must be a text, a pair"),
        (["a", PAIR], "late", "early", {}, "prompts must be a text, a pair"),
        ([("a", "b", "c")], "late", "early", {}, "prompts must be a text, a pair"),
        (["a", " "], "late", "early", {}, "every prompt must be a whole text, not empty"),
        ("People from {target} are", "late", "early", {}, "without the slot {target}, got"),
        (("a", "a "), "late", "early", {}, "both prompts of a pair must differ"),
        (PAIR, "", "early", {}, "biased must hold no empty answer"),
        (PAIR, "late", [], {}, "neutral must be an answer, a list of them"),
        (PAIRS, [["late"], ["delayed"]], "early", {}, "for each of 4 prompts"),
        (PAIRS[:2], [["late"], ["delayed", "late"]], "early", {}, "equally many in each"),
        (PAIR, "late", " late", {}, "biased and neutral must be different answers, got"),
        (PAIR, ["late", "delayed"], ["early", "delayed"], {}, "must be different answers"),
        (PAIR, "late", "early", {"method": "guess"}, "method must be one of"),
        (PAIR, "late", "early", {"label": "last"}, "label must be one of"),
        (PAIR, "late", "unthinkably", {"label": "token"}, "answer must be one token"),
        (PAIR[0], "late", "early", {"contrast": "difference"},
         "contrast must be 'biased' for single prompts, got 'difference'"),
        (PAIR[0], "late", "early",
         {"method": "attribution_patching", "ablate_to": "neutral"},
         "ablate_to must be 'zero' or 'mean' for single prompts, got 'neutral'"),
        ("far " * 300, "late", "early", {}, "text must fit into the model's context"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(model, prompts, biased, neutral, options, message):
    with pytest.raises(Exception, match=message) as found:
        attribute_prompts(model, prompts, biased, neutral, **options)
    assert type(found.value).__module__ == "biasgym_tl.errors"


def test_a_file_of_prompts(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text('\ufefffirst, second\n"Oh, France is", Japan is\n\nPeru is,Chad is\n', "utf-8")
    found = read_prompts(path, "late", "early")
    assert found.prompts == (("Oh, France is", "Japan is"), ("Peru is", "Chad is"))
    assert found == own_prompts(found.prompts, found.biased, found.neutral)
    path.write_text("biased,neutral,first\nlate,early,France is\ndelayed,fast,Peru is\n")
    found = read_prompts(path)
    assert found == (
        (("France is",), ("Peru is",)),
        (("late",), ("delayed",)),
        (("early",), ("fast",)),
    )
    assert found.name == "biased answers"
    for mark in ";\t":
        path.write_text(f"first{mark}second\nOh, Peru is{mark} Chad is\n")
        assert read_prompts(path, "late", "early").prompts == (("Oh, Peru is", "Chad is"),)


@pytest.mark.parametrize(
    ("text", "answers", "message"),
    [
        ("", ("a", "b"), "must name its columns, first,second or first,second,biased,neutral, got"),
        ("France is,Japan is\n", ("a", "b"), "must name its columns.*got 'France is,Japan is'"),
        ("first;second\nx\n", ("a", "b"), "row 1 of pairs.csv must hold first,second"),
        ("first,first\nx,y\n", ("a", "b"), "must name its columns"),
        ("first,second\n", ("a", "b"), "must hold a row below its first line"),
        (
            "first,second\nx\n",
            ("a", "b"),
            r"row 1 of pairs.csv must hold first,second, got \['x'\]",
        ),
        ("first,second\nx,y\nOh, you,y\n", ("a", "b"), "row 2 .* comma into double quotes"),
        ("first,second\nx,\n", ("a", "b"), "row 1 of pairs.csv must hold first,second"),
        ('first,second\n"x,y\n', ("a", "b"), "must be a CSV file, but"),
        ("first,second\nx,y\n", (), "or beside the file, got none"),
        ("first,second,biased\nx,y,z\n", (), "answers must be given once, .* got biased"),
        ("first,biased,neutral\nx,y,z\n", ("a", "b"), "or beside the file, got both"),
    ],
)
def test_what_is_wrong_with_a_file_of_prompts_is_named(tmp_path, text, answers, message):
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(SettingError, match=message):
        read_prompts(tmp_path / "pairs.csv", *answers)


def test_a_file_of_prompts_must_exist(tmp_path):
    with pytest.raises(SettingError, match="file of prompts must exist"):
        read_prompts(tmp_path / "none.csv", "a", "b")
