"""Benchmarks from local files and, with a stand-in for the loader, from the hub."""

import json
from collections import Counter
from pathlib import Path

import pytest

from segrl.data import BENCHMARKS, load_benchmark
from segrl.data.sources import HUB_ID

LOCAL = Path(__file__).parents[2] / ".." / "shared" / "data" / "benchmarks"
SIZES = {"aime24": 30, "aime25": 30, "amc23": 40, "math500": 500, "minerva": 272, "olympiadbench": 675, "gsm8k": 1319}


def gpqa_rows(count: int) -> list[dict]:
    return [
        {
            "Record ID": f"rec{n}",
            "Question": f"Question {n}?\n",
            "Correct Answer": f"right {n}\n",
            "Incorrect Answer 1": "one",
            "Incorrect Answer 2": "two",
            "Incorrect Answer 3": "three",
            "Subdomain": "Physics",
        }
        for n in range(count)
    ]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", SIZES)
def test_local_copies(name):
    if not LOCAL.is_dir():
        pytest.skip("the local benchmark copies are not here")
    traces = load_benchmark(name, LOCAL)
    assert len(traces) == SIZES[name]
    assert all(trace.problem and trace.answer and not trace.response for trace in traces)


def test_a_reference_solution_is_kept_but_is_no_response(tmp_path):
    write_jsonl(tmp_path / "gsm8k_test.jsonl", [{"question": "q", "answer": "4", "solution": "2 + 2\n#### 4"}])
    [trace] = load_benchmark("gsm8k", tmp_path)
    assert (trace.answer, trace.response, trace.meta) == ("4", "", {"solution": "2 + 2\n#### 4"})


def test_the_path_may_be_the_file_itself(tmp_path):
    path = write_jsonl(tmp_path / "mine.jsonl", [{"problem": "p", "answer": 1}, {"problem": "q", "answer": 2}])
    assert [trace.answer for trace in load_benchmark("aime24", path, limit=1)] == ["1"]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_without_a_path_the_table_says_what_to_load(monkeypatch, name):
    datasets = pytest.importorskip("datasets")
    calls = []

    def load_dataset(hub_id, config, split):
        calls.append((hub_id if config is None else f"{hub_id}:{config}", split))
        return gpqa_rows(2) if name == "gpqa" else [{"question": "q", "answer": "5"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    load_benchmark(name)
    assert calls == [BENCHMARKS[name]]
    assert HUB_ID.fullmatch(BENCHMARKS[name][0])


def test_gpqa_choices_are_shuffled_and_the_letter_is_that_of_the_right_one(tmp_path):
    write_jsonl(tmp_path / "gpqa.jsonl", gpqa_rows(200))
    traces = load_benchmark("gpqa", tmp_path)
    for number, trace in enumerate(traces):
        question, blank, *choices = trace.problem.split("\n")
        assert (trace.id, question, blank) == (f"rec{number}", f"Question {number}?", "")
        assert [choice[:3] for choice in choices] == ["A. ", "B. ", "C. ", "D. "]
        assert sorted(choice[3:] for choice in choices) == sorted([f"right {number}", "one", "two", "three"])
        assert f"{trace.answer}. right {number}" in choices
        assert trace.meta["Subdomain"] == "Physics"
    # 200 draws of four letters: 50 each, standard deviation 6.
    assert all(30 <= count <= 70 for count in Counter(trace.answer for trace in traces).values())


def test_gpqa_order_depends_on_seed_and_question_alone(tmp_path):
    rows = gpqa_rows(40)
    write_jsonl(tmp_path / "gpqa.jsonl", rows)
    by_id = {trace.id: trace.problem for trace in load_benchmark("gpqa", tmp_path, seed=1)}
    backwards = write_jsonl(tmp_path / "backwards.jsonl", rows[::-1])
    assert by_id == {trace.id: trace.problem for trace in load_benchmark("gpqa", backwards, seed=1)}
    assert by_id != {trace.id: trace.problem for trace in load_benchmark("gpqa", tmp_path, seed=2)}


def test_gpqa_copies_with_lettered_choices_are_refused(tmp_path):
    write_jsonl(tmp_path / "gpqa.jsonl", [{"problem": "q\nA. x\nB. y", "answer": "A"}])
    with pytest.raises(ValueError, match=r"row 1 lacks 'Question', 'Correct Answer', .* found problem, answer"):
        load_benchmark("gpqa", tmp_path)


def test_unknown_names_and_missing_files(tmp_path):
    with pytest.raises(ValueError, match=r"no benchmark 'aime2024'.* did you mean 'aime24'"):
        load_benchmark("aime2024")
    with pytest.raises(FileNotFoundError, match=r"has no file for gsm8k; looked for gsm8k.jsonl, .*gsm8k_test.parquet"):
        load_benchmark("gsm8k", tmp_path)
