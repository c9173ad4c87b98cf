"""Whatever people have becomes traces, and what is wrong with it is said in a sentence."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segrl.data import load_traces
from segrl.data.columns import clean_answer

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"


def write_jsonl(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load_one(tmp_path: Path, **row):
    [trace] = load_traces(write_jsonl(tmp_path / "one.jsonl", row))
    return trace


def error_of(path, **options) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_traces(path, **options)
    return str(caught.value)


@pytest.mark.parametrize("problem", ["problem", "question", "Problem", "Question"])
@pytest.mark.parametrize("answer", ["answer", "final_answer", "expected_answer", "Answer"])
def test_problem_and_answer_under_their_known_names(tmp_path, problem, answer):
    trace = load_one(tmp_path, **{problem: "What is 3 * 9?", answer: 27, "level": 2})
    assert (trace.problem, trace.answer, trace.response, trace.meta) == ("What is 3 * 9?", "27", "", {"level": 2})


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        (27, "27"),
        (27.0, "27"),
        (0.5, "0.5"),
        ("27.0", "27.0"),
        (None, None),
        (float("nan"), None),
        ("", None),
        (["$2n-2$"], "2n-2"),
        (["$a$", "$b$"], "a, b"),
        ("$\\frac{1}{2}$", "\\frac{1}{2}"),
        ("$$x$$", "x"),
        ("\\$18.90", "\\$18.90"),
        ("3 - 1 = 2\n#### 1,002", "1002"),
        ("so $\\boxed{4}$", "4"),
    ],
)
def test_an_answer_becomes_a_bare_string(tmp_path, given, answer):
    assert load_one(tmp_path, problem="p", answer=given).answer == answer


@pytest.mark.parametrize(
    ("text", "bare"),
    [("$5", "5"), ("5$", "5"), ("5\\$", "5\\$"), ("$69$,$84$", "$69$,$84$"), ("x + $y$", "x + $y$"), (" $1$ ", "1")],
)
def test_only_dollars_around_the_whole_answer_go(text, bare):
    assert clean_answer(text) == bare


def test_limo_rows_have_question_solution_answer_and_the_solution_is_the_response(tmp_path):
    trace = load_one(tmp_path, question="q", solution="Wait, so it is \\boxed{7}", answer="8")
    assert (trace.response, trace.answer, trace.meta) == ("Wait, so it is \\boxed{7}", "8", {})


def test_a_solution_that_gave_the_answer_is_no_response(tmp_path):
    solution = "A draft: \\boxed{1}. Then \\boxed{\\frac{1}{2}}."
    trace = load_one(tmp_path, problem="p", solution=solution)
    assert (trace.answer, trace.response, trace.meta) == ("\\frac{1}{2}", "", {"solution": solution})


def test_a_solution_without_an_answer_in_it_is_the_response(tmp_path):
    trace = load_one(tmp_path, problem="p", solution="#### Step 1\nLet us think.")
    assert (trace.answer, trace.response) == (None, "#### Step 1\nLet us think.")


def test_gsm8k_answers_stand_behind_their_derivation_which_is_kept(tmp_path):
    trace = load_one(tmp_path, question="q", answer="2 + 2 = <<2+2=4>>4\n#### 4")
    assert (trace.answer, trace.response, trace.meta["answer"]) == ("4", "", "2 + 2 = <<2+2=4>>4\n#### 4")


def test_of_several_samples_the_first_is_the_response_and_all_are_kept(tmp_path):
    trace = load_one(tmp_path, question="q", answer="1", code=["one", "two"], solution="reference")
    assert (trace.response, trace.meta) == ("one", {"code": ["one", "two"], "solution": "reference"})


def test_chat_messages(tmp_path):
    user, assistant = {"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}
    trace = load_one(tmp_path, messages=[user, assistant], answer="1")
    assert (trace.problem, trace.response, trace.meta) == ("q", "r", {})
    system = {"role": "system", "content": "be brief"}
    assert load_one(tmp_path, messages=[system, user, assistant]).meta == {"messages": [system, user, assistant]}
    error = error_of(write_jsonl(tmp_path / "long.jsonl", {"messages": [user, assistant, user, assistant]}))
    assert "row 1" in error
    assert "2 user messages" in error


def test_chat_messages_give_the_response_that_a_problem_column_lacks(tmp_path):
    messages = [{"role": "user", "content": "solve q"}, {"role": "assistant", "content": "r"}]
    trace = load_one(tmp_path, problem="q", messages=messages, solution="reference", answer="1")
    assert (trace.problem, trace.response) == ("q", "r")
    assert trace.meta == {"messages": messages, "solution": "reference"}


def test_verl_rows_of_others(tmp_path):
    trace = load_one(
        tmp_path,
        data_source="math",
        prompt=[{"role": "user", "content": "q"}],
        reward_model={"style": "rule", "ground_truth": "34"},
        extra_info={"index": 5, "id": "a-5"},
    )
    assert (trace.id, trace.problem, trace.answer) == ("a-5", "q", "34")
    assert trace.meta["data_source"] == "math"


@pytest.mark.parametrize("column", ["id", "unique_id", "index", "idx"])
def test_ids_under_their_known_names(tmp_path, column):
    assert load_one(tmp_path, problem="p", **{column: 60}).id == "60"


def test_rows_without_an_id_are_named_after_file_and_row(tmp_path):
    path = write_jsonl(tmp_path / "mine.jsonl", {"problem": "p"}, {"problem": "q", "id": None})
    assert [trace.id for trace in load_traces(path)] == ["mine-0", "mine-1"]


def test_lines_end_at_newline_alone_and_may_be_crlf_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "windows.jsonl"
    rows = [{"problem": "a\u2028b\u2029c\x85d", "id": 1}, {"problem": "line\r\nline", "id": 2}]
    lines = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\r\n\r\n"
    path.write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert [trace.problem for trace in load_traces(path)] == ["a\u2028b\u2029c\x85d", "line\r\nline"]


def test_a_ten_megabyte_line(tmp_path):
    assert len(load_one(tmp_path, problem="p", response="x" * 10_000_000).response) == 10_000_000


def test_parquet_folder_glob_split_and_limit(tmp_path):
    pq.write_table(pa.table({"problem": ["a", "b"], "answer": [1.0, None]}), tmp_path / "train-00000-of-00001.parquet")
    write_jsonl(tmp_path / "test.jsonl", {"problem": "c"})
    (tmp_path / "README.md").write_text("not data")
    assert [trace.problem for trace in load_traces(tmp_path)] == ["c", "a", "b"]
    assert [trace.answer for trace in load_traces(tmp_path, split="train")] == ["1", None]
    assert [trace.problem for trace in load_traces(f"{tmp_path}/*.parquet", limit=1)] == ["a"]
    assert "no file of the split 'dev'" in error_of(tmp_path, split="dev")
    assert "has no split 'train'" in error_of(tmp_path / "test.jsonl", split="train")
    assert "limit is 0" in error_of(tmp_path, limit=0)


def fake_hub(monkeypatch, dataset):
    calls = []

    def load_dataset(hub_id, config, split):
        calls.append((hub_id, config, split))
        return dataset

    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_a_hub_id_with_config_and_split(monkeypatch):
    calls = fake_hub(monkeypatch, [{"question": "q", "answer": "#### 5"}])
    [trace] = load_traces("openai/gsm8k:main", split="test")
    assert calls == [("openai/gsm8k", "main", "test")]
    assert (trace.id, trace.problem, trace.answer) == ("gsm8k-0", "q", "5")


def test_a_hub_id_without_split_has_to_have_a_single_one(monkeypatch):
    fake_hub(monkeypatch, {"train": [{"problem": "p"}]})
    assert load_traces("owner/name")[0].problem == "p"
    fake_hub(monkeypatch, {"train": [], "test": []})
    assert "has the splits train, test" in error_of("owner/name")


def test_what_the_hub_says_is_passed_on(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load_dataset(*_, **__):
        raise datasets.exceptions.DatasetNotFoundError("'owner/name' is a gated dataset")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    error = error_of("owner/name")
    assert "'owner/name' is a gated dataset" in error
    assert "give a local file" in error


def test_rows_of_a_real_datasets_object(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_list([{"messages": [{"role": "user", "content": "q"}], "answer": 3}])
    fake_hub(monkeypatch, datasets.DatasetDict({"train": dataset}))
    [trace] = load_traces("owner/name")
    assert (trace.problem, trace.answer) == ("q", "3")


@pytest.mark.parametrize("path", ["nowhere.jsonl", "data/nowhere.parquet", "/no/such/folder", "name", "../a/b"])
def test_a_missing_file_is_no_hub_id(path):
    error = error_of(path)
    assert repr(path) in error
    assert "neither a file, folder or glob" in error


def test_a_name_in_a_folder_that_is_here_is_no_hub_id_unless_a_config_says_so(monkeypatch, tmp_path):
    calls = fake_hub(monkeypatch, [{"problem": "p"}])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert "the folder 'runs' (in" in (error := error_of("runs/traces"))
    assert "holds no 'traces'; check the spelling" in error
    assert len(load_traces("runs/traces:default", split="train")) == 1
    assert calls == [("runs/traces", "default", "train")]


def test_folders_and_files_without_data(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    assert "no .jsonl or .parquet file (found: notes.txt)" in error_of(tmp_path)
    assert "ends in .txt" in error_of(tmp_path / "notes.txt")
    assert "found: nothing" in error_of(f"{tmp_path}/*.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    assert "empty.jsonl holds no rows" in error_of(tmp_path / "empty.jsonl")
    (tmp_path / "empty.parquet").touch()
    assert "empty.parquet cannot be read as parquet" in error_of(tmp_path / "empty.parquet")


def test_a_wrong_column_names_those_found(tmp_path):
    error = error_of(write_jsonl(tmp_path / "a.jsonl", {"problem": "p"}, {"qestion": "q", "answer": 1}))
    assert "a.jsonl row 2 has no problem" in error
    assert "found qestion, answer" in error
    assert "'problem') is empty" in error_of(write_jsonl(tmp_path / "b.jsonl", {"problem": " "}))
    error = error_of(write_jsonl(tmp_path / "c.jsonl", {"problem": "p", "response": ["one", "two"]}))
    assert "'response' holds a list of 2" in error


def test_an_empty_response_where_one_is_required(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", {"problem": "p", "response": "r"}, {"problem": "p", "response": " \n"})
    assert len(load_traces(path)) == 2
    error = error_of(path, require_response=True)
    assert "a.jsonl row 2: trace 'a-1' has no response" in error


def test_an_empty_response_is_none_that_stands_in_another_column(tmp_path):
    """A row with its solution and a response that failed would be right."""
    row = {"problem": "p", "answer": "5", "solution": "So it is \\boxed{5}.", "code": ["\\boxed{5}"]}
    rows = [row, row | {"response": ""}, row | {"response": None}, row | {"response": "It is 4."}]
    traces = load_traces(write_jsonl(tmp_path / "a.jsonl", *rows))
    assert [trace.response for trace in traces] == ["\\boxed{5}", "", "", "It is 4."]


def test_duplicate_ids_name_both_rows(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", {"problem": "p", "id": 5}, {"problem": "p", "id": 6})
    write_jsonl(tmp_path / "b.jsonl", {"problem": "p", "id": "6"})
    error = error_of(tmp_path)
    assert "'6' stands twice" in error
    assert "a.jsonl row 2" in error
    assert "b.jsonl row 1" in error


@pytest.mark.parametrize("content", [b"PAR1\x15\x04\x15\x90", b"\x1f\x8b\x08\x00", b"\x89PNG\r\n", b"\xff\xfe{\x00"])
def test_a_binary_file_called_jsonl(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    error = error_of(path)
    assert "a.jsonl row 1" in error
    assert "UTF-8" in error or "JSON" in error


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"problem": "p", "resp', "is not JSON"),
        ("[1, 2]", "holds a list"),
        ("[" * 100_000, "is not JSON"),
        ('{"problem": "p", "response": "cut \\ud83d"}', "column 'response' holds the lone surrogate \\ud83d"),
        ('{"problem": "p", "tags": [{"\\udE00": 1}]}', "column 'tags' holds the lone surrogate \\ude00"),
    ],
)
def test_a_damaged_jsonl_row_is_named(tmp_path, line, says):
    path = tmp_path / "a.jsonl"
    path.write_text('{"problem": "\\ud83d\\ude00"}\n' + line)
    error = error_of(path)
    assert "a.jsonl row 2" in error
    assert says in error


def test_a_jsonl_cut_inside_a_character(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"problem": "é'.encode()[:-1])
    assert "a.jsonl row 1 is not UTF-8 text (byte 0xc3 at 13)" in error_of(path)


def test_the_real_traces():
    path = SHARED / "traces_r1_qwen7b_amc23.jsonl"
    if not path.is_file():
        pytest.skip("the 40 recorded traces are not here")
    traces = load_traces(path, require_response=True)
    assert len(traces) == 40
    assert sum(trace.meta["correct"] for trace in traces) == 38
    assert all(trace.answer for trace in traces)
