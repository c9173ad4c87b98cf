"""The paper's tables as cells: each command composes and reads what an earlier one wrote, and shared ones run once."""

import json
from pathlib import Path

import pytest
from testkit.composed import needs_verl
from testkit.script_files import loaded

from segrl.commands.config import compose

tables = loaded("paper_tables")
ALL = list(tables.TABLES)


@needs_verl
@pytest.mark.parametrize("toy", [False, True], ids=["gpus", "toy"])
def test_every_command_composes_and_reads_what_was_written_before(tmp_path, toy):
    written = {"GAIR/LIMO"}
    for step in tables.steps_of(ALL, tmp_path, "GAIR/LIMO", toy):
        command, *overrides = step.arguments
        config = compose(command, overrides)
        for key in ("traces", "selections", "attributions", "data_path"):
            source = config.get(key)
            assert source is None or source in written, f"{command} reads {source}"
        written |= {config.out, str(step.done), str(Path(config.out) / "candidates")}


def test_a_cell_that_tables_share_runs_once(tmp_path):
    steps = tables.steps_of(["table2", "table3"], tmp_path, "GAIR/LIMO")
    trained = [step.done for step in steps if step.arguments[0] == "sft"]
    assert len(trained) == len(set(trained)) == 7 + 6 - 2  # full and ours stand in both
    assert sum(step.arguments[0] == "attribute" for step in steps) == 1


def test_cells_and_cost_come_before_anything_runs(tmp_path):
    """Table 8: the model, full and selective: two trainings of 8 * 8 / 7 hours and one attribution of 7; 13,825
    responses to score each of three models."""
    said = tables.plan(["table8"], tables.steps_of(["table8"], tmp_path, "GAIR/LIMO"))
    assert said.splitlines() == [
        "table8: llama3.1 base, llama3.1 full, llama3.1 selective ours",
        "7 of 7 commands are ahead: 2 trainings, 3 evaluations",
        "about 25 GPU hours of training and attribution, as the paper's took; 41,475 responses, 0.4 billion tokens",
    ]


def test_a_table_has_the_papers_columns(tmp_path):
    scores = tables.place_of(tables.FULL, tmp_path) / "scores"
    scores.mkdir(parents=True)
    for suffix, accuracy, tokens in (("-greedy", 0.448, 16520.4), ("", 0.509, 10043.0)):
        result = {"pass@1": {"mean": accuracy}, "tokens": {"all": tokens}}
        (scores / f"results_average{suffix}.json").write_text(json.dumps(result))
    rows = tables.table("table3", tmp_path).splitlines()
    assert "| 1.5b full | 44.8 | 16520 | 50.9 | 10043 |" in rows
    assert "| 1.5b selective ours |  |  |  |  |" in rows
