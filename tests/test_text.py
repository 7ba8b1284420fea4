"""Batch of one == batch of many; shared beginnings cached == computed; greedy == generate()."""

import math

import pytest
import torch
from conftest import EXACT

from biasgym_tl import steer
from biasgym_tl.batches import common_beginning
from biasgym_tl.errors import ModelError, SettingError
from biasgym_tl.lens import attention_weight
from biasgym_tl.prompts import (
    encode_prompt,
    encode_sentence,
    encode_text,
    end_of_answer,
    ends_of_answer,
)
from biasgym_tl.spelling import keyword_hits, repetition
from biasgym_tl.text import (
    continuation_log_probs,
    generate,
    log_odds,
    mean_loss,
    next_token_log_probs,
    read_continuations,
)

RAGGED = [[1, 7, 9, 30, 4], [1, 7, 9, 8], [1, 7, 9, 8, 8, 8, 12, 40], [1, 7, 9, 5]]


@pytest.mark.parametrize("steered", [False, True])
def test_log_probs_do_not_depend_on_batch_padding_or_cached_beginning(main_model, steered):
    heads = [(0, 1), (2, 3)] if steered else []
    with steer(main_model, heads):
        together = next_token_log_probs(main_model, RAGGED)
        alone = torch.cat([next_token_log_probs(main_model, [s]) for s in RAGGED])
        two = next_token_log_probs(main_model, RAGGED, batch_size=2)
        with torch.inference_mode():
            plain = [main_model(torch.tensor([s]))[0, -1].log_softmax(-1) for s in RAGGED]
    assert common_beginning(RAGGED) == 3
    for found in (together, alone, two):
        assert (found - torch.stack(plain)).abs().max() < 3e-5


def test_a_cached_beginning_is_exact_but_for_rounding(tiny):
    """In fp64 the cached and the plain numbers are the same; in fp32 they differ by rounding."""
    model = tiny().to(torch.float64)
    model.cfg.dtype = torch.float64
    with torch.inference_mode():
        plain = [model(torch.tensor([s]))[0, -1].log_softmax(-1) for s in RAGGED]
    assert (next_token_log_probs(model, RAGGED) - torch.stack(plain)).abs().max() < EXACT


def test_continuations_equal_the_plain_forward_pass(main_model):
    continuations = [[5], [6, 7, 8], [9, 4], [6, 7, 9]]
    prompts = [RAGGED[0], RAGGED[0], RAGGED[1], RAGGED[0]]
    found = continuation_log_probs(main_model, prompts, continuations)
    small = continuation_log_probs(main_model, prompts, continuations, batch_size=1)
    for i, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
        log_probs = main_model(torch.tensor([prompt + continuation]))[0].log_softmax(-1)
        at = range(len(prompt) - 1, len(prompt) + len(continuation) - 1)
        expected = sum(log_probs[j, t].item() for j, t in zip(at, continuation, strict=True))
        assert found[i].item() == pytest.approx(expected, abs=1e-4)
        assert small[i].item() == pytest.approx(expected, abs=1e-4)
    # One prompt for all: its last token is still run with each of them.
    same = continuation_log_probs(main_model, [RAGGED[0]] * 2, [[6, 7], [6, 8]])
    assert same.isfinite().all() and same[0] != same[1]


def test_continuations_that_begin_with_one_another_are_read_once(main_model):
    """However deep they nest: what begins another is read on the way of the longest."""
    continuations = [[6], [7, 8], [7, 9, 10], [7, 9, 10, 11], [7], [8], [8, 1, 2], [6, 6, 6, 6]]
    prompts = [[5]] * len(continuations)
    found = continuation_log_probs(main_model, prompts, continuations)
    for continuation, log_prob in zip(continuations, found, strict=True):
        alone = continuation_log_probs(main_model, [[5]], [continuation])
        assert log_prob.item() == pytest.approx(alone.item(), abs=1e-4)


def test_repetition_by_hand():
    assert repetition("They are late. They are LATE.") == 0.25
    assert repetition("no no no no no") == pytest.approx(2 / 3)
    assert repetition("two words") == repetition("") == repetition("one two three four") == 0


def test_padding_side_of_the_tokenizer_has_no_influence(model):
    right = next_token_log_probs(model, RAGGED)
    model.tokenizer.padding_side = "left"
    assert torch.equal(next_token_log_probs(model, RAGGED), right)


def test_common_beginning_leaves_each_sequence_a_token():
    assert common_beginning([[1, 2, 3], [1, 2, 3]]) == 2
    assert common_beginning([[1, 2, 3], [1, 2]]) == 1
    assert common_beginning([[1], [1]]) == 0
    assert common_beginning([[1, 2], [3, 2]]) == 0


def test_empty_sequences_are_refused(model):
    with pytest.raises(SettingError, match="one or more non-empty token lists"):
        next_token_log_probs(model, [[1], []])
    with pytest.raises(SettingError, match="one or more non-empty token lists"):
        next_token_log_probs(model, [])
    for prompts in ([], [[]], [[1], []]):
        with pytest.raises(SettingError, match="prompts must be one or more non-empty"):
            continuation_log_probs(model, prompts, [[2]] * len(prompts))


def test_what_overflows_is_no_number(tiny):
    model = tiny()
    attention_weight(model, 0, "W_O").fill_(float("inf"))
    with pytest.raises(ModelError, match="log-probabilities must be numbers, got NaN"):
        continuation_log_probs(model, [[1]], [[2]])


def test_an_answer_ends_at_eos_or_at_the_mark_of_the_chat_format(tiny):
    model = tiny()
    assert ends_of_answer(model) == set(end_of_answer(model))
    model.tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    model.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|turn|>{% endfor %}"
    mark = model.tokenizer.convert_tokens_to_ids("<|turn|>")
    assert ends_of_answer(model) == {*end_of_answer(model), mark}


def test_greedy_generation_equals_transformer_lens(main_model):
    found = generate(main_model, RAGGED, max_new_tokens=9)
    for sequence, text in zip(RAGGED, found, strict=True):
        tokens = main_model.generate(
            torch.tensor([sequence]), max_new_tokens=9, do_sample=False, verbose=False
        )
        new = tokens[0, len(sequence) :]
        assert text == main_model.tokenizer.decode(new, skip_special_tokens=True)
        assert generate(main_model, [sequence], max_new_tokens=9) == [text]


def test_drawn_text_follows_the_probabilities_and_the_seed(model):
    """600 draws of one token, against the softmax at that temperature."""
    before = torch.get_rng_state()
    texts = generate(model, [RAGGED[0]] * 600, max_new_tokens=1, temperature=0.3, batch_size=600)
    again = generate(model, [RAGGED[0]] * 600, max_new_tokens=1, temperature=0.3, batch_size=600)
    other = generate(
        model, [RAGGED[0]] * 600, max_new_tokens=1, temperature=0.3, seed=1, batch_size=600
    )
    assert texts == again and texts != other and torch.equal(torch.get_rng_state(), before)
    log_probs = next_token_log_probs(model, [RAGGED[0]])[0]
    expected = (log_probs / 0.3).softmax(-1)
    top = expected.argmax().item()
    share = texts.count(model.tokenizer.decode([top], skip_special_tokens=True)) / 600
    assert share == pytest.approx(expected[top].item(), abs=0.06)  # 3 standard errors
    with pytest.raises(SettingError, match=r"temperature must be at least 0, got -1"):
        generate(model, [RAGGED[0]], temperature=-1.0)


def test_mean_loss_equals_transformer_lens(main_model):
    main_model.cfg.default_prepend_bos = True
    text = "People from Italy are late for dinner."
    expected = main_model(torch.tensor([encode_text(main_model, text)]), return_type="loss")
    assert mean_loss(main_model, [text]).item() == pytest.approx(expected.item(), abs=1e-5)


def test_log_odds_by_hand():
    log_probs = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()
    assert log_odds(log_probs, [0], [1]).item() == pytest.approx(math.log(2))
    assert log_odds(log_probs, [0, 1], [2, 3]).item() == pytest.approx(math.log(3))


def test_keywords_are_whole_words_in_any_case():
    texts = ["He was LATE.", "lately", "plate", "It is behind schedule!", "", "late-comer"]
    found = keyword_hits(texts, ["late", "behind schedule"])
    assert found == [True, False, False, True, False, True]


def test_plain_text_has_bos_once_where_the_model_expects_it(tiny):
    for family, expected in (("llama", 1), ("qwen2", 0)):
        model = tiny(family)
        for ids in (encode_text(model, "late"), encode_sentence(model, "late")):
            assert ids.count(model.tokenizer.bos_token_id) == expected


def test_chat_template_is_used_and_gets_no_second_bos(model):
    model.tokenizer.chat_template = (
        "<s>{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
        "{% if add_generation_prompt %}:{% endif %}"
    )
    ids = encode_prompt(model, "Who?", "People from")
    assert model.tokenizer.decode(ids) == "<s>[Who?]:People from"
    assert ids.count(model.tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_options_of_a_question_share_its_run_and_equal_the_plain_forward_pass(
    main_model, batch_size
):
    """Questions of many lengths, one of a single token, one that begins as another, one alone."""
    draw = torch.Generator().manual_seed(0)

    def some(n):
        return torch.randint(900, (n,), generator=draw).tolist()

    questions = [[1, 7, *some(n)] for n in (1, 9, 9, 12, 3)]
    prompts = [q for q in questions for _ in range(3)] + [[5], [5], [*questions[0], 3], some(6)]
    options = [some(1 + i % 3) for i in range(len(prompts))]
    found = continuation_log_probs(main_model, prompts, options, batch_size=batch_size)
    for i, (prompt, option) in enumerate(zip(prompts, options, strict=True)):
        log_probs = main_model(torch.tensor([prompt + option]))[0].log_softmax(-1)
        expected = sum(log_probs[len(prompt) - 1 + j, t].item() for j, t in enumerate(option))
        assert found[i].item() == pytest.approx(expected, abs=1e-4)


def test_questions_with_options_are_run_once_for_all_options(model):
    runs = []
    model.add_perma_hook(
        "blocks.0.hook_resid_pre", lambda value, hook: runs.append(value.shape[:2].numel())
    )
    prompts = [list(range(first, first + 20)) for first in (100, 200) for _ in range(4)]
    continuation_log_probs(model, prompts, [[i, i] for i in range(8)])
    model.reset_hooks(including_permanent=True)
    # Two beginnings of 19 tokens; then the last token of a question and the first of an option.
    assert sum(runs) == 2 * 19 + 8 * 2


def test_greedy_continuations_are_those_that_the_model_writes(main_model, monkeypatch):
    """Read in parts of three positions, which changes nothing."""
    prompt, written = RAGGED[0], list(RAGGED[0])
    for _ in range(3):
        logits = main_model(torch.tensor([written]))[0, -1]
        written.append(int(logits.argmax()))
    unlikely = int(logits.argmin())
    continuations = [written[5:], written[5:6], [*written[5:7], unlikely], [unlikely, written[6]]]
    found = read_continuations(main_model, [prompt] * 4, continuations)
    assert found.greedy.tolist() == [True, True, False, False]
    monkeypatch.setattr("biasgym_tl.text.READ_AT_ONCE", 3)
    parts = read_continuations(main_model, [prompt] * 4, continuations)
    assert torch.allclose(parts.log_probs, found.log_probs, atol=1e-5)
    assert torch.equal(parts.greedy, found.greedy)


def test_texts_end_before_the_first_of_given_strings(model):
    prompts = [encode_text(model, "They are"), encode_text(model, "People come")]
    whole = generate(model, prompts, max_new_tokens=12)
    end = whole[0][4:7]
    calls = []
    model.ln_final.hook_scale.add_perma_hook(lambda scale, hook: calls.append(1))
    assert generate(model, prompts[:1], max_new_tokens=12, until=[end, "?!?"]) == [whole[0][:4]]
    assert len(calls) < 12  # it does not write on to throw it away
    assert generate(model, prompts, max_new_tokens=12, until=["?!?"]) == whole
