"""GRPO's rollout dump, written by the trainer's own function, read for the page."""

import json

import pytest
from testkit.pages import dumped, read, rollout_of

from segrl.commands.cli import main
from segrl.report import curves_of, keep_metrics, load_metrics, load_rollouts, page


def test_a_dump_comes_back_with_its_weights_and_advantages(tmp_path):
    entries = load_rollouts(dumped(tmp_path / "dump"))
    assert [entry.trace.id for entry in entries] == [
        "step 1, 0_0 of a",
        "step 1, 1_0 of a",
        "step 1, 0_0 of b",
        "step 2, 0_0 of a",
    ]
    first, second = entries[0], entries[1]
    # Strengths 2 / sqrt 2, 6 / sqrt 2 and 1 / sqrt 2; ranks give 1, 1.2 and 0.8, the answer weighs one.
    assert first.credit.weights_T.tolist() == pytest.approx([1, 1, 1.2, 1.2, 0.8, 0.8, 1, 1])
    assert first.credit.advantages_T.tolist() == pytest.approx([0.5, 0.5, 0.6, 0.6, 0.4, 0.4, 0.5, 0.5])
    assert first.views["grpo"].scores.share_S.tolist() == pytest.approx([2 / 9, 6 / 9, 1 / 9, 0])
    assert first.views["grpo"].selection.reason_S == ("strength", "strength", "forced", "forced")
    assert (second.credit.uniform, second.views, second.credit.reward) == ("other_sign", {}, 0.0)
    assert second.credit.advantages_T.tolist() == [-0.5] * second.segments.tokens


def test_steps_are_read_in_their_order_and_as_many_as_asked(tmp_path):
    folder = dumped(tmp_path / "dump")
    (folder / "10.jsonl").write_text((folder / "2.jsonl").read_text())
    assert [entry.credit.step for entry in load_rollouts(folder)] == [1, 1, 1, 2, 10]
    assert [entry.credit.step for entry in load_rollouts(folder, limit=2)] == [1, 1]
    assert [entry.credit.step for entry in load_rollouts(folder / "10.jsonl")] == [10]


def test_a_prompt_that_the_dump_does_not_name_is_its_group(tmp_path):
    line = rollout_of("a_0_0", ["a", "b"], 0.5, 1.0)
    del line["prompt"]
    (tmp_path / "3.jsonl").write_text(json.dumps(line) + "\n")
    [entry] = load_rollouts(tmp_path)
    assert (entry.credit.prompt, entry.trace.problem) == ("a", "")


def test_the_pages_numbers_are_the_dumps(tmp_path):
    _, data = read(page(load_rollouts(dumped(tmp_path / "dump"))))
    assert data["index"]["tints"] == ["weight", "advantage"]
    assert data["index"]["problems"] == ["What is 5 + 7?", "What is 2 + 2?"]
    assert [head["problem"] for head in data["index"]["traces"]] == [0, 0, 1, 0]
    assert data["trace-0"]["tints"]["weight"] == {"centre": 1, "runs": [[1.0, 2], [1.2, 2], [0.8, 2], [1.0, 2]]}
    assert data["trace-2"]["tints"]["advantage"]["runs"] == [[-1.0, len(data["trace-2"]["lengths"])]]


def test_the_curves_of_a_run(tmp_path):
    """Contrast scores 2, -6 and 1 rank as weights 1.2, 0.8 and 1: of two tokens each, 2.2 of 3 lie above zero."""
    both = {"negative_measure": "mistake", "sign": "both"}
    lines = [
        rollout_of(
            "a_0_0", ["a b", "c d", "e f", "</think> \\boxed{13}"], -0.5, 0.0, [1, 1, -3, -3, 0.5, 0.5, 0, 0.0], **both
        ),
        rollout_of(
            "a_1_0", ["a b", "c d", "e f", "</think> \\boxed{12}"], 0.5, 1.0, [1, 1, 3, 3, 0.5, 0.5, 0, 0.0], **both
        ),
    ]
    (tmp_path / "3.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rollouts = load_rollouts(tmp_path)
    [reward, for_wrong] = curves_of(rollouts)
    assert reward.lines == {"reward": {3: 0.5}}
    assert for_wrong.lines["of the weight"] == pytest.approx({3: 2.2 / 3})
    assert for_wrong.lines["of the tokens"] == pytest.approx({3: 2 / 3})
    logged = [
        (1, {"critic/score/mean": 0.25}),
        (1, {"val": 1.0}),
        (2, {"critic/score/mean": 0.75, "actor/entropy": 0.5}),
    ]
    (tmp_path / "m.txt").write_text("".join(json.dumps({"step": step, "data": data}) + "\n" for step, data in logged))
    reward, entropy, _ = curves_of(rollouts, load_metrics(tmp_path / "m.txt"))
    assert (reward.lines, entropy.lines) == ({"reward": {1: 0.25, 2: 0.75}}, {"entropy": {2: 0.5}})
    with pytest.raises(ValueError, match="line 1, is no line of verl's file logger"):
        load_metrics(tmp_path / "3.jsonl")


def test_metrics_of_a_run_that_goes_on(tmp_path):
    """verl begins its file anew where a run goes on: what was kept before counts, but for the steps that ran again."""
    file = tmp_path / "grpo.jsonl"

    def verl_writes(*steps):
        file.write_text("".join(json.dumps({"step": step, "data": {"x": value}}) + "\n" for step, value in steps))

    for goes_on, steps in ((False, [(1, 0.1), (2, 0.2)]), (True, [(2, 0.3)]), (True, [(3, 0.4)])):
        keep_metrics(file, goes_on)
        verl_writes(*steps)
    assert load_metrics(file) == {1: {"x": 0.1}, 2: {"x": 0.3}, 3: {"x": 0.4}}
    keep_metrics(file, goes_on=False)
    verl_writes((1, 0.5))
    assert load_metrics(file) == {1: {"x": 0.5}}


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.jsonl", "{}", "is no rollout dump; expected <step>.jsonl"),
        (
            "1.jsonl",
            '{"input": 1, "output": 2}',
            "has no 'key': no dump of segrl.dump_dir, it holds input, output",
        ),
        ("1.jsonl", '{"key"', "line 1 is no JSON"),
    ],
)
def test_another_file_is_a_sentence(tmp_path, capsys, name, text, sentence):
    (tmp_path / name).write_text(text)
    assert main(["report", f"rollouts={tmp_path / name}", f"out={tmp_path / 'r.html'}"]) == 2
    assert sentence in capsys.readouterr().err


def test_the_command_writes_rollouts_alone_or_beside_traces(tmp_path, capsys):
    from segrl import toy
    from segrl.data import save_traces

    save_traces(toy.sample_traces(1, seed=1), tmp_path / "t.jsonl")
    given = [f"rollouts={dumped(tmp_path / 'dump')}", f"out={tmp_path / 'r.html'}"]
    (tmp_path / "log").write_text('{"step": 2, "data": {"actor/entropy": 0.5}}\n')
    assert main(["report", *given, f"metrics={tmp_path / 'log'}"]) == 0
    curves = read((tmp_path / "r.html").read_text(encoding="utf-8"))[1]["index"]["curves"]
    assert [curve["lines"] for curve in curves] == [{"reward": [[1, 1 / 3], [2, 1.0]]}, {"entropy": [[2, 0.5]]}]
    assert main(["report", *given, f"traces={tmp_path / 't.jsonl'}"]) == 0
    alone, both = capsys.readouterr().out.splitlines()
    assert alone.startswith("0 traces, 0 right, 4 rollouts, measures: grpo")
    assert both.startswith("1 traces, 1 right, 4 rollouts, measures: grpo")
    assert main(["report", f"out={tmp_path / 'r.html'}"]) == 2
    assert "traces or rollouts must be given" in capsys.readouterr().err
