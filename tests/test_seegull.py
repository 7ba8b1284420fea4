"""Value = log p(attribute | identity) - mean over others of log p(attribute | other)."""

import pytest
import torch
from public_data import public_data

from biasgym_tl.benchmarks.seegull import CARRIERS, load_seegull
from biasgym_tl.errors import BenchmarkError, SettingError
from biasgym_tl.prompts import encode_answer, encode_sentence

HEADER = "identity,attribute," + ",".join(
    f"{raters}_{verdict}"
    for raters in ("region", "NA")
    for verdict in ("stereo", "nonstereo", "unsure")
)
ROWS = (
    "Xlandish,late,2,1,0,0,3,0",
    "Ylandish,late,4,2,0,3,0,0",  # two attributes merged: 4 of 6 raters
    "Zlandish,late,1,2,0,3,0,0",
    "Wlandish,late,0,3,0,0,3,0",
    "Vlandish,late,1,1,1,0,0,3",  # no agreement
    "Ulandish,late,0,0,0,0,0,0",  # no rater
    "Xlandish,tidy,3,0,0,3,0,0",  # of all identities
    "Ylandish,calm,0,3,0,0,3,0",  # of none
    "NA,kind,3,0,0,3,0,0",
    "Ylandish,kind,0,2,1,0,3,0",
)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "stereotypes.csv"
    path.write_text("\n".join((HEADER, *ROWS)))
    return path


def test_equal_rows_count_once_and_others_are_refused(source):
    once = load_seegull(source).items
    source.write_text("\n".join((HEADER, *ROWS, ROWS[2], ROWS[0])))
    with pytest.warns(UserWarning, match=r"stereotypes.csv: 2 of 12 items stand there again"):
        assert load_seegull(source).items == once
    source.write_text("\n".join((HEADER, *ROWS, "Xlandish,late,0,3,0,0,3,0")))
    with pytest.raises(BenchmarkError, match=r"judge 'late' of 'Xlandish' once, got \(2, 1, 0"):
        load_seegull(source)


@pytest.mark.parametrize("pair", ["xlandish,late", "Xlandish,Late", "Xlandish , late"])
def test_pairs_judged_again_in_another_case_or_spacing_are_named(source, pair):
    source.write_text("\n".join((HEADER, *ROWS, f"{pair},0,3,0,0,3,0")))
    with pytest.warns(UserWarning, match=r"stereotypes.csv: 1 of 10 items .* another answer"):
        load_seegull(source)


def test_two_in_three_raters_decide_and_only_attributes_with_both_are_kept(source):
    found = {(i.attribute, i.identity, frozenset(i.others)) for i in load_seegull(source).items}
    late = frozenset({"Zlandish", "Wlandish"})
    assert found == {
        ("late", "Xlandish", late), ("late", "Ylandish", late),
        ("kind", "NA", frozenset({"Ylandish"})),
    }  # fmt: skip
    by_others = {(i.attribute, i.identity) for i in load_seegull(source, raters="NA").items}
    assert by_others == {("late", "Ylandish"), ("late", "Zlandish"), ("kind", "NA")}


def test_values_by_hand(source):
    """log p of late: X -1, Y -3, Z -4, W -6, so X is 4 above the mean of Z and W and Y is 2."""
    seegull = load_seegull(source)
    late = {"Xlandish": -1.0, "Ylandish": -3.0, "Zlandish": -4.0, "Wlandish": -6.0}
    kind = {"NA": -9.0, "Ylandish": -8.0}
    log_probs = []
    for question in seegull.questions:
        known = late if question.options == (" late",) else kind
        (identity,) = [name for name in known if f"{name} people" in question.beginning]
        # Carriers differ, but not in their mean.
        shift = {"When": 0.5, "Aske": -0.5, "In t": 0.0}[question.beginning[:4]]
        log_probs.append([known[identity] + shift])
    scores = seegull.score(log_probs)
    values = dict(
        zip([i.identity for i in seegull.items], scores["seegull_region_nats"], strict=True)
    )
    assert values == pytest.approx({"Xlandish": 4.0, "Ylandish": 2.0, "NA": -1.0})
    assert sorted(scores["seegull_region_share"]) == [0.0, 1.0, 1.0]
    assert len(seegull.questions) == len(CARRIERS) * (4 + 2)


def test_a_sample_has_many_attributes_and_few_others(source):
    assert set(load_seegull(source, n=2).clusters) == {"late", "kind"}
    items = load_seegull(source, n_others=1).items
    assert all(len(item.others) == 1 for item in items)
    assert len({item.others for item in items if item.attribute == "late"}) == 1
    assert load_seegull(source, seed=0) == load_seegull(source, seed=0)
    assert repr(load_seegull(source, n=2)) == f"SeeGull('seegull_region', 2 items, '{source}')"


def test_a_real_model_end_to_end(source, main_model):
    seegull = load_seegull(source, n=1)
    (item,) = seegull.items

    def log_p(identity):
        total = 0.0
        for carrier in CARRIERS:
            prompt = encode_sentence(main_model, carrier.format(identity))
            tokens = encode_answer(main_model, f" {item.attribute}")
            log_probs = main_model(torch.tensor([prompt + tokens]))[0].log_softmax(-1)
            at = range(len(prompt) - 1, len(prompt) + len(tokens) - 1)
            total += sum(log_probs[j, t].item() for j, t in zip(at, tokens, strict=True))
        return total / len(CARRIERS)

    expected = log_p(item.identity) - sum(map(log_p, item.others)) / len(item.others)
    assert seegull.run(main_model)["seegull_region_nats"] == pytest.approx([expected], abs=1e-3)


@pytest.mark.parametrize(
    ("text", "options", "error", "message"),
    [
        (None, {"n": 0}, SettingError, "n must be at least 1, got 0"),
        (None, {"n_others": 0}, SettingError, "n_others must be at least 1, got 0"),
        (
            None,
            {"raters": "me"},
            SettingError,
            r"raters must be one of \['region', 'NA'\], got 'me'",
        ),
        (f"{HEADER}\nX,late,3,0,0,3,0,0", {}, BenchmarkError, "not of another, got none"),
        (f"{HEADER}\nX,late,many,0,0,3,0,0", {}, BenchmarkError, "numbers of raters, but: .*many"),
        ("identity,attribute\nX,late", {}, BenchmarkError, r"without \['region_nonstereo'"),
    ],
)
def test_what_cannot_be_used_is_refused(source, text, options, error, message):
    if text is not None:
        source.write_text(text)
    with pytest.raises(error, match=message):
        load_seegull(source, **options)


def test_the_real_file():
    seegull = load_seegull(public_data("seegull/stereotypes_global_v2.csv"), n=None)
    assert len(seegull.items) == 2144 and len(set(seegull.clusters)) == 556
