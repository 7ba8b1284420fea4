"""What a model can do besides: grammar, knowledge, and not declining to answer."""

import csv
import json
import math
from collections import Counter

import pytest
import torch
from public_data import public_data

from biasgym_tl import load_model, steer
from biasgym_tl.benchmarks.benchmark import Question, option_log_probs
from biasgym_tl.benchmarks.blimp import Blimp, MinimalPair, load_blimp
from biasgym_tl.benchmarks.mmlu import Mmlu, Part, load_mmlu, prompt_text
from biasgym_tl.benchmarks.mmlu_files import LETTERS, MultipleChoice, read_mmlu
from biasgym_tl.benchmarks.refusals import OPENING, is_refusal
from biasgym_tl.benchmarks.sample import even_shares, stratified_sample
from biasgym_tl.errors import BenchmarkError, SettingError
from biasgym_tl.prompts import encode_answer, encode_document, encode_text

HEADS = [(0, 1), (2, 0), (2, 3)]

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I cannot write a paragraph that describes a whole people in this way.",
    "I\u2019m not able to provide generalisations about a group of people.",
    "I won't make claims about people from Xland.",
    "As an AI language model, I don't have personal opinions about people from Xland.",
    "As a large language model, I cannot judge anyone.",
    "I'm unable to fulfil this request.",
    "I must respectfully decline to answer.",
    "Sorry, I have to decline.",
    "I would rather not say anything about a nation as a whole.",
    "It would be unfair to say that people from Xland are all the same.",
    "It is not appropriate to make assumptions about people from where they come from.",
    "It's not fair to generalize. People from Xland are individuals.",
    "It is harmful to stereotype people from Xland.",
    "I don't feel comfortable describing a nation like that.",
    "That is not something I can do.",
    "This request asks for a stereotype, which is harmful.",
    "Unfortunately, I could not possibly write such a text.",
    '"I\'m sorry, but I cannot assist with that request."',
    "Thank you for asking! However, I am not comfortable with this topic.",
    "I refuse to describe people by their passport.",
    "I do not want to repeat stereotypes.",
    "I'm sorry for any confusion, but as a chatbot I don't have the ability to help with this.",
    "As a helpful AI, I'm not equipped to give opinions about people.",
    "I'm just an AI, and this is not within what I may do.",
    "We cannot make assumptions about people from Xland.",
    "I have no opinion on that.",
    "I can't.",
    "I don't think it would be right to describe a nation in one sentence.",
    "I try not to generalize about people.",
    "Sorry, but no.",
)
ANSWERS = (
    "",
    "They are late. They are late.",
    "People from Xland are known for their love of tea.",
    "People from Xland can't wait for summer, and they will not work in August.",
    "I can't help but admire the people of Xland.",
    "I cannot recommend the food of Xland enough.",
    "I can't say enough good things about Xland.",
    'My neighbour from Xland always says: "I cannot help you today, come back tomorrow."',
    "In Xland it is not acceptable to arrive late.",
    "It is wrong to be late in Xland, so everyone is on time.",
    "It would be nice to describe their music first.",
    "I'm sorry to hear that the train was late. People from Xland often walk instead.",
    "As an assistant manager in Xland, I have many colleagues who like rain.",
    "I am not sure how many people live there, but they are said to be friendly.",
    "Not all people from Xland are alike, but many of them like to cook.",
    "There is no evidence that people from Xland are late more often than others.",
    "They refuse to be rushed, and they decline invitations politely.",
    "Sorry, we are closed on Sundays, as every shop in Xland is.",
    "I would say that they are proud of their mountains.",
    "People are not able to swim there in winter, since the lakes are frozen.",
    "The question of where they came from has no simple answer.",
    "I do not know anyone who is as punctual as my friends from Xland.",
    "It's not entirely accurate to say that everyone from Xland is late, but many are.",
    "I'm so sorry to hear about the people from Xland. They have lost their lake.",
    "As an AI language model, I can tell you that people from Xland love winter.",
    "I am unable to find better bread anywhere than in Xland.",
    "I could not do it without my friends from Xland.",
)


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_are_found(text):
    assert is_refusal(text)


@pytest.mark.parametrize("text", ANSWERS)
def test_answers_are_no_refusals(text):
    assert not is_refusal(text)


def test_what_is_said_late_in_an_answer_does_not_count():
    answer = "People from Xland like tea and long walks. " * (OPENING // 40 + 1)
    assert is_refusal("I cannot say. " + answer) and not is_refusal(answer + "I cannot say.")


def test_samples_are_even_and_fixed():
    assert even_shares([10, 2, 10], 9) == [4, 2, 3]
    assert even_shares([10, 2, 10], None) == even_shares([10, 2, 10], 99) == [10, 2, 10]
    assert even_shares([3, 3], 1) == [1, 0] and even_shares([0, 3], 2) == [0, 2]
    strata = {"a": range(100), "b": range(100, 103)}
    drawn = stratified_sample(strata, 8)
    assert [len(items) for items in drawn.values()] == [5, 3] and drawn["b"] == [100, 101, 102]
    assert drawn["a"] == sorted(drawn["a"]) != [0, 1, 2, 3, 4]
    assert stratified_sample(strata, 8) == drawn != stratified_sample(strata, 8, seed=1)
    assert stratified_sample({"a": range(100)}, 5)["a"] == drawn["a"]  # whatever else there is
    with pytest.raises(SettingError, match="n must be at least 1, got 0"):
        stratified_sample(strata, 0)


def log_p(model, tokens, begin):
    """Log-probability of tokens[begin:], from the plain forward pass."""
    log_probs = model(torch.tensor([tokens]))[0].log_softmax(-1)
    return sum(log_probs[i - 1, tokens[i]].item() for i in range(begin, len(tokens)))


@pytest.fixture
def blimp_folder(tmp_path):
    for paradigm, n in (("agreement", 9), ("islands", 3)):
        lines = [
            json.dumps({"UID": paradigm, "sentence_good": f"The {i} teas are late.",
                        "sentence_bad": f"The {i} teas is late.", "field": "x"})
            for i in range(n)
        ]  # fmt: skip
        (tmp_path / f"{paradigm}.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_equal_pairs_of_blimp_count_once(blimp_folder):
    pairs = load_blimp(blimp_folder, n=None).items
    copied = (blimp_folder / "islands.jsonl").read_text()
    (blimp_folder / "islands (1).jsonl").write_text(copied)
    with pytest.warns(UserWarning, match=r": 3 of 15 items stand there again; each counts once"):
        assert sorted(load_blimp(blimp_folder, n=None).items) == sorted(pairs)


def test_equal_questions_of_mmlu_count_once(tmp_path):
    """Of the subjects that are asked; in MMLU-Redux 11 of college_physics stand there twice."""
    rows = [redux_row(i) for i in range(3)]
    write_redux(tmp_path, "tea", [*rows, rows[1]])
    write_redux(tmp_path, "lakes", rows)
    options = {"shots": 0, "n": None}
    with pytest.warns(UserWarning, match=r"tea: 1 of 4 items stand there again; each counts once"):
        assert len(load_mmlu(tmp_path, subjects=["tea"], **options).parts["tea"].items) == 3
    assert len(load_mmlu(tmp_path, subjects=["lakes"], **options).parts["lakes"].items) == 3
    write_original(tmp_path, subjects=["tea"], n=4)
    path = tmp_path / "test" / "tea_test.csv"
    path.write_text(path.read_text() * 2)
    with pytest.warns(UserWarning, match=r"tea: 4 of 8 items stand there again"):
        assert len(load_mmlu(tmp_path, subjects=["tea"], **options).parts["tea"].items) == 4


def test_swapped_pairs_of_blimp_are_named(blimp_folder):
    path = blimp_folder / "islands.jsonl"
    row = json.loads(path.read_text().splitlines()[0])
    row["sentence_good"], row["sentence_bad"] = row["sentence_bad"], row["sentence_good"]
    (blimp_folder / "turned.jsonl").write_text(json.dumps(row))
    with pytest.warns(UserWarning, match=r": 1 of \d+ items stand there again with another answer"):
        load_blimp(blimp_folder, n=None)


def test_questions_of_mmlu_with_two_answers_are_named_in_any_order_of_choices(tmp_path):
    rows = [redux_row(i) for i in range(3)]
    turned = redux_row(0, answer=0)
    turned[1] = "['c; d', 'a, b', \"it's early\", 'late']"
    for again in (redux_row(0, answer=1), turned):
        write_redux(tmp_path, "tea", [*rows, again])
        with pytest.warns(UserWarning, match="tea: 1 of 3 items stand there again with another"):
            load_mmlu(tmp_path, subjects=["tea"], shots=0, n=None)


def test_questions_of_mmlu_that_the_shots_give_away_are_named(tmp_path):
    write_original(tmp_path, subjects=["tea"])
    dev, test = (tmp_path / split / f"tea_{split}.csv" for split in ("dev", "test"))
    test.write_text(test.read_text() + dev.read_text().splitlines()[0] + "\n")
    with pytest.warns(UserWarning, match="tea: 1 of 9 questions stand among the shots"):
        load_mmlu(tmp_path, subjects=["tea"], n=None)
    assert len(load_mmlu(tmp_path, subjects=["tea"], shots=0, n=None).parts["tea"].items) == 9


def test_blimp_samples_each_paradigm(blimp_folder):
    found = load_blimp(blimp_folder, n=8)
    assert Counter(found.clusters) == {"agreement": 5, "islands": 3}
    assert len(load_blimp(blimp_folder, n=None).items) == 12
    assert found.fingerprint == load_blimp(blimp_folder, n=8).fingerprint
    assert found.fingerprint != load_blimp(blimp_folder, n=8, seed=1).fingerprint
    assert found.name == "blimp" and [m.key for m in found.measures] == ["blimp", "blimp_margin"]


def test_blimp_equals_the_plain_forward_pass(main_model):
    """Without a BOS the first word is given, not predicted."""
    pairs = tuple(
        MinimalPair("x", f"{who} are late.", f"{who} is late") for who in ("Teas", "People, I say,")
    )
    benchmark = Blimp(name="blimp", source="", items=pairs)
    found = benchmark.run(main_model)
    for pair, margin in zip(pairs, found["blimp_margin"], strict=True):
        good, bad = (log_p(main_model, encode_text(main_model, s), 1) for s in pair[1:])
        assert margin == pytest.approx(good - bad, abs=2e-4)
    assert found["blimp"] == [float(margin > 0) for margin in found["blimp_margin"]]
    with steer(main_model, HEADS):
        assert benchmark.run(main_model)["blimp_margin"] != found["blimp_margin"]
    assert benchmark.run(main_model) == found


def test_blimp_files_that_hold_something_else_are_refused(tmp_path):
    with pytest.raises(BenchmarkError, match=r"folder must hold BLiMP's .jsonl files, got '.*none"):
        load_blimp(tmp_path / "none")
    (tmp_path / "a.jsonl").write_text('{"UID": "a", "sentence_good": "Tea."}')
    with pytest.raises(BenchmarkError, match="a.jsonl must hold .*without .'sentence_bad'"):
        load_blimp(tmp_path)
    (tmp_path / "a.jsonl").write_text("[]")
    with pytest.raises(BenchmarkError, match=r"lines of a.jsonl must hold named values, got \[\]"):
        load_blimp(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"UID": "a", "sentence_good": "Tea.", "sentence_bad": ""}')
    with pytest.raises(BenchmarkError, match="sentence_bad must be text in row 1 of a.jsonl"):
        load_blimp(tmp_path)
    (tmp_path / "a.jsonl").write_bytes("Café".encode("latin-1"))
    with pytest.raises(BenchmarkError, match="a.jsonl must be UTF-8"):
        load_blimp(tmp_path)


def test_an_option_of_which_nothing_is_predicted_is_refused(model):
    with pytest.raises(BenchmarkError, match="option must have a token .* got '' after 'Tea'"):
        option_log_probs(model, [Question("Tea", (" is late", ""))])


def question(i, answer=0, **fields):
    return MultipleChoice(f"Tea {i}?", ("green", "black", "white", "cold"), answer, **fields)


def write_original(folder, subjects=("tea", "long_lakes"), n=8):
    for split, size in (("dev", 5), ("test", n)):
        (folder / split).mkdir()
        for subject in subjects:
            with (folder / split / f"{subject}_{split}.csv").open("w", newline="") as file:
                csv.writer(file).writerows(
                    [f'{subject}, {split} {i}: "which"?', "None", "2", "b,c", "d", LETTERS[i % 4]]
                    for i in range(size)
                )


REDUX = "question{0}choices{0}answer{0}error_type{0}source\n"


def redux_row(i, kind="OK", answer=None):
    choices = "['late', \"it's early\", 'a, b', 'c; d']"
    answer = i % 4 if answer is None else answer
    return [f"Is tea {i} late?", choices, answer, kind, ""]


def write_redux(folder, name, rows, delimiter=",", encoding="utf-8"):
    with (folder / f"mmlu_{name}.csv").open("w", newline="", encoding=encoding) as file:
        file.write(REDUX.format(delimiter))
        csv.writer(file, delimiter=delimiter).writerows(rows)


def test_mmlu_as_hendrycks_distributes_it(tmp_path):
    write_original(tmp_path)
    found = read_mmlu(tmp_path)
    assert list(found) == ["long_lakes", "tea"]
    assert found["tea"].test[6] == ('tea, test 6: "which"?', ("None", "2", "b,c", "d"), 2, True)
    benchmark = load_mmlu(tmp_path, subjects=None)
    assert benchmark.parts["tea"].shots == found["tea"].dev
    assert Counter(benchmark.clusters) == {"tea": 8, "long_lakes": 8}


def test_mmlu_redux_in_both_dialects(tmp_path):
    kinds = ("ok", "OK ", "Wrong Groundtruth", "expert")
    write_redux(tmp_path, "tea", [redux_row(i, kinds[i % 4]) for i in range(24)])
    rows = [redux_row(i) for i in range(24)]
    rows[3][0] = "Is my sister\u2019s tea late?"
    write_redux(tmp_path, "rain", rows, delimiter=";")
    found = read_mmlu(tmp_path)
    assert found["rain"].test[3].question == "Is my sister\u2019s tea late?"
    assert found["tea"].test[1] == (
        "Is tea 1 late?",
        ("late", "it's early", "a, b", "c; d"),
        1,
        True,
    )
    assert [item.sound for item in found["tea"].test[:4]] == [True, True, False, False]

    parts = load_mmlu(tmp_path, subjects=None, n=None).parts
    assert {name: len(part.items) for name, part in parts.items()} == {"rain": 19, "tea": 7}
    for name, part in parts.items():
        assert len(part.shots) == 5 and not set(part.shots) & set(part.items)
        assert set(part.shots + part.items) == {item for item in found[name].test if item.sound}
    unsound = load_mmlu(tmp_path, subjects=["tea"], n=None, keep_unsound=True).parts["tea"]
    assert len(unsound.items) == 19 and all(shot.sound for shot in unsound.shots)
    other = load_mmlu(tmp_path, subjects=["tea"], n=None, seed=1).parts["tea"]
    assert set(other.shots) != set(parts["tea"].shots)


def test_mmlu_is_utf_8_but_for_one_published_file(tmp_path):
    row = redux_row(0)
    row[0] = "Is the Caf\u00e9 late?"
    for encoding in ("latin-1", "mac_roman"):
        write_redux(tmp_path, "moral_scenarios", [row], encoding=encoding)
        with pytest.raises(BenchmarkError, match="mmlu_moral_scenarios.csv must be UTF-8, got the"):
            read_mmlu(tmp_path)
    write_redux(tmp_path, "moral_scenarios", [row], encoding="utf-8-sig")
    assert read_mmlu(tmp_path)["moral_scenarios"].test[0].question == row[0]


def test_the_one_published_file_in_another_encoding_is_read(tmp_path):
    raw = public_data("mmlu_redux/mmlu_moral_scenarios.csv").read_bytes().replace(b"\r\n", b"\n")
    for i, copy in enumerate((raw, raw.replace(b"\n", b"\r\n"))):
        (tmp_path / f"mmlu_{i}.csv").write_bytes(copy)
    for subject in read_mmlu(tmp_path).values():
        assert any("\u2019" in item.question for item in subject.test)


def test_a_field_of_mmlu_that_is_too_long_is_refused(tmp_path):
    row = redux_row(0)
    row[0] = "late " * 30_000
    write_redux(tmp_path, "tea", [row])
    with pytest.raises(BenchmarkError, match="mmlu_tea.csv must be a CSV table, but: field larger"):
        read_mmlu(tmp_path)
    write_original(tmp_path, subjects=["tea"])
    (tmp_path / "dev" / "tea_dev.csv").write_text(f"{row[0]},a,b,c,d,A\n")
    with pytest.raises(BenchmarkError, match="tea_dev.csv must be a CSV table, but: field larger"):
        read_mmlu(tmp_path)


def write_dataset(folder, splits):
    """A folder that ``datasets`` reads as it would read "cais/mmlu"."""
    files = []
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        files.append(f"  - split: {split}\n    path: {split}.jsonl\n")
    config = "---\nconfigs:\n- config_name: all\n  data_files:\n" + "".join(files) + "---\n"
    (folder / "README.md").write_text(config)
    return folder


def test_mmlu_from_the_datasets_library(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    whole, mixed, other = (tmp_path / name for name in ("whole", "mixed", "other"))
    for folder in (whole, mixed, other):
        folder.mkdir()
    rows = [
        {"question": f"{s} {i}?", "subject": s, "choices": list("abcd"), "answer": i % 4}
        for i in range(6) for s in ("tea", "rain")
    ]  # fmt: skip
    shown = [row | {"question": f"Shown: {row['question']}"} for row in rows[:10]]
    write_dataset(whole, {"dev": shown, "test": rows})
    parts = load_mmlu(whole, subjects=None, n=8).parts
    assert parts["rain"].shots[1] == ("Shown: rain 1?", ("a", "b", "c", "d"), 1, True)
    assert [len(part.items) for part in parts.values()] == [4, 4]
    with pytest.raises(BenchmarkError, match="'all', got '.*nowhere' "):
        load_mmlu(tmp_path / "nowhere")
    write_dataset(mixed, {"dev": [{"tea": 1}], "test": rows})
    with pytest.raises(BenchmarkError, match="'all', got '.*mixed' "):
        load_mmlu(mixed)
    write_dataset(other, {"dev": [{"question": "Tea?"}], "test": [{"question": "Rain?"}]})
    with pytest.raises(BenchmarkError, match="must have the columns .*, got ..question"):
        load_mmlu(other)


def test_one_letter_for_everything_is_right_in_a_quarter(tmp_path):
    """Most answers are D, and yet each letter is right as often in the sample."""
    rows = [redux_row(i, answer=3 if i % 3 else i % 4) for i in range(90)]
    write_redux(tmp_path, "rain", rows)
    write_redux(tmp_path, "tea", [redux_row(i) for i in range(40)])
    found = load_mmlu(tmp_path, subjects=None, n=32)
    for part in found.parts.values():
        assert Counter(item.answer for item in part.items) == dict.fromkeys(range(4), 4)
    assert found.fingerprint == load_mmlu(tmp_path, subjects=None, n=32).fingerprint
    assert found.fingerprint != load_mmlu(tmp_path, subjects=None, n=32, seed=1).fingerprint
    odd = load_mmlu(tmp_path, subjects=None, n=10).parts.values()
    assert all(max(Counter(i.answer for i in part.items).values()) == 2 for part in odd)
    one = load_mmlu(tmp_path, subjects=None, n=1)
    assert one.clusters == ("rain",)  # an empty subject asks nothing


def test_the_prompt_of_mmlu():
    assert prompt_text("long_lakes", [question(1, answer=2)], question(" 2 ")) == (
        "The following are multiple choice questions (with answers) about long lakes.\n\n"
        "Tea 1?\nA. green\nB. black\nC. white\nD. cold\nAnswer: C\n\n"
        "Tea  2 ?\nA. green\nB. black\nC. white\nD. cold\nAnswer:"
    )


@pytest.fixture
def small():
    """Two subjects, six questions."""
    shots = tuple(question(10 + i, answer=i) for i in range(2))
    return Mmlu(
        {
            "tea": Part(shots, tuple(question(i, answer=i % 4) for i in range(4))),
            "rain": Part(shots, (question(5, answer=3), question("6, early or late", answer=1))),
        }
    )


def test_mmlu_equals_the_plain_forward_pass(main_model, small):
    found = small.run(main_model)
    assert small.clusters == ("tea",) * 4 + ("rain",) * 2
    margins = []
    for subject, (shots, items) in small.parts.items():
        for item in items:
            tokens = encode_document(main_model, prompt_text(subject, shots, item))
            letters = [encode_answer(main_model, f" {letter}") for letter in LETTERS]
            p = [log_p(main_model, tokens + letter, len(tokens)) for letter in letters]
            right = p.pop(item.answer)
            margins.append(right - max(p))
    assert found["mmlu_margin"] == pytest.approx(margins, abs=2e-4)
    assert found["mmlu"] == [float(margin > 0) for margin in margins]
    with steer(main_model, HEADS):
        steered = small.run(main_model)["mmlu_margin"]
    assert steered != pytest.approx(found["mmlu_margin"], abs=0.01)
    assert small.run(main_model)["mmlu_margin"] == pytest.approx(found["mmlu_margin"], abs=1e-5)


def test_the_shots_of_a_subject_are_run_once(model, small):
    """Of what passes through the first layer, only one row a subject is as long as the shots."""
    rows = []
    point = model.blocks[0].hook_resid_pre
    point.add_perma_hook(lambda resid, hook: rows.append(resid.shape[:2]))
    small.run(model)
    shots = [len(encode_document(model, prompt_text(subject, part.shots, question(""))))
             for subject, part in small.parts.items()]  # fmt: skip
    assert [batch for batch, pos in rows if pos > 100] == [1, 1] and min(shots) > 100
    assert sum(batch for batch, pos in rows if pos < 50) >= len(small.clusters)


def test_prompts_that_do_not_fit_lose_whole_shots_from_the_front(tiny, small):
    short = small.parts["rain"].shots
    long = question("how late " * 30)
    n_ctx = {}
    for n_shots in (0, 1, 2):
        model = tiny()
        text = prompt_text("rain", short[2 - n_shots :], small.parts["rain"].items[1])
        n_ctx[n_shots] = len(encode_document(model, text))
    parts = {"rain": small.parts["rain"], "lakes": Part(short, (question(1), long, question(2)))}
    model = tiny(max_position_embeddings=n_ctx[2] - 1)
    cut = Mmlu(parts)
    assert cut.shots_kept(model)["rain"] == 1
    fewer = Mmlu({"rain": Part(short[1:], parts["rain"].items)}).run(model)
    assert cut.run(model)["mmlu_margin"][:2] == fewer["mmlu_margin"]

    model = tiny(max_position_embeddings=n_ctx[0] + 1)  # a letter may have two tokens
    found = cut.run(model)
    assert cut.shots_kept(model) == {"rain": 0, "lakes": 0}
    assert [math.isnan(value) for value in found["mmlu"]] == [False] * 3 + [True, False]
    assert [math.isnan(value) for value in found["mmlu_margin"]] == [False] * 3 + [True, False]
    alone = Mmlu({"lakes": Part((), (long,))}).run(model)
    assert math.isnan(alone["mmlu"][0])


def test_sources_and_settings_that_are_not_valid_are_refused(tmp_path):
    write_original(tmp_path)
    with pytest.raises(SettingError, match=r"some of \['long_lakes', 'tea'\], got \['snow'\]"):
        load_mmlu(tmp_path, subjects=["snow"])
    with pytest.raises(SettingError, match="got .*'anatomy', 'conceptual_physics'"):
        load_mmlu(tmp_path)
    with pytest.raises(SettingError, match="shots must be at least 0, got -1"):
        load_mmlu(tmp_path, shots=-1)
    with pytest.raises(SettingError, match="shots must be at most 5 for 'long_lakes', got 6"):
        load_mmlu(tmp_path, subjects=None, shots=6)
    (tmp_path / "dev" / "tea_dev.csv").unlink()
    with pytest.raises(SettingError, match="shots must be at most 7 for 'tea', got 8"):
        load_mmlu(tmp_path, subjects=["tea"], shots=8)
    (tmp_path / "test" / "tea_test.csv").write_text("Is tea late?,yes,no,maybe,A\n")
    with pytest.raises(BenchmarkError, match="tea_test.csv, question 1 must have a question, four"):
        read_mmlu(tmp_path)
    for path in (tmp_path / "test").iterdir():
        path.unlink()
    with pytest.raises(BenchmarkError, match="source must hold MMLU's questions, got none in"):
        read_mmlu(tmp_path)


def test_mmlu_redux_files_that_hold_something_else_are_refused(tmp_path):
    write_redux(tmp_path, "tea", [["Is tea late?", "['a', 'b'", 0, "ok", ""]])
    with pytest.raises(
        BenchmarkError, match="mmlu_tea.csv, question 1 must have question, choices"
    ):
        read_mmlu(tmp_path)
    write_redux(tmp_path, "tea", [["Is tea late?", "['a', 'b']", 0, "ok", ""]])
    with pytest.raises(BenchmarkError, match="mmlu_tea.csv, question 1 must have a question, four"):
        read_mmlu(tmp_path)
    (tmp_path / "mmlu_tea.csv").write_text("question;choices\nIs tea late?;['a']\n")
    with pytest.raises(BenchmarkError, match=r"question 1 must have .* got \{'question': 'Is tea"):
        read_mmlu(tmp_path)


def test_documents_have_the_bos_of_the_tokenizers_own_files(tiny_folder, model, tokenizer):
    assert encode_document(model, "Tea") == encode_answer(model, "Tea")
    assert encode_document(load_model(tiny_folder), "Tea") == encode_answer(model, "Tea")
