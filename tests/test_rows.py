"""Rows are the same from a file and from a data set; a sample deals from each group in turn."""

import json

import datasets
import pytest

from biasgym_tl.benchmarks.rows import read_rows, warn_of_contradictions
from biasgym_tl.benchmarks.sample import check_positive, dealt
from biasgym_tl.errors import BenchmarkError, SettingError

ROWS = [{"name": "NA", "kind": "b"}, {"name": "two", "kind": "a"}]


def test_csv_and_jsonl_hold_text_as_it_stands(tmp_path):
    (tmp_path / "x.csv").write_text("name,kind\nNA,b\ntwo,a\n")
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    for suffix in ("csv", "jsonl"):
        assert read_rows(tmp_path / f"x.{suffix}", ("name", "kind")) == ROWS


def test_of_a_data_set_all_splits_are_read_and_labels_are_names(tmp_path):
    features = datasets.Features(
        {"name": datasets.Value("string"), "kind": datasets.ClassLabel(names=["a", "b"])}
    )
    for split, row in zip(("train", "test"), ROWS, strict=True):
        rows = datasets.Dataset.from_list([{**row, "kind": "ab".index(row["kind"])}], features)
        rows.to_parquet(tmp_path / "set" / f"{split}.parquet")
    assert read_rows(tmp_path / "set", ("name", "kind")) == ROWS


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", None, r"source must be a file that exists, got '.*x\.csv'"),
        ("x.csv", "name,kind\n", r"x\.csv must hold rows .*got no row\. Is it"),
        ("x.csv", "", r"x\.csv must be a CSV table"),
        ("x.csv", "name,sort\na,b\n", r"without \['kind'\]"),
        ("x.jsonl", '{"name": 1', r"line 1 of x\.jsonl must be JSON"),
        ("x.jsonl", '{"name": 1, "kind": 2}\n{"kind": 3}', r"without \['name'\]"),
        ("x.jsonl", "[1, 2]", r"lines of x\.jsonl must hold named values, got \[1, 2\]"),
        (
            "nothing",
            None,
            r"\.csv or \.jsonl file or a data set that can be loaded, got '.*nothing'",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(BenchmarkError, match=message):
        read_rows(tmp_path / name, ("name", "kind"))


def test_answers_that_contradict_are_counted_by_what_is_asked():
    claims = [("a", 1), ("a", 2), ("a", 3), ("b", 1), ("b", 1), ("c", 1), ("c", 2)]
    with pytest.warns(UserWarning, match="tea: 2 of 3 items stand there again with another answer"):
        warn_of_contradictions(claims, "tea")
    warn_of_contradictions([("a", 1), ("a", 1), ("b", 2)], "tea")


def test_groups_are_dealt_evenly():
    groups = {"a": [1, 2, 3], "b": [4], "c": [5, 6]}
    order = dealt(groups, seed=0)
    assert sorted(order) == [1, 2, 3, 4, 5, 6]
    assert {next(g for g, members in groups.items() if x in members) for x in order[:3]} == {*"abc"}
    assert order[5] in groups["a"]
    assert order == dealt(groups, seed=0) != dealt(groups, seed=1)


def test_n_is_at_least_one():
    check_positive(n=None)
    check_positive(n=1)
    with pytest.raises(SettingError, match=r"n must be at least 1, got 0\."):
        check_positive(n=0)
