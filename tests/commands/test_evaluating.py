"""segrl evaluate, grade and compare: files in, files and sentences out."""

import json
import signal
import subprocess
import sys
import time
from xml.etree import ElementTree

import pytest
from testkit.real import real_file

from segrl import Trace, toy
from segrl.commands.cli import main
from segrl.commands.config import compose
from segrl.data import read_rows, save_traces, write_rows
from segrl.data.outputs import load_outputs

pytestmark = pytest.mark.filterwarnings("ignore:.*max_new_tokens.*")

# --- what other tools save -------------------------------------------------------------------------------------------

# Each as its tool writes it: two problems, two samples of the first (right, wrong), one of the second (right).
QWEN = [
    {
        "idx": 7,
        "question": "What is $3+4$?",
        "gt_cot": "Add them.",
        "gt": "7",
        "level": 2,
        "type": "Algebra",
        "answer": "7",
        "code": ["So $\\boxed{7}$.", "So $\\boxed{8}$."],
        "pred": ["7", "8"],
        "report": [None, None],
        "score": [True, False],
    },
    {"idx": 8, "question": "Half?", "gt": "\\frac{1}{2}", "level": 5, "code": ["$\\boxed{\\frac12}$"], "pred": ["0.5"]},
]
LIGHTEVAL = [
    {
        "doc": {"query": "What is $3+4$?", "choices": ["Adding: $\\boxed{7}$."], "gold_index": [0], "id": "0"},
        "metric": {"pass@k:k=1&n=2": 0.5},
        "model_response": {
            "input": "<user>What is $3+4$?<assistant>",
            "text": ["So $\\boxed{7}$.", "So $\\boxed{8}$."],
            "input_tokens": [1, 2, 3],
            "output_tokens": [[5, 6, 7, 8], [5, 6]],
        },
    },
    {
        "doc": {"query": "Which?", "choices": ["A", "B", "C", "D"], "gold_index": [2], "id": "1"},
        "metric": {"pass@k:k=1&n=2": 1.0},
        "model_response": {
            "input": "<user>Which?<assistant>",
            "text": ["$\\boxed{C}$"],
            "input_tokens": [1, 2],
            "output_tokens": [[9, 9, 9]],
        },
    },
]
LIGHTEVAL_OLD = [
    {
        "example": "What is $3+4$?",
        "full_prompt": "<user>What is $3+4$?<assistant>",
        "predictions": ["So $\\boxed{7}$.", "So $\\boxed{8}$."],
        "gold": ["$7$"],
        "cont_tokens": [[[5, 6, 7, 8], [5, 6]]],
        "metrics": {"extractive_match": 0.5},
    },
    {
        "example": "Half?",
        "full_prompt": "<user>Half?<assistant>",
        "predictions": "['$\\\\boxed{1/2}$']",  # some versions write lists as text
        "gold": "['$1/2$']",
        "cont_tokens": [[[9, 9, 9]]],
        "metrics": {"extractive_match": 1.0},
    },
]
ASKED = "user\nWhat is 3+4?\nassistant\n"
VERL = [
    {"input": ASKED, "output": "So $\\boxed{7}$.", "gts": "7", "score": 1.0, "step": 5, "acc": True},
    {
        "input": "user\nHalf?\nassistant\n",
        "output": "$\\boxed{1/2}$",
        "gts": "1/2",
        "score": 1.0,
        "step": 5,
        "acc": True,
    },
    {"input": ASKED, "output": "So $\\boxed{8}$.", "gts": "7", "score": 0.0, "step": 5, "acc": False},
]
OURS = [
    {"id": f"{id}#{k}", "problem": "?", "answer": gold, "response": text, "meta": {"problem_id": id, "sample": k}}
    for id, k, gold, text in [("a", 0, "7", "\\boxed{7}"), ("a", 1, "7", "\\boxed{8}"), ("b", 0, "1/2", "\\boxed{1/2}")]
]
SAVED = {
    "Qwen2.5-Math outputs": (QWEN, ".jsonl"),
    "lighteval details": (LIGHTEVAL, ".parquet"),
    "lighteval details, old layout": (LIGHTEVAL_OLD, ".jsonl"),
    "a verl rollout dump": (VERL, ".jsonl"),
    "one response a row": (OURS, ".jsonl"),
}


def saved(name, folder):
    rows, ending = SAVED[name]
    path = folder / f"outputs{ending}"
    if ending == ".parquet":
        write_rows(path, rows)
    else:  # as the tools do: whatever columns a row has
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


def refused(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    return shown


@pytest.mark.parametrize("name", SAVED)
def test_what_a_tool_saved_is_told_by_its_columns_and_graded(name, tmp_path, capsys):
    path = saved(name, tmp_path)
    run("grade", f"traces={path}", f"out={tmp_path / 'out'}")
    assert f"{name}: 2 of 3 right (66.7%)" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "results_outputs.json").read_text())
    assert (found["problems"], found["settings"]["format"]) == (2, name)
    assert found["pass@1"]["mean"] == pytest.approx(0.75)  # over problems: a half and one
    samples = read_rows(tmp_path / "out" / "samples_outputs.jsonl")
    assert sorted(row["correct"] for row in samples) == [False, True, True]
    assert sorted(row["sample"] for row in samples) == [0, 0, 1]
    assert len({row["id"] for row in samples}) == 3


def test_lengths_levels_and_steps_come_along(tmp_path):
    _, traces = load_outputs(saved("lighteval details", tmp_path))
    assert [trace.meta["tokens"] for trace in traces] == [4, 2, 3]
    _, traces = load_outputs(saved("lighteval details, old layout", tmp_path))
    assert [trace.meta["tokens"] for trace in traces] == [4, 2, 3]
    _, traces = load_outputs(saved("Qwen2.5-Math outputs", tmp_path), limit=1)
    assert [(trace.id, trace.meta["level"]) for trace in traces] == [("7#0", 2), ("7#1", 2)]
    _, traces = load_outputs(saved("a verl rollout dump", tmp_path))
    assert traces[0].meta["problem_id"] == traces[2].meta["problem_id"] != traces[1].meta["problem_id"]
    assert traces[0].meta["step"] == 5


def test_problems_of_one_id_in_two_files_stay_apart(tmp_path, capsys):
    for name, asked, gold in (("gsm8k", "What is 1+1?", "2"), ("math", "What is 2+3?", "5")):
        rows = [{"idx": i, "question": f"{asked}{' Again.' * i}", "gt": gold, "code": ["\\boxed{2}"]} for i in (0, 1)]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    run("grade", f"traces={tmp_path / '*.jsonl'}", f"out={tmp_path / 'out'}")
    assert "2 of 4 right" in capsys.readouterr().out
    [samples] = [read_rows(file) for file in (tmp_path / "out").glob("samples_*.jsonl")]
    assert [(row["problem_id"], row["correct"]) for row in samples] == [
        ("0", True),
        ("1", True),
        ("0-2", False),
        ("1-2", False),
    ]


def test_traces_of_our_own_are_graded_as_they_were_saved(tmp_path, capsys):
    texts = {"right": "</think> \\boxed{7}", "wrong": "</think> \\boxed{8}", "draft": "<think> \\boxed{7}"}
    texts["said"] = texts["draft"]
    finish = {"right": "stop", "wrong": "stop", "draft": "length", "said": "stop"}
    metas = {name: {"tokens": 4, "finish": finish[name]} for name in texts}
    traces = [Trace(name, "3+4?", text, "7", meta=metas[name]) for name, text in texts.items()]
    save_traces(traces, tmp_path / "t.parquet")
    run("grade", f"traces={tmp_path / 't.parquet'}", f"out={tmp_path / 'v.parquet'}")
    assert "segrl traces: 2 of 4 right (50.0%)" in capsys.readouterr().out
    rows = {row["id"]: row for row in read_rows(tmp_path / "v.parquet")}
    assert [rows[name]["correct"] for name in texts] == [True, False, False, True]
    assert [rows[name]["pred"] for name in texts] == ["7", "8", None, "7"]
    assert rows["draft"]["status"] == "no_answer"
    assert (rows["right"]["tokens"], rows["right"]["finish"]) == (4, "stop")


def test_a_cut_response_to_a_prompt_that_opened_the_thought_has_no_answer(tmp_path):
    rows = [{**VERL[0], "input": f"{ASKED}<think>\n"}, VERL[0]]  # the same output, a draft in the first
    write_rows(tmp_path / "5.jsonl", rows)
    run("grade", f"traces={tmp_path / '5.jsonl'}", f"out={tmp_path / 'v.jsonl'}")
    assert [row["correct"] for row in read_rows(tmp_path / "v.jsonl")] == [False, True]


def test_columns_of_no_known_tool_are_listed_beside_those_that_are(tmp_path, capsys):
    write_rows(tmp_path / "t.jsonl", [{"text": "7", "label": "7"}])
    shown = refused(capsys, "grade", f"traces={tmp_path / 't.jsonl'}")
    assert "has the columns text, label, and no format of saved outputs has these" in shown
    assert "question + code + gt|answer (Qwen2.5-Math outputs)" in shown
    assert "doc + model_response (lighteval details)" in shown
    assert "input + output + gts|gt (a verl rollout dump)" in shown


def test_known_columns_with_other_contents_are_a_sentence(tmp_path, capsys):
    write_rows(tmp_path / "t.jsonl", [{"doc": "What?", "model_response": ["7"]}])
    shown = refused(capsys, "grade", f"traces={tmp_path / 't.jsonl'}")
    assert "t.jsonl row 1 has the columns of lighteval details, but holds something else in them" in shown


def test_the_recorded_traces_are_graded_as_recorded(tmp_path, capsys):
    run("grade", f"traces={real_file('traces_r1_qwen7b_amc23.jsonl')}")
    assert "38 of 40 right (95.0%)" in capsys.readouterr().out


# --- golds -----------------------------------------------------------------------------------------------------------


@pytest.mark.e2e
def test_a_gold_that_fails_against_itself_is_named_and_counted(tmp_path, capsys):
    rows = [{"problem": "p", "answer": gold, "response": "\\boxed{7}", "id": gold} for gold in ("7", "}")]
    write_rows(tmp_path / "t.jsonl", rows)
    run("grade", f"traces={tmp_path / 't.jsonl'}", f"out={tmp_path / 'out'}")
    assert "1 of 2 golds of t fail against themselves, so no answer can be right there: }" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "results_t.json").read_text())["gold_failing"] == ["}"]
    assert "- t: 1, }" in (tmp_path / "out" / "results.md").read_text()


def test_a_problem_without_a_gold_is_a_sentence_before_anything_is_generated(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("segrl.commands.evaluating.generated", lambda *_: pytest.fail("something was generated"))
    write_rows(tmp_path / "p.jsonl", [{"id": "x", "problem": "1+1?"}])
    evaluate = ["evaluate", f"data_path={tmp_path / 'p.jsonl'}", f"out={tmp_path / 'out'}"]
    assert "1 of 1 problems of problems have no gold answer to grade against, the first is 'x'" in refused(
        capsys, *evaluate
    )
    assert not (tmp_path / "out").exists()


# --- evaluate --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory):
    """A folder of benchmark files with toy problems in them, three and two."""
    folder = tmp_path_factory.mktemp("benchmarks")
    problems = toy.sample_problems(5, seed=11)
    for name, own in {"math500": problems[:3], "amc23": problems[3:]}.items():
        rows = [{"id": p.id, "problem": p.problem, "answer": p.answer, "level": i % 2} for i, p in enumerate(own)]
        write_rows(folder / f"{name}.jsonl", rows)
    return folder


def test_several_benchmarks_sampled_and_greedy(benchmarks, tmp_path, capsys):
    asked = ["benchmark=[math500,amc23]", f"data_path={benchmarks}", "greedy=true", "samples.amc23=3", "k=[1,2]"]
    run("evaluate", *asked, "generation.n=2", "generation.max_tokens=8", f"out={tmp_path}")
    names = ["amc23", "amc23-greedy", "average", "average-greedy", "math500", "math500-greedy"]
    assert {path.name for path in tmp_path.glob("results_*.json")} == {f"results_{name}.json" for name in names}
    found = {name: json.loads((tmp_path / f"results_{name}.json").read_text()) for name in names}
    assert [(found[name]["problems"], found[name]["samples"]) for name in names] == [
        (2, 3),
        (2, 1),
        (5, None),
        (5, None),
        (3, 2),
        (3, 1),
    ]
    assert {"pass@1", "pass@2", "maj@2"} <= found["math500"].keys()
    assert "pass@2" not in found["math500-greedy"]
    assert found["amc23-greedy"]["settings"]["temperature"] == 0
    assert found["math500"]["truncated"]["all"] == 1  # eight tokens end no thought
    assert found["math500"]["accuracy_finished"] is None
    assert found["math500"]["levels"].keys() == {"0", "1"}
    assert found["average"]["tokens"]["all"] == 8
    samples = read_rows(tmp_path / "samples_amc23.jsonl")
    assert len(samples) == 6
    assert {"id", "problem_id", "sample", "correct", "status", "pred", "gold", "tokens", "finish", "level"} == {
        *samples[0]
    }
    assert "| average | 5 | – | 0.0% [0.0, 0.0] |" in capsys.readouterr().out
    assert "| amc23 | 2 | 3 |" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")
    drawn = ElementTree.parse(tmp_path / "results.svg").getroot()
    assert drawn.tag.endswith("svg")
    assert len(drawn.findall(".//{*}g[@id='axes_1']//{*}path")) > 10


def test_the_papers_protocol():
    config = compose("evaluate", ["preset=paper"])
    assert list(config.benchmark) == ["math500", "amc23", "aime24", "gpqa", "minerva", "olympiadbench"]
    assert (config.generation.temperature, config.generation.top_p, config.generation.max_tokens) == (0.6, 1.0, 32768)
    assert config.generation.n == 6
    assert {name: n for name, n in config.samples.items() if n} == {"aime24": 32, "amc23": 32}
    assert config.greedy
    assert list(config.k) == [1, 6]
    assert compose("evaluate", ["preset=paper", "generation.max_tokens=64"]).generation.max_tokens == 64


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["k=[1,8]", "generation.n=4"], "k=[1, 8] asks for more than the 4 samples a problem of problems; raise n"),
        (["benchmark=aime"], "there is no benchmark 'aime'"),
        (["benchmark=[math500,gpqa]", "data_path={folder}"], "has no file for gpqa"),
    ],
)
def test_what_cannot_be_evaluated_is_said_before_a_model_is_loaded(
    arguments, sentence, benchmarks, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("segrl.loading.load_model", lambda *_: pytest.fail("a model was loaded"))
    given = [argument.format(folder=benchmarks) for argument in arguments]
    assert sentence in refused(capsys, "evaluate", *given, f"out={tmp_path / 'out'}")


def test_without_matplotlib_all_but_the_figure_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run("grade", f"traces={saved('a verl rollout dump', tmp_path)}", f"out={tmp_path / 'out'}")
    assert "no figure: " in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "results.md",
        "results_outputs.json",
        "samples_outputs.jsonl",
    }


def test_a_model_that_emits_nothing_is_a_sentence(tmp_path, capsys):
    model, tokenizer = toy.load_model()
    model.model.norm.weight.data.zero_()  # all tokens are alike; the first of them, padding, stands for no text
    model.save_pretrained(tmp_path / "silent")
    tokenizer.save_pretrained(tmp_path / "silent")
    asked = ["generation.temperature=0", "generation.max_tokens=4", "limit=3", f"model_path={tmp_path / 'silent'}"]
    shown = refused(capsys, "evaluate", *asked, f"out={tmp_path / 'out'}")
    assert "the model emitted nothing: all 3 responses are empty" in shown


def test_empty_responses_are_graded_as_wrong_and_counted(tmp_path, capsys):
    rows = [{"id": str(i), "problem": "3+4?", "answer": "7", "response": text} for i, text in enumerate(["", "", "7"])]
    write_rows(tmp_path / "t.jsonl", rows)
    run("grade", f"traces={tmp_path / 't.jsonl'}")
    shown = capsys.readouterr()
    assert "2 of 3 responses on t are empty, and count as wrong" in shown.err
    assert "0 of 3 right (0.0%), by verdict 3 no_answer" in shown.out


@pytest.mark.e2e
def test_an_evaluation_killed_in_the_middle_goes_on_without_a_lost_or_doubled_sample(tmp_path):
    asked = ["evaluate", "limit=4", "generation.n=4", "generation.batch=2", "generation.max_tokens=64"]
    shards = tmp_path / "torn" / "responses" / "problems"
    command = [sys.executable, "-m", "segrl", *asked, f"out={tmp_path / 'torn'}"]
    begun = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(shards.glob("part-*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.02)
    begun.send_signal(signal.SIGKILL)
    assert begun.wait(60) == -signal.SIGKILL
    assert 0 < len(list(shards.glob("part-*.parquet"))) < 8
    assert not (tmp_path / "torn" / "results_problems.json").exists()

    for folder in ("torn", "whole"):
        run(*asked, f"out={tmp_path / folder}")
    torn, whole = ((tmp_path / folder / "samples_problems.jsonl").read_text() for folder in ("torn", "whole"))
    assert torn == whole
    ids = [json.loads(line)["id"] for line in torn.splitlines()]
    assert len(ids) == len({*ids}) == 16


# --- compare ---------------------------------------------------------------------------------------------------------


def graded(folder, benchmarks):
    for name, problems in benchmarks.items():
        rows = [
            {"problem_id": id, "sample": k, "correct": right, "gold": gold}
            for id, (gold, verdicts) in problems.items()
            for k, right in enumerate(verdicts)
        ]
        write_rows(folder / f"samples_{name}.jsonl", rows)
    return folder


YES, NO = True, False


def test_two_evaluations_are_compared_problem_by_problem(tmp_path, capsys):
    a = graded(tmp_path / "a", {"x": {"1": ("7", [YES, YES]), "2": ("8", [YES, NO]), "3": ("9", [YES])}})
    b = graded(tmp_path / "b", {"x": {"3": ("9", [NO]), "1": ("7", [NO, NO]), "2": ("8", [NO, NO])}})
    run("compare", f"a={a}", f"b={b}", f"out={tmp_path / 'c.json'}")
    found = json.loads((tmp_path / "c.json").read_text())["x"]
    assert found["estimate"]["mean"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert found["p"] == pytest.approx(2 / 8)  # all three signs alike, of eight ways
    assert "a - b = +83.3 points" in capsys.readouterr().out


def test_on_different_problems_only_shared_ones_are_compared_and_counted(tmp_path, capsys):
    a = graded(tmp_path / "a", {"x": {"1": ("7", [YES]), "2": ("8", [YES])}, "only-a": {"1": ("7", [YES])}})
    b = graded(tmp_path / "b", {"x": {"2": ("8", [NO]), "3": ("9", [YES]), "4": ("9", [YES])}})
    run("compare", f"a={a}", f"b={b}")
    shown = capsys.readouterr().out
    assert "x: a has 2 problems, b has 3; compared on the 1 in both" in shown
    assert "a - b = +100.0 points [+100.0, +100.0], p = 1 on 1 problems" in shown


def test_the_average_weighs_benchmarks_alike_and_greedy_apart(tmp_path, capsys):
    two = {"1": ("7", [YES]), "2": ("8", [YES])}
    a = graded(tmp_path / "a", {"x": two, "y": {"1": ("7", [NO])}, "x-greedy": two})
    b = graded(tmp_path / "b", {"x": {**two, "1": ("7", [NO])}, "y": {"1": ("7", [YES])}, "x-greedy": two})
    run("compare", f"a={a}", f"b={b}", f"out={tmp_path / 'c.json'}")
    found = json.loads((tmp_path / "c.json").read_text())
    assert list(found) == ["x", "x-greedy", "y", "average"]
    assert found["average"]["estimate"]["mean"] == pytest.approx((0.5 - 1) / 2)


@pytest.mark.parametrize(
    ("b", "sentence"),
    [
        ({"x": {"5": ("7", [YES])}}, "x: no problem is in both; a has '1', b has '5'"),
        ({"x": {"1": ("70", [YES])}}, "'1' has the gold '7' in a and '70' in b"),
        ({"y": {"1": ("7", [YES])}, "z": {"1": ("7", [YES])}}, "no benchmark is in both"),
    ],
)
def test_what_cannot_be_compared_is_a_sentence(b, sentence, tmp_path, capsys):
    a = graded(tmp_path / "a", {"x": {"1": ("7", [YES])}})
    assert sentence in refused(capsys, "compare", f"a={a}", f"b={graded(tmp_path / 'b', b)}")
    (tmp_path / "empty").mkdir()
    assert "holds no samples_*.jsonl" in refused(capsys, "compare", f"a={a}", f"b={tmp_path / 'empty'}")
    assert "b must be given" in refused(capsys, "compare", f"a={a}")
