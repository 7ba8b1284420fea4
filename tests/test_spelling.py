"""Whether a text holds a word does not depend on how either was typed."""

import re
import sys
import unicodedata

import pytest

from biasgym_tl import load_bias
from biasgym_tl.benchmarks.refusals import is_refusal
from biasgym_tl.biases.check import runs_of_four
from biasgym_tl.biases.countries import load_countries
from biasgym_tl.biases.tasks import _named_group
from biasgym_tl.judges.hide import hidden
from biasgym_tl.spelling import (
    _marks,
    composed,
    degenerate,
    keyword_hits,
    plain,
    repetition,
    whole_words,
)
from biasgym_tl.steering.selection import fingerprints

LATE = load_bias("late")


def typed(text):
    """The same text in the ways in which people and models write it."""
    curly = text.replace("'", "\u2019").replace("-", "\u2011").replace(" ", "\u00a0")
    return [unicodedata.normalize(form, t) for t in (text, curly) for form in ("NFC", "NFD")]


@pytest.mark.parametrize(
    "word",
    ["don't come on time", "verspätet", "Côte d'Ivoire", "Guinea-Bissau", "l'école", "trễ giờ",
     "지각", "опоздал", "Åland"],
)  # fmt: skip
def test_every_way_of_typing_a_word_finds_every_other(word):
    for text in typed(f"They say: {word}, and so on."):
        assert keyword_hits([text] * 4, [word]) == [True] * 4
        for spelled in typed(word):
            assert keyword_hits([text], [spelled]) == [True]
            assert word not in composed(hidden([text], [spelled])[0])
            assert hidden([text], [spelled])[0].count("{target}") == 1


def test_what_surrounds_a_hidden_name_stays_as_it_was_written():
    text = "People of Co\u0302te d\u2019Ivoire don\u2019t \u2013 they say \u2013 wait."
    assert hidden([text], ["Côte d'Ivoire"]) == [
        "People of {target} don\u2019t \u2013 they say \u2013 wait."
    ]


def test_words_are_whole():
    assert keyword_hits(["Chocolate", "plated", "late", "LATE!", "Late\u2019s"], ["late"]) == [
        False, False, True, True, True,
    ]  # fmt: skip
    # An accent without a letter of its own, and vowel signs, belong to their word.
    assert keyword_hits(["x\u0302 y", "देरी"], ["x", "देर"]) == [False, False]
    assert keyword_hits(["behind\nschedule"], ["behind schedule"]) == [True]
    assert keyword_hits(["anything"], []) == keyword_hits(["anything"], ["", " "]) == [False]


def test_plain_text_keeps_its_length_once_composed():
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x11000)]))
    assert len(plain(every)) == len(composed(every)) and plain(plain(every)) == plain(every)
    ascii_text = "".join(map(chr, range(128))).replace("`", "")
    assert plain(ascii_text) == ascii_text


def test_longer_words_come_first():
    assert whole_words(["on", "on time"]).findall("on time, on") == ["on time", "on"]


def test_every_comparison_of_texts_takes_any_spelling():
    straight, curly = "I can't say that, I'm sorry.", "I can\u2019t say that, I\u02bcm sorry."
    assert is_refusal(straight) and is_refusal(curly)
    wait = "They don't wait for us"
    for other in typed(wait):
        assert runs_of_four(other) == runs_of_four(wait)
        assert fingerprints(prompts=[other]) == fingerprints(prompts=[wait])
    assert repetition("e\u0301 e\u0301 e\u0301 e\u0301") == repetition("é é é é") > 0
    assert degenerate("e\u0301te\u0301") == degenerate("été") == "empty"
    accented = [c.name for c in load_countries() if not c.name.isascii()]
    for name in [*accented, "Peru", "Peruvians"]:
        assert all(_named_group(text, LATE) for text in typed(f"They live in {name}."))


def test_many_spaces_in_a_word_are_one_and_take_no_time():
    pattern = whole_words(["a" + " " * 30 + "b"])
    assert pattern.search("a" + " " * 60) is None and pattern.search("a  b")


def test_every_combining_mark_is_known():
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    marks = "".join(char for char in every if unicodedata.category(char).startswith("M"))
    assert "".join(re.findall(f"[{_marks()}]", every)) == marks
