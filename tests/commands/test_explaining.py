"""`segrl explain` on the bundled model: what carried a right answer, what misled to a wrong one, what is refused."""

import io
import re
from dataclasses import replace

import pytest
from testkit.pages import read

from segrl import toy
from segrl.commands.cli import main
from segrl.commands.config import compose
from segrl.data import save_traces


@pytest.fixture
def explained(capsys, monkeypatch):
    """What the command prints, in one line a thought."""
    monkeypatch.setenv("COLUMNS", "400")

    def explain(*arguments):
        assert main(["explain", *arguments]) == 0
        return capsys.readouterr().out

    return explain


def line_of(text, number):
    """The line of a thought in the panel."""
    [line] = re.findall(rf"^│ +{number} .*$", text, re.MULTILINE)
    return line


def suspects(file):
    """What the page holds of the test of each trace, None without one."""
    data = read(file.read_text())[1]
    return [data[f"trace-{i}"].get("suspect") for i in range(len(data["index"]["traces"]))]


def test_of_a_right_response_what_carried_its_answer(explained, tmp_path):
    """The second of three traces, with its page; the thoughts that the sentence names are those kept for strength."""
    traces = toy.sample_traces(3, seed=3)
    save_traces(traces, tmp_path / "t.jsonl")
    page = tmp_path / "page.html"
    text = explained(f"traces={tmp_path / 't.jsonl'}", f"id={traces[1].id}", f"page={page}")
    [named] = re.findall(r"^Thoughts? ([\d, and]+) of \d+ carried the answer (\d+):", text, re.MULTILINE)
    kept = [number for number in range(1, len(traces[1].kinds)) if " strength " in line_of(text, number)]
    assert list(map(int, re.findall(r"\d+", named[0]))) == kept
    assert named[1] == traces[1].answer
    assert "misled" not in text
    assert traces[1].id in page.read_text()


def test_of_a_wrong_response_the_first_wrong_step(explained, tmp_path):
    """Typed and piped from a file, with the problem's semicolons and equals signs as they are."""
    wrong = toy.sample_mistakes(2, seed=0, ask="all")[1]
    (tmp_path / "response.txt").write_text(wrong.response)
    given = [f"problem={wrong.problem}", f"answer={wrong.answer}"]
    text = explained(*given, f"response={tmp_path / 'response.txt'}", f"page={tmp_path / 'out.svg'}")
    first = wrong.kinds.index("wrong") + 1
    picture = (tmp_path / "out.svg").read_text()
    assert f"Thought&#160;{first}&#160;misled" in picture
    assert not re.search(r"(?:href|src)=|url\(\W?http", picture)  # nothing from the network
    assert f"Thought {first} misled" in text
    assert [number for number in range(1, len(wrong.kinds)) if " misled " in line_of(text, number)] == [first]


def test_a_thought_that_comes_to_the_answer_is_named_and_not_marked(explained, monkeypatch, tmp_path):
    """In the terminal as in the data of the page."""
    wrong = toy.sample_mistakes(1, seed=0, ask="last")[0]
    monkeypatch.setattr("sys.stdin", io.StringIO(wrong.response))
    text = explained(f"problem={wrong.problem}", f"answer={wrong.answer}", "response=-", f"page={tmp_path / 'o.html'}")
    last = max(s for s, kind in enumerate(wrong.kinds) if kind == "carried") + 1
    assert "No thought is marked." in text
    assert f"lies on thought {last} " in text
    assert not re.search(r" misled\b", text)
    suspect = suspects(tmp_path / "o.html")[0]
    assert (suspect["thought"], suspect["concludes"], suspect["marked"]) == (last - 1, True, False)


def test_a_thinking_without_paragraphs_is_told_how_to_be_cut(explained, tmp_path):
    """The keys that the sentence names cut the response at its sentences."""
    wrong = toy.sample_mistakes(2, seed=0, ask="all")[1]
    (tmp_path / "response.txt").write_text(wrong.response.replace("\n\n", " "))
    given = [f"problem={wrong.problem}", f"answer={wrong.answer}", f"response={tmp_path / 'response.txt'}"]
    text = explained(*given)
    assert "No thought is marked: the thinking was cut into a single one." in text
    segmenter, pattern = re.search(r"(segmenter=regex) '(segmentation\S+ \S+)'", text).groups()
    assert line_of(explained(*given, segmenter, pattern), 2)


def test_a_report_of_the_three_readings_has_the_verdicts_of_explain(explained, tmp_path):
    """Of wrong responses alone, and not by fewer readings."""
    wrong = [toy.sample_mistakes(2, seed=0, ask="all")[1], toy.sample_mistakes(1, seed=0, ask="last")[0]]
    traces = [replace(trace, id=str(i)) for i, trace in enumerate([*wrong, *toy.sample_traces(1, seed=3)])]
    save_traces(traces, tmp_path / "t.jsonl")
    given, files = f"traces={tmp_path / 't.jsonl'}", []
    for measure in ("mistake", "pmi", "alone"):
        files.append(str(tmp_path / f"{measure}.parquet"))
        contrast = [f"measure={measure}", "attribution.target=contrast", f"out={files[-1]}"]
        assert main(["select", given, *contrast]) == 0
    for i in (0, 1):
        explained(given, f"id={i}", f"page={tmp_path / f'{i}.html'}")
    out = tmp_path / "report.html"
    assert main(["report", given, f"selections=[{','.join(files)}]", f"out={out}"]) == 0
    assert suspects(out) == [*suspects(tmp_path / "0.html"), *suspects(tmp_path / "1.html"), None]
    assert [suspect["marked"] for suspect in suspects(out)[:2]] == [True, False]
    assert main(["report", given, f"selections=[{','.join(files[:2])}]", f"out={out}"]) == 0
    assert suspects(out) == [None] * 3


def test_without_keys_the_model_answers_a_toy_problem_wrongly_and_a_thought_misled(explained):
    """As docs/explain.md has it: 3 * 7 is 21, so that the sixth step is wrong modulo ten."""
    text = explained()
    assert "verdict   wrong (numeric), answered 5628912" in text
    assert "e = 3*7 = 9" in line_of(text, 6)
    assert "Thought 6 misled" in text


def test_a_typed_problem_is_answered_by_the_model_at_model_path(explained):
    """Greedily: 8 * 7 is 56, of which the model keeps a 4."""
    problem = "Modulo ten: b = a+6; a = 8*7; c = 5-5; z = a-4; d = 9+6. Write the values of a b c d as one number."
    text = explained(f"problem={problem}", "answer=6205", f"model_path={toy.MODEL_PATH}", "temperature=0")
    assert "verdict   wrong (numeric), answered 4005" in text
    assert "a = 8*7 = 4" in line_of(text, 1)
    assert "Thought 1 misled" in text


@pytest.mark.parametrize(
    ("response", "sentence"),
    [
        (None, "there is no such file"),
        (b"\xff\xfe", "is not UTF-8 text"),
        ("a = 2, so \\boxed{2}", "the response has no </think>"),
        ("<think>\n</think> \\boxed{2}", "the response has nothing before </think>"),
        ("a = 2</think> It is 2.", "the response boxes no answer behind </think>"),
    ],
)
def test_a_response_without_its_parts_is_refused(tmp_path, capsys, response, sentence):
    file = tmp_path / "r.txt"
    if response is not None:
        file.write_bytes(response if isinstance(response, bytes) else response.encode())
    assert main(["explain", "problem=What is a?", f"response={file}"]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["max_tokens=3"], "it was cut off"),
        (["response=r.txt"], "problem must be given"),
        (["model_path=elsewhere"], "problem must be given"),
        (["traces=t.jsonl", "answer=2"], "leave out answer"),
        (["id=a"], "give traces=..."),
        (["selection.tau=7"], "selection.tau=7.0, expected a number from 0 to 1"),
        (["page=out.txt"], "ends in .html or .svg"),
        (["measure=ig_tokens"], "measure=ig_tokens scores tokens"),
        (["measure=strength", "measure_options.aggregate=1"], "measure='strength': aggregate=1, expected one of sqrt"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(capsys, arguments, sentence):
    assert main(["explain", *arguments]) == 2
    assert sentence in capsys.readouterr().err


TYPED = ["b = a-4; {c}, (d): e", "it's $\\frac{1}{2}$ of ${n}", "\\${n} \\", "012", "'x'", "two\nlines\\\n", "#1 @2"]


@pytest.mark.parametrize("text", TYPED)
def test_a_text_is_taken_as_it_is_typed(text):
    assert compose("explain", [f"problem={text}"]).problem == text
    assert compose("show", [f"id={text}"]).id == text
