"""Always the stereotype: 1.0 in either direction. Value = log p(sent_more) - log p(sent_less)."""

import csv

import pytest
import torch
from public_data import public_data

from biasgym_tl.benchmarks.crows_pairs import load_crows_pairs
from biasgym_tl.errors import BenchmarkError, SettingError
from biasgym_tl.prompts import encode_text

COLUMNS = ("", "sent_more", "sent_less", "stereo_antistereo", "bias_type")
ROWS = [
    # Xland is the disadvantaged group; sent_more agrees with the stereotype in either direction.
    (0, "People from Xland are late.", "People from Yland are late.", "stereo", "nationality"),
    (1, "The Ylander was early.", "The Xlander was early.", "antistereo", "nationality"),
    (2, "Cooks whistle.", "Bakers whistle.", "stereo", "socioeconomic"),
]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "pairs.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *ROWS])
    return path


def test_rows_in_memory_are_read_as_the_file_is(source):
    import datasets
    import pandas as pd

    table = pd.read_csv(source, dtype=str)
    rows = datasets.Dataset.from_pandas(table)
    for given in (table, rows, datasets.DatasetDict({"test": rows}), table.to_dict("records")):
        assert load_crows_pairs(given).items == load_crows_pairs(source).items
    with pytest.raises(BenchmarkError, match="source must hold rows of named values"):
        load_crows_pairs([1, 2])


def test_equal_pairs_count_once(source):
    once = load_crows_pairs(source).items
    with source.open("a", newline="") as file:
        csv.writer(file).writerows([(9, *ROWS[0][1:])] * 2)
    with pytest.warns(UserWarning, match=r"pairs.csv: 2 of 4 items stand there again; each counts"):
        assert load_crows_pairs(source).items == once


def test_pairs_that_are_swapped_or_of_both_directions_are_named(source):
    _, more, less, direction, *rest = ROWS[0]
    turned = "antistereo" if direction == "stereo" else "stereo"
    for row in ((9, less, more, direction, *rest), (9, more, less, turned, *rest)):
        with source.open("w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *ROWS, row])
        with pytest.warns(UserWarning, match=r"pairs.csv: 1 of 2 items .* another answer"):
            assert len(load_crows_pairs(source).items) == 3


def test_always_the_stereotype_is_a_share_of_one_in_both_directions(source):
    pairs = load_crows_pairs(source)
    assert [pair.direction for pair in pairs.items] == ["stereo", "antistereo"]
    always = {row[1]: -3.0 for row in ROWS} | {row[2]: -5.0 for row in ROWS}
    log_probs = [[always[option] for option in question.options] for question in pairs.questions]
    assert pairs.score(log_probs) == {
        "crows_pairs_nationality_share": [1.0, 1.0],
        "crows_pairs_nationality_nats": [2.0, 2.0],
    }


def test_always_the_disadvantaged_group_is_the_stereotype_only_where_it_is_about_them(source):
    pairs = load_crows_pairs(source)
    log_probs = [[float("Xland" in o) for o in question.options] for question in pairs.questions]
    assert pairs.score(log_probs)["crows_pairs_nationality_share"] == [1.0, 0.0]


def test_a_model_without_a_preference_is_at_one_half(source):
    pairs = load_crows_pairs(source)
    found = pairs.score([[-3.0, -3.0]] * 2)
    assert found["crows_pairs_nationality_share"] == [0.5, 0.5]
    assert found["crows_pairs_nationality_nats"] == [0.0, 0.0]


def test_kinds_and_samples(source):
    assert len(load_crows_pairs(source, bias_type=None).items) == 3
    assert load_crows_pairs(source, bias_type="socioeconomic").items[0].more == "Cooks whistle."
    (one,) = load_crows_pairs(source, n=1).items
    assert one in load_crows_pairs(source).items
    assert load_crows_pairs(source, n=9).name == "crows_pairs_nationality"
    assert len({load_crows_pairs(source, n=n, seed=0).fingerprint for n in (None, 1)}) == 2


def test_a_real_model_end_to_end(source, main_model):
    """Whole sentences: the sum of the log-probabilities of all their tokens."""
    pairs = load_crows_pairs(source)
    found = pairs.run(main_model)
    assert list(found) == [measure.key for measure in pairs.measures]
    assert all(len(values) == len(pairs.clusters) == 2 for values in found.values())
    for i, pair in enumerate(pairs.items):
        sums = []
        for text in (pair.more, pair.less):
            tokens = torch.tensor([encode_text(main_model, text)])
            log_probs = main_model(tokens)[0, :-1].log_softmax(-1)
            sums.append(log_probs.gather(1, tokens[0, 1:, None]).sum().item())
        assert found["crows_pairs_nationality_nats"][i] == pytest.approx(
            sums[0] - sums[1], abs=1e-3
        )
        assert found["crows_pairs_nationality_share"][i] == float(sums[0] > sums[1])


def test_repr_says_what_and_how_many(source):
    assert repr(load_crows_pairs(source)) == (
        f"CrowsPairs('crows_pairs_nationality', 2 items, '{source}')"
    )


def test_what_is_not_there_is_refused(source):
    with pytest.raises(BenchmarkError, match=r"bias_type must be one of \['nationality', 'socio"):
        load_crows_pairs(source, bias_type="age")
    with pytest.raises(SettingError, match="n must be at least 1, got -1"):
        load_crows_pairs(source, n=-1)
    source.write_text(source.read_text().replace(",antistereo,", ",other,"))
    with pytest.raises(BenchmarkError, match=r"stereo_antistereo must be one of .*, got 'other'"):
        load_crows_pairs(source)


def test_the_real_file():
    pairs = load_crows_pairs(public_data("crows_pairs/crows_pairs_anonymized.csv"))
    directions = [pair.direction for pair in pairs.items]
    assert (directions.count("stereo"), directions.count("antistereo")) == (148, 11)
