"""The commands on the bundled model, files in and files out."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

import segrl
from segrl import Trace, toy
from segrl.commands.cli import main
from segrl.data import load_traces, read_rows, save_traces
from segrl.data.shards import read_shards

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
    saved = ["select", f"traces={planted}", f"attributions={tmp_path / 'ig'}", "measure=contribution"]
    run(*saved, f"out={tmp_path / 'saved.parquet'}", "selection.tau=0.6")
    computed = f"out={tmp_path / 'computed.parquet'}"
    run("select", f"traces={planted}", computed, "selection.tau=0.6", "measure=contribution", *few)
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
    monkeypatch.setattr("segrl.commands.attributing.load_model", lambda **_: pytest.fail("a model was loaded"))
    run("select", f"traces={planted}", f"out={tmp_path / 'out.parquet'}", "measure=length")
    assert len(read_rows(tmp_path / "out.parquet")) == 6


def test_an_attribution_of_another_response_is_refused(planted, tmp_path, capsys):
    few = ["attribution.nodes=1", "attribution.tolerance=null"]
    run("attribute", f"traces={planted}", f"out={tmp_path / 'ig'}", *few)
    changed = [Trace(t.id, t.problem, t.response + " So.", t.answer) for t in load_traces(planted)]
    save_traces(changed, tmp_path / "changed.parquet")
    select = ["select", f"traces={tmp_path / 'changed.parquet'}", f"attributions={tmp_path / 'ig'}"]
    assert main([*select, "measure=contribution", f"out={tmp_path / 'out.parquet'}"]) == 2
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
    on_paper = ["attribution=paper", f"out={tmp_path / 'paper.json'}"]
    run("attribute", "calibrate", f"traces={planted}", *on_paper, "grid=8", "limit=2")
    gates, embeddings = (json.loads((tmp_path / name).read_text())["change"] for name in ("c.json", "paper.json"))
    assert gates != pytest.approx(embeddings)  # each of its own path
    rule = [f"attribution.quadrature={tmp_path / 'c.json'}", "attribution.nodes=3", "attribution.tolerance=null"]
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
        (["device=foo"], "device='foo', but there is none here"),
        (["shard=0"], "shard=0, expected 1 or more"),
        (["limit=-1"], "limit=-1, expected 1 or more"),
        (["limit=1", "attribution.target=foo"], "not one of 1 traces could be attributed; the first: target='foo'"),
        (["id=none"], "no trace is called 'none'; the first of 6 is"),
    ],
)
def test_bad_input_is_a_sentence_and_leaves_nothing_behind(planted, tmp_path, capsys, arguments, sentence):
    command = ["show"] if arguments[0].startswith("id") else ["attribute", f"out={tmp_path / 'out'}"]
    assert main([*command, f"traces={planted}", *arguments]) == 2
    shown = capsys.readouterr().err
    assert sentence in shown
    assert "Traceback" not in shown
    assert not list(tmp_path.glob("out/*"))  # so that the corrected command may use the folder


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["segmenter=regex"], "segmenter='regex' with the options {}: missing a required argument: 'pattern'"),
        (["segmenter=regex", "segmentation.options.pattern='('"], "pattern='(' is no regular expression"),
        (["segmentation.options.word=x"], "segmenter='keywords' with the options {'word': 'x'}: got an unexpected"),
    ],
)
def test_options_that_a_segmenter_does_not_take_are_named(planted, tmp_path, capsys, arguments, sentence):
    assert main(["segment", f"traces={planted}", f"out={tmp_path / 'o.parquet'}", *arguments]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "output", "of"),
    [("segment", "out", "traces"), ("select", "pruned", "traces"), ("select", "pruned", "out")],
)
def test_an_output_never_takes_the_place_of_another_file_of_the_command(tmp_path, capsys, command, output, of):
    given = {"traces": tmp_path / "t.parquet", "out": tmp_path / "o.parquet"}
    save_traces(toy.sample_traces(2, seed=3), given["traces"])
    before = given["traces"].read_bytes()
    (tmp_path / "link.parquet").symlink_to(given[of])
    given[output] = tmp_path / "link.parquet"  # the same file under another name
    arguments = [f"{key}={path}" for key, path in given.items()] + (["measure=length"] if command == "select" else [])
    assert main([command, *arguments]) == 2
    assert f"{output}={given[output]} would take the place of {of}" in capsys.readouterr().err
    assert (tmp_path / "t.parquet").read_bytes() == before
    assert not (tmp_path / "o.parquet").exists()


def test_an_output_is_not_written_into_the_folder_of_the_traces(planted, capsys):
    out = planted.parent / "segments.jsonl"
    assert main(["segment", f"traces={planted.parent}", f"out={out}"]) == 2
    assert f"out={out} would be read as a part of traces" in capsys.readouterr().err
    assert not out.exists()


def test_a_model_folder_without_a_tokenizer_is_named(planted, tmp_path, capsys):
    """Of its config.json alone transformers makes a tokenizer that knows no letter."""
    (tmp_path / "config.json").write_bytes((toy.MODEL_PATH / "config.json").read_bytes())
    assert main(["segment", f"traces={planted}", f"out={tmp_path / 'o.jsonl'}", f"model_path={tmp_path}"]) == 2
    assert "the folder has no tokenizer.json; copy the files" in capsys.readouterr().err


def test_a_file_of_another_kind_is_named(planted, tmp_path, capsys):
    segments = tmp_path / "segments.parquet"
    run("segment", f"traces={planted}", f"out={segments}")
    for key in ("attributions", "selections"):
        assert main(["show", f"traces={planted}", f"{key}={segments}"]) == 2
        assert f"{segments} has no column" in capsys.readouterr().err


def test_a_trace_whose_attribution_failed_is_selected_nothing_of(planted, tmp_path, capsys):
    """With an answer that is empty there is nothing to explain."""
    traces = load_traces(planted)[:2]
    save_traces([replace(traces[0], answer=None, response="no answer here"), traces[1]], tmp_path / "t.parquet")
    few = ["attribution.nodes=1", "attribution.tolerance=null"]
    given = f"traces={tmp_path / 't.parquet'}"
    run("attribute", given, f"out={tmp_path / 'ig'}", *few)
    saved = ["measure=contribution", f"attributions={tmp_path / 'ig'}"]
    run("select", given, *saved, f"out={tmp_path / 'o.parquet'}")
    assert "1 traces left out that could not be scored" in capsys.readouterr().out
    rows = {row["id"]: row for row in read_rows(tmp_path / "o.parquet")}
    failed, found = (rows[trace.id] for trace in traces)
    assert "answer" in failed["error"]
    assert not any(failed["keep"])
    assert found["error"] is None
    assert any(found["keep"])


def test_an_empty_response_is_a_sentence(tmp_path, capsys):
    save_traces([Trace("t", "p", "", "1")], tmp_path / "t.jsonl")
    assert main(["segment", f"traces={tmp_path / 't.jsonl'}", f"out={tmp_path / 'o.parquet'}"]) == 2
    assert "'t'" in capsys.readouterr().err
    assert not (tmp_path / "o.parquet").exists()
