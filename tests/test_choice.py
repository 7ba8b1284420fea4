"""Multiple-choice questions of any shape: the likeliest option counts, against the right one."""

import datasets
import pytest
import torch

from biasgym_tl import evaluate, standard_conditions
from biasgym_tl.benchmarks.choice import Choice, MultipleChoice, load_choices
from biasgym_tl.errors import BenchmarkError, SettingError
from biasgym_tl.prompts import encode_answer, encode_text

ASKED = "Question: Who is late?\nAnswer:"
ROWS = {
    "mmlu": {"question": "Who is late?", "choices": ["he", "she", "it"], "answer": 1},
    "letters": {"question": "Who is late?", "options": ["he", "she", "it"], "answer": "B"},
    "arc": {
        "question": "Who is late?", "answerKey": "2",
        "choices": {"text": ["he", "she", "it"], "label": ["1", "2", "3"]},
    },
    "hellaswag": {"ctx": "Who is late?", "endings": ["he", "she", "it"], "label": "1"},
    "by text": {"question": "Who is late?", "choices": ["1", "she", "0"], "answer": "she"},
}  # fmt: skip


@pytest.mark.parametrize("shape", ROWS)
def test_shapes_are_read(shape):
    (item,) = load_choices([ROWS[shape]]).items
    options = ("1", "she", "0") if shape == "by text" else ("he", "she", "it")
    assert item == Choice("Who is late?", ASKED, options, 1)


def test_columns_can_be_named_and_counted_from_one():
    rows = [{"goal": "Go", "a": "now", "b": "then", "right": "2", "of": "x"}] * 2
    with pytest.warns(UserWarning, match="1 of 2 items stand there again"):
        found = load_choices(
            rows, name="piqa", options=["a", "b"], answer="right", counted_from=1, written="{}",
            cluster="of",
        )  # fmt: skip
    assert found.items == (Choice("x", "Go", ("now", "then"), 1),)
    assert found.measures[0].floor == 0.5 and found.measures[0].key == "piqa"


def test_a_dataset_with_class_labels_and_a_sample():
    features = datasets.Features(
        question=datasets.Value("string"), choices=datasets.List(datasets.Value("string")),
        answer=datasets.ClassLabel(names=["A", "B"]), subject=datasets.Value("string"),
    )  # fmt: skip
    table = {
        "question": [f"q{i}" for i in range(8)], "choices": [["2", "1"]] * 8, "answer": [1] * 8,
        "subject": ["s", "t"] * 4,
    }  # fmt: skip
    found = load_choices(datasets.Dataset.from_dict(table, features), cluster="subject", n=4)
    assert [item.cluster for item in found.items] == ["s", "s", "t", "t"]
    assert {item.right for item in found.items} == {1}
    with pytest.raises(SettingError, match="n must be at least 1"):
        load_choices(datasets.Dataset.from_dict(table, features), n=0)


def test_scores_by_hand():
    items = (
        Choice("a", "", ("xx", "y"), 0), Choice("b", "", ("xx", "y"), 1),
        Choice("c", "", ("x", "y", "z"), 2),
    )  # fmt: skip
    found = MultipleChoice(name="q", source="", items=items)
    scored = found.score([[-3.0, -2.0], [-3.0, -2.0], [-1.0, -2.0, -3.0]])
    assert scored == {"q": [0, 1, 0], "q_by_character": [1, 0, 0], "q_margin": [-1, 1, -2]}
    assert found.measures[1].floor == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3)


def test_it_is_measured_as_any_benchmark(model):
    rows = [{**ROWS["mmlu"], "question": f"Who is late, {i}?"} for i in range(3)]
    found = load_choices(rows, name="late")
    prompt = encode_text(model, found.items[0].beginning)
    by_hand = []
    for option in found.items[0].options:
        tokens = encode_answer(model, f" {option}")
        with torch.inference_mode():
            log_probs = model(torch.tensor([prompt + tokens]))[0].log_softmax(-1)
        at = range(len(prompt) - 1, len(prompt) + len(tokens) - 1)
        by_hand.append(log_probs[list(at), tokens].sum().item())
    margin = by_hand[1] - max(by_hand[0], by_hand[2])
    report = evaluate(
        model, "late", standard_conditions(None, "L1H1", modes=["zero"]), [found], progress=False
    )
    assert report["original"].items["late_margin"][0] == pytest.approx(margin, abs=1e-4)
    assert report.change("steered, zero", "late_margin", "original") is not None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, r"must have a column for the question, one of \['question', .*got \['te"),
        ({"question": "x", "answer": 0}, "must have a column for the options"),
        ({"question": "x", "choices": ["a", "b"]}, "must have a column for the answer"),
        ({"question": "x", "choices": ["a"], "answer": 0}, "options must be two texts or more in"),
        ({"question": "x", "choices": ["a", " "], "answer": 0}, "options must be two texts or"),
        (
            {"question": "x", "choices": ["a", "b"], "answer": 2},
            "must say which option is right, as a",
        ),
        ({"question": "x", "choices": ["a", "b"], "answer": "C"}, "in row 1 of a list, got 'C'"),
        ({"question": " ", "choices": ["a", "b"], "answer": 0}, "question must be text in row 1"),
    ],
)
def test_what_is_no_question_is_refused(row, message):
    with pytest.raises(BenchmarkError, match=message):
        load_choices([row])


def test_answers_are_read_in_one_way_in_a_whole_file():
    numbers = {"question": "how many?", "choices": ["3", "2", "1", "0"], "answer": "1"}
    with pytest.raises(BenchmarkError, match=r"not as a text or a place, in row 1 .*got '1'"):
        load_choices([numbers])
    assert load_choices([numbers], answers_are="place").items[0].right == 1
    assert load_choices([numbers], answers_are="text").items[0].right == 2
    blood = {"question": "which?", "choices": ["O", "A", "B", "AB"], "answer": "B"}
    by_letter = {"question": "and?", "choices": ["x", "y", "z", "w"], "answer": "D"}
    assert [i.right for i in load_choices([blood, by_letter]).items] == [1, 3]
    with pytest.raises(SettingError, match="answers_are must be one of"):
        load_choices([blood], answers_are="colour")
