"""The commands on the bundled model, files in and files out."""

import subprocess
import sys

import pytest

import segrl
from segrl import Trace, toy
from segrl.cli import main
from segrl.data import load_traces, read_rows, save_traces
from segrl.shards import read_shards

pytestmark = pytest.mark.filterwarnings("ignore:.*max_new_tokens.*")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Six traces of the toy world."""
    path = tmp_path_factory.mktemp("planted") / "traces.parquet"
    save_traces(toy.sample_traces(6, seed=3), path)
    return path


def run(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


def test_segments_lie_as_the_segmenter_cut_them(planted, tmp_path):
    run("segment", f"traces={planted}", f"out={tmp_path / 'segments.parquet'}")
    _, tokenizer = toy.load_model()
    for row, trace in zip(read_rows(tmp_path / "segments.parquet"), load_traces(planted), strict=True):
        segments = segrl.segment(segrl.tokenize(trace, tokenizer))
        assert (row["id"], tuple(row["boundaries"]), tuple(row["kinds"])) == (
            trace.id,
            segments.boundaries,
            segments.kinds_S,
        )
        assert len(row["kinds"]) == len(trace.meta["kinds"])


@pytest.mark.e2e
def test_attributions_and_selections_are_those_of_the_library(planted, tmp_path):
    few = ["attribution.nodes=2", "attribution.tolerance=null"]
    run("attribute", f"traces={planted}", f"out={tmp_path / 'ig'}", "shard=4", *few)
    saved = ["select", f"traces={planted}", f"attributions={tmp_path / 'ig'}", f"out={tmp_path / 'saved.parquet'}"]
    run(*saved, "selection.tau=0.6")
    run("select", f"traces={planted}", f"out={tmp_path / 'computed.parquet'}", "selection.tau=0.6", *few)
    saved, computed = (read_rows(tmp_path / f"{name}.parquet") for name in ("saved", "computed"))
    model, tokenizer = toy.load_model()
    for one, other, trace in zip(saved, computed, load_traces(planted), strict=True):
        trace = segrl.tokenize(trace, tokenizer)
        segments = segrl.segment(trace)
        [evidence] = segrl.gather(model, [trace], tokenizer, nodes=2, tolerance=None)
        scores = segrl.score(evidence, segments)
        assert one["share"] == pytest.approx(scores.share_S.tolist(), abs=1e-4)
        assert other["share"] == pytest.approx(scores.share_S.tolist(), abs=1e-4)
        assert tuple(other["reason"]) == segrl.select(scores, tau=0.6).reason_S


def test_a_measure_that_reads_nothing_needs_no_model(planted, tmp_path, monkeypatch):
    monkeypatch.setattr("segrl.loading.load_model", lambda *_: pytest.fail("a model was loaded"))
    run("select", f"traces={planted}", f"out={tmp_path / 'out.parquet'}", "measure=length")
    assert len(read_rows(tmp_path / "out.parquet")) == 6


def test_an_attribution_of_another_response_is_refused(planted, tmp_path, capsys):
    few = ["attribution.nodes=1", "attribution.tolerance=null"]
    run("attribute", f"traces={planted}", f"out={tmp_path / 'ig'}", *few)
    changed = [Trace(t.id, t.problem, t.response + " So.", t.answer) for t in load_traces(planted)]
    save_traces(changed, tmp_path / "changed.parquet")
    select = ["select", f"traces={tmp_path / 'changed.parquet'}", f"attributions={tmp_path / 'ig'}"]
    assert main([*select, f"out={tmp_path / 'out.parquet'}"]) == 2
    assert "was made for another response" in capsys.readouterr().err
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.e2e
def test_generated_samples_are_those_of_an_uninterrupted_run(tmp_path):
    asked = ["generate", "limit=3", "generation.n=2", "generation.batch=2", "generation.max_tokens=24"]
    run(*asked, f"out={tmp_path / 'whole'}")
    run(*asked, f"out={tmp_path / 'torn'}")
    (tmp_path / "torn" / "part-00001.parquet").unlink()  # what a kill between two shards leaves
    run(*asked, f"out={tmp_path / 'torn'}")
    whole, torn = (load_traces(str(tmp_path / name)) for name in ("whole", "torn"))
    assert [(t.id, t.response) for t in whole] == [(t.id, t.response) for t in torn]
    assert [t.id.rpartition("#")[2] for t in whole] == ["0", "1"] * 3
    assert len({t.response for t in whole}) > 1


@pytest.mark.e2e
def test_a_calibration_is_used_by_its_path(planted, tmp_path):
    run("attribute", "calibrate", f"traces={planted}", f"out={tmp_path / 'c.json'}", "grid=8", "limit=2")
    rule = [f"attribution.rule={tmp_path / 'c.json'}", "attribution.nodes=3", "attribution.tolerance=null"]
    run("attribute", f"traces={planted}", f"out={tmp_path / 'ig'}", "limit=2", *rule)
    assert [row["evaluations"] for row in read_shards(tmp_path / "ig")] == [5, 5]


@pytest.mark.e2e
def test_a_shown_trace_holds_every_segment_and_no_colour_when_piped(planted):
    command = [sys.executable, "-m", "segrl", "show", f"traces={planted}"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    trace = load_traces(planted)[0]
    assert "\x1b[" not in shown
    assert trace.answer in shown
    assert shown.count("thought") == len(trace.meta["kinds"]) - 1


def test_a_trace_that_is_markup_is_shown_as_text(capsys, tmp_path):
    save_traces([Trace("t", "p", "[bold]x[/bold] [red]", "1")], tmp_path / "t.jsonl")
    run("show", f"traces={tmp_path / 't.jsonl'}")
    assert "[bold]x[/bold] [red]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["attributor_path=./nowhere"], "there is no model folder './nowhere'"),
        (["dtype=float33"], "dtype='float33', expected one of ('float32'"),
        (["id=none"], "no trace is called 'none'; the first of 6 is"),
    ],
)
def test_bad_input_is_a_sentence(planted, tmp_path, capsys, arguments, sentence):
    command = ["show"] if arguments[0].startswith("id") else ["attribute", f"out={tmp_path / 'out'}"]
    assert main([*command, f"traces={planted}", *arguments]) == 2
    shown = capsys.readouterr().err
    assert sentence in shown
    assert "Traceback" not in shown


def test_an_empty_response_is_a_sentence(tmp_path, capsys):
    save_traces([Trace("t", "p", "", "1")], tmp_path / "t.jsonl")
    assert main(["segment", f"traces={tmp_path / 't.jsonl'}", f"out={tmp_path / 'o.parquet'}"]) == 2
    assert "'t'" in capsys.readouterr().err
    assert not (tmp_path / "o.parquet").exists()
