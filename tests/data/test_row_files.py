"""Rows of the other stages: attributions, selections, verdicts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segrl.data import read_rows, write_rows
from segrl.data.files import replacing_folder

ROWS = [
    {"trace_id": "a", "scores": torch.tensor([0.5, -0.25]), "keep": [True, False], "gap": None},
    {"trace_id": "b", "scores": torch.tensor([]), "keep": [], "gap": 0.125},
]


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_rows_come_back(tmp_path, ending):
    path = tmp_path / f"rows.{ending}"
    write_rows(path, ROWS)
    assert read_rows(path) == [
        {"trace_id": "a", "scores": [0.5, -0.25], "keep": [True, False], "gap": None},
        {"trace_id": "b", "scores": [], "keep": [], "gap": 0.125},
    ]
    assert read_rows(path, columns=["gap", "trace_id"]) == [
        {"trace_id": "a", "gap": None},
        {"trace_id": "b", "gap": 0.125},
    ]


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_a_missing_column_names_those_present_and_the_nearest(tmp_path, ending):
    path = tmp_path / f"rows.{ending}"
    write_rows(path, ROWS)
    with pytest.raises(
        ValueError, match=r"no column 'score'; its columns are trace_id, scores, keep, gap; did you mean 'scores'"
    ):
        read_rows(path, columns=["trace_id", "score"])


def test_float32_scores_survive_to_the_bit(tmp_path):
    @settings(max_examples=30, deadline=None, derandomize=True)
    @given(st.lists(st.lists(st.floats(width=32, allow_nan=False), max_size=5), min_size=1, max_size=3))
    def round_trip(many):
        write_rows(tmp_path / "a.parquet", [{"scores": torch.tensor(values)} for values in many])
        assert [row["scores"] for row in read_rows(tmp_path / "a.parquet")] == many

    round_trip()


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_rows_have_equal_columns(tmp_path, ending):
    with pytest.raises(ValueError, match=r"row 2 .* has the columns \['b'\], row 1 has \['a'\]"):
        write_rows(tmp_path / f"a.{ending}", [{"a": 1}, {"b": 1}])


@pytest.mark.parametrize(
    ("values", "says"),
    [(["a", 1], "column 'x' cannot be written"), ([2**70], "column 'x' cannot be written"), ([{}], "no empty dict")],
)
def test_values_parquet_cannot_hold(tmp_path, values, says):
    with pytest.raises(ValueError, match=says):
        write_rows(tmp_path / "a.parquet", [{"x": value} for value in values])
    assert list(tmp_path.iterdir()) == []


def test_values_json_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match=r"row 2 for .*a.jsonl cannot be written as JSON"):
        write_rows(tmp_path / "a.jsonl", [{"x": 1}, {"x": object()}])
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"rows.parquet is no file here"):
        read_rows(tmp_path / "rows.parquet")


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "model"
    for text in ("first", "second"):
        with replacing_folder(folder, "mark") as draft:
            (draft / "mark").write_text(text)
    assert [one.read_text() for one in folder.iterdir()] == ["second"]
    with pytest.raises(FileNotFoundError), replacing_folder(folder, "mark") as draft:
        (draft / "no such folder" / "third").write_text("third")
    other_kind = pytest.raises(FileExistsError, match=r"holds other files and no config\.json")
    with other_kind, replacing_folder(folder, "config.json"):
        pytest.fail("a folder of another kind was to be replaced")
    assert [one.read_text() for one in folder.iterdir()] == ["second"]
    assert [one.name for one in tmp_path.iterdir()] == ["model"]  # no draft is left


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "disk")
    for text in ("first", "second"):
        with replacing_folder(tmp_path / "model", "mark") as draft:
            (draft / "mark").write_text(text)
    assert (tmp_path / "model").is_symlink()
    assert (tmp_path / "disk" / "mark").read_text() == "second"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["disk", "model"]
