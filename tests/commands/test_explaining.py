"""`segrl explain` on the bundled model: what carried a right answer, what misled to a wrong one, what is refused."""

import io
import re

import pytest

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


def test_a_thought_that_comes_to_the_answer_is_named_and_not_marked(explained, monkeypatch):
    wrong = toy.sample_mistakes(1, seed=0, ask="last")[0]
    monkeypatch.setattr("sys.stdin", io.StringIO(wrong.response))
    text = explained(f"problem={wrong.problem}", f"answer={wrong.answer}", "response=-")
    last = max(s for s, kind in enumerate(wrong.kinds) if kind == "carried") + 1
    assert "No thought is marked." in text
    assert f"lies on thought {last} " in text
    assert not re.search(r" misled\b", text)


def test_without_keys_a_toy_problem_is_answered_and_explained(explained):
    text = explained()
    assert "verdict" in text
    assert re.search("carried the answer|misled|No thought is marked", text)


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
