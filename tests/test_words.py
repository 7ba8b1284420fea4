"""A word counts as the tokens that continue a sentence: its probability is that of all of them."""

import dataclasses
import warnings

import pytest
import torch
from conftest import FAMILIES, sentencepiece, tiny_hf_model

from biasgym_tl import BiasScope, bias_log_odds, load_bias, load_model, steer
from biasgym_tl.benchmarks.benchmark import Question, option_log_probs
from biasgym_tl.biases.words import word_tokens
from biasgym_tl.errors import ModelError, SettingError
from biasgym_tl.prompts import encode_answer, encode_sentence
from biasgym_tl.text import word_log_probs

LATE = load_bias("late")
LONG = dataclasses.replace(
    LATE,
    attribute_words=("late", "delayed", "unpunctual", "quaintly slow", "quaintly dull"),
    neutral_words=("early", "on", "zestful", "zestfully quick"),
)
PROMPTS, TARGETS = LATE.scoping_prompts[:2], ["Peru", "Italy"]


@torch.inference_mode()
def probability(model, prompt, word):
    """Of the tokens of " word" after a sentence, token by token, with plain forward passes."""
    ids = encode_sentence(model, prompt)
    log_p = 0.0
    for token in encode_answer(model, f" {word}"):
        log_p += model(torch.tensor([ids]))[0, -1].log_softmax(-1)[token].item()
        ids = [*ids, token]
    return log_p


def expected_log_odds(model, bias, prompt, attribute=None, neutral=None):
    sides = [
        torch.tensor([probability(model, prompt, word) for word in words]).logsumexp(0)
        for words in (attribute or bias.attribute_words, neutral or bias.neutral_words)
    ]
    return (sides[0] - sides[1]).item()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma3_text", "bloom", "opt"])
def test_a_word_of_several_tokens_counts_by_its_whole_probability(tiny, family):
    model = tiny(family)
    words = word_tokens(model, LONG)
    assert max(map(len, words.attribute)) > 2 and words.left_out == ()
    with steer(model, [(1, 2)]):
        found = bias_log_odds(model, LONG, PROMPTS, TARGETS)
        for i, prompt in enumerate(PROMPTS):
            for j, target in enumerate(TARGETS):
                text = prompt.replace("{target}", target)
                # "zestfully quick" begins with "zestful" only in letters, maybe not in tokens.
                neutral = ["early", "on", "zestful"]
                if (
                    any(
                        w[: len(z)] == z
                        for z, w in [
                            [
                                tuple(encode_answer(model, f" {w}"))
                                for w in ("zestful", "zestfully quick")
                            ]
                        ]
                    )
                    is False
                ):
                    neutral.append("zestfully quick")
                want = expected_log_odds(model, LONG, text, neutral=neutral)
                assert found.log_odds[i, j].item() == pytest.approx(want, abs=2e-4)


def test_a_word_that_begins_with_another_of_its_list_is_counted_with_it(model):
    both = dataclasses.replace(LATE, attribute_words=("late", "late again"))
    one = dataclasses.replace(LATE, attribute_words=("late",))
    assert word_tokens(model, both).attribute == word_tokens(model, one).attribute
    odds = [bias_log_odds(model, bias, PROMPTS, TARGETS).log_odds for bias in (both, one)]
    assert torch.equal(*odds)


def test_probabilities_of_disjoint_words_sum_to_one_with_the_rest(model):
    """All tokens as words, one of them replaced by itself with every token after it."""
    sequence = encode_sentence(model, "People are")
    d_vocab = model.cfg.d_vocab_out
    words = [(i,) for i in range(d_vocab) if i != 7] + [(7, i) for i in range(d_vocab)]
    found = word_log_probs(model, [sequence], words)
    assert found.double().exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_first_tokens_are_the_papers_way(model):
    text = PROMPTS[0].replace("{target}", "Peru")
    first = {encode_answer(model, f" {w}")[0] for w in LONG.attribute_words}
    second = {encode_answer(model, f" {w}")[0] for w in LONG.neutral_words}
    assert first & second  # begins words of both lists, and says nothing
    p = model(torch.tensor([encode_sentence(model, text)]))[0, -1].softmax(-1)
    want = p[list(first - second)].sum().log() - p[list(second - first)].sum().log()
    found = bias_log_odds(model, LONG, PROMPTS[:1], ["Peru"], count="first").log_odds
    assert found.item() == pytest.approx(want.item(), abs=1e-4)
    with pytest.raises(SettingError, match=r"count must be one of \['word', 'first'\], got 'all'"):
        bias_log_odds(model, LONG, PROMPTS, TARGETS, count="all")


def test_labels_of_an_attribution_are_whole_words_where_there_are_any(model):
    labels = BiasScope().attribute(model, LONG, None).biased_labels
    assert set(labels) <= {" late", " delayed"}
    only_long = dataclasses.replace(LATE, attribute_words=("unpunctual", "quaintly slow"))
    first = {model.tokenizer.decode(encode_answer(model, f" {w}")[:1])
             for w in only_long.attribute_words}  # fmt: skip
    assert set(BiasScope().attribute(model, only_long, None).biased_labels) <= first


def test_words_that_cannot_count_are_named(model):
    """A word that begins as a whole word of the other list; in both lists; not in a vocabulary."""
    unclear = dataclasses.replace(LATE, attribute_words=("late", "on edge"))
    with pytest.warns(UserWarning, match=r"bias 'late' that cannot count on this model: on edge"):
        assert word_tokens(model, unclear).left_out == (
            "on edge (begins as a word of another list)",
        )
    none = dataclasses.replace(LATE, attribute_words=("on edge", "early riser"))
    with pytest.raises(ModelError, match="attribute_words of bias 'late' must hold a word"):
        word_tokens(model, none)


def test_words_of_an_unknown_alphabet_are_named_or_counted_in_bytes(tiny):
    bytes_known = dataclasses.replace(LATE, attribute_words=("late", "遅い"))
    assert len(word_tokens(tiny(), bytes_known).attribute[1]) > 2
    tokenizer = sentencepiece(byte_fallback=False)
    model = load_model(tiny_hf_model("mistral"), tokenizer=tokenizer)
    with pytest.warns(UserWarning, match=r"遅い \(not in the vocabulary\)"):
        assert len(word_tokens(model, bytes_known).attribute) == 1


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma", "qwen2", "gpt_neox", "olmo2"])
def test_sentencepiece_words_are_those_of_a_whole_sentence(family):
    """Its legacy form puts a space before every text; inside a sentence there is none."""
    tokenizer = sentencepiece()
    model = load_model(tiny_hf_model(family), tokenizer=tokenizer)
    model.cfg.default_prepend_bos = False
    for word in (*LATE.attribute_words, *LATE.neutral_words):
        whole = tokenizer(f"They are {word}", add_special_tokens=False)["input_ids"]
        start = tokenizer("They are", add_special_tokens=False)["input_ids"]
        assert start + encode_answer(model, f" {word}") == whole
    odds = bias_log_odds(model, LATE, PROMPTS[:1], ["Peru"]).log_odds.item()
    want = expected_log_odds(model, LATE, PROMPTS[0].replace("{target}", "Peru"))
    assert odds == pytest.approx(want, abs=2e-4)


@pytest.mark.parametrize("family", ["mistral", "llama", "gemma", "qwen3"])
def test_whole_texts_are_read_as_hugging_face_reads_them(family):
    """An option that continues nothing begins as a text does: SentencePiece puts a space there."""
    tokenizer = sentencepiece()
    hf_model = tiny_hf_model(family)
    model = load_model(hf_model, tokenizer=tokenizer)
    texts = ("People are late.", "People is late.")
    found = option_log_probs(model, [Question("", texts)])[0]
    for text, log_prob in zip(texts, found, strict=True):
        bos = [tokenizer.bos_token_id] * model.cfg.default_prepend_bos
        ids = torch.tensor([bos + tokenizer(text, add_special_tokens=False)["input_ids"]])
        log_probs = hf_model(ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])
        assert log_prob == pytest.approx(log_probs.sum().item(), abs=1e-3)


def test_a_space_at_the_end_of_a_prompt_belongs_to_the_word(model):
    spaced = [f"{prompt} " for prompt in PROMPTS]
    odds = [bias_log_odds(model, LATE, p, TARGETS).log_odds for p in (PROMPTS, spaced)]
    assert torch.equal(*odds)


@pytest.mark.parametrize("family", FAMILIES)
def test_single_words_are_read_as_before(tiny, family):
    model = tiny(family)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = bias_log_odds(model, LATE, PROMPTS[:1], ["Peru"])
    want = expected_log_odds(model, LATE, PROMPTS[0].replace("{target}", "Peru"))
    assert found.log_odds.item() == pytest.approx(want, abs=2e-4)
