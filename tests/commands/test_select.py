"""``segrl select`` with every measure, on the bundled model, files in and files out."""

import json

import pytest
import torch
from testkit.tiny import byte_level_tokenizer

import segrl
from segrl import Trace, tokenize, toy
from segrl.commands.cli import main
from segrl.data import load_traces, read_rows, records, save_traces
from segrl.importance import MEASURES
from segrl.selection import kept_tokens

FEW = ["attribution.nodes=2", "attribution.tolerance=null", "evidence.samples=2", "evidence.answer_tokens=12"]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    path = tmp_path_factory.mktemp("planted") / "traces.parquet"
    save_traces(toy.sample_traces(2, seed=3), path)
    return path


def run(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


def selections(path):
    return [(records.segments_of(row), records.scores_of(row), records.selection_of(row)) for row in read_rows(path)]


def thinking_kept(segments, selection):
    thought_T = segments.thought_S[segments.index_T]
    return float(kept_tokens(selection, segments)[thought_T].double().mean())


@pytest.mark.e2e
@pytest.mark.parametrize("measure", [name for name, measure in MEASURES.items() if measure.offline])
def test_every_measure_selects_by_one_command_and_as_much_as_the_others(planted, tmp_path, measure):
    out = tmp_path / "out.parquet"
    path = ["attribution=paper"] if measure == "ig" else []
    run("select", f"traces={planted}", f"out={out}", f"measure={measure}", "selection=matched", *path, *FEW)
    found = selections(out)
    assert len(found) == 2
    for (segments, scores, selection), trace in zip(found, load_traces(planted), strict=True):
        pieces = segments.tokens if MEASURES[measure].level == "token" else len(trace.meta["kinds"])
        assert len(segments) == len(scores) == len(selection) == pieces
        assert thinking_kept(segments, selection) == pytest.approx(0.45, abs=0.12)
        assert set(selection.reason_S) <= {"strength", "forced", "dropped", "consistency"}


def test_a_measure_that_exists_only_while_training_is_refused(planted, tmp_path, capsys):
    assert main(["select", f"traces={planted}", f"out={tmp_path / 'out.parquet'}", "measure=delta"]) == 2
    assert "measure=delta compares the responses of a batch by their advantages" in capsys.readouterr().err


def test_a_random_third_of_the_segments_is_one_command(planted, tmp_path):
    out = tmp_path / "out.parquet"
    run("select", f"traces={planted}", f"out={out}", "measure=random", "selection=third")
    for segments, _, selection in selections(out):
        thoughts = int(segments.thought_S.sum())
        thoughts_kept = int(selection.keep_S[segments.thought_S].sum())
        # The first and the last are among them.
        assert thoughts_kept == max(2, round(0.33 * thoughts))


def test_a_token_measures_rows_are_those_of_single_tokens(planted, tmp_path):
    """So that whoever masks by a row's segments, such as SFT, masks single tokens."""
    run(
        "select",
        f"traces={planted}",
        f"out={tmp_path / 'o.parquet'}",
        "measure=abs_ig_tokens",
        "selection.tau=0.3",
        *FEW,
    )
    model, tokenizer = toy.load_model()
    for (segments, _, selection), trace in zip(selections(tmp_path / "o.parquet"), load_traces(planted), strict=True):
        trace = segrl.tokenize(trace, tokenizer)
        own = segrl.segment(trace)
        [evidence] = segrl.gather(model, [trace], tokenizer, nodes=2, tolerance=None)
        expected = segrl.select(segrl.score(evidence, own, "abs_ig_tokens"), tau=0.3)
        assert segments == own.by_token
        assert torch.equal(selection.keep_S[segments.index_T], kept_tokens(expected, own))


def test_pruned_traces_are_written_beside_the_selection(planted, tmp_path):
    out, pruned = tmp_path / "out.parquet", tmp_path / "pruned.jsonl"
    run("select", f"traces={planted}", f"out={out}", f"pruned={pruned}", "measure=length", "selection.tau=0.5")
    whole, shorter = load_traces(planted), load_traces(pruned)
    for one, other, (_, _, selection) in zip(whole, shorter, selections(out), strict=True):
        assert (one.id, one.answer) == (other.id, other.answer)
        assert other.meta["kept_segments"] == selection.keep_S.nonzero().flatten().tolist()
        assert len(other.response) < len(one.response)
        assert other.response.endswith(f"</think> So, the final answer is \\boxed{{{one.answer}}}")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["measure=entrpy"], "no measure is called 'entrpy', did you mean 'entropy'?"),
        (["measure=length", "selection.tau=1.5"], "tau=1.5, expected a number from 0 to 1"),
        (["measure=length", "selection.beta=-1"], "beta=-1.0, expected a number from 0 to 1"),
        (["measure=length", "selection.match_tokens=45"], "match_tokens=45.0, expected a number from 0 to 1"),
        (["measure=length", "selection.consistency=exces"], "consistency='exces', expected one of"),
        (["measure=first_correct"], "trace 'none' has no answer"),
        (["measure=pmi"], "trace 'none' has no gold answer"),
        (["measure=confidence_gain"], "trace 'none' has no gold answer"),
        (["measure=oracle"], "trace 'none' has no planted kinds"),
        (["measure=abs_ig_tokens", "attribution.target=own"], "trace 'none' boxes no answer of its own"),
        (["measure=ig"], "not on path=values: attribute with attribution=paper, or take measure=strength"),
        (["measure=attention", "attribution.context=some"], "context='some', expected one of"),
        (["measure=confidence_gain", "evidence.temperature=0"], "temperature=0.0"),
        (
            ["measure=grail", "measure_options.foo=1"],
            "measure='grail' with the options {'foo': 1}: got an unexpected keyword argument 'foo'; it takes aggregate",
        ),
        (
            ["measure=grail", "measure_options.aggregate=men"],
            "measure='grail': aggregate='men', expected one of sqrt, sum, mean, top20, token",
        ),
        (["measure=permuted_ig", "measure_options.seed=x"], "measure='permuted_ig': seed='x', expected a whole number"),
        (["measure=alone", "segmenter=regex"], "segmenter='regex' with the options {}: missing a required argument"),
        (["measure=alone", "dtype=float33"], "dtype='float33', expected one of"),
    ],
)
def test_bad_input_is_a_sentence(tmp_path, capsys, arguments, sentence):
    save_traces([Trace("none", "p", "Okay, 3.\n\nWait, 4.\n\nWait, 5.", None)], tmp_path / "t.jsonl")
    assert main(["select", f"traces={tmp_path / 't.jsonl'}", f"out={tmp_path / 'o.parquet'}", *arguments]) == 2
    shown = capsys.readouterr().err
    assert sentence in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "o.parquet").exists()
    assert not list(tmp_path.glob("o.scores/*"))  # so that the corrected command may use the folder


def test_a_model_that_never_gets_it_right_is_a_sentence(planted, tmp_path, capsys):
    wrong = [Trace(t.id, t.problem, t.response, "31415") for t in load_traces(planted)]
    save_traces(wrong, tmp_path / "wrong.jsonl")
    command = ["select", f"traces={tmp_path / 'wrong.jsonl'}", f"out={tmp_path / 'o.parquet'}"]
    assert main([*command, "measure=confidence_gain", *FEW]) == 2
    assert "finds no segment above zero in any of 2 traces" in capsys.readouterr().err


def test_tokens_cannot_be_pruned_by_command(planted, tmp_path, capsys):
    command = ["select", f"traces={planted}", f"out={tmp_path / 'o.parquet'}", f"pruned={tmp_path / 'p.jsonl'}"]
    assert main([*command, "measure=ig_tokens", *FEW]) == 2
    assert "masks, it does not prune" in capsys.readouterr().err
    assert not (tmp_path / "p.jsonl").exists()


def test_a_note_beside_the_selections_says_how_they_were_made(planted, tmp_path):
    run("select", f"traces={planted}", f"out={tmp_path / 'o.parquet'}", "measure=length", "selection.tau=0.6")
    note = json.loads((tmp_path / "o.json").read_text())
    assert (note["measure"], note["tau"], note["beta"]) == ("length", 0.6, 0.8)


# --- shards of scores ------------------------------------------------------------------------------------------------


def test_other_thresholds_are_selected_by_the_scores_that_are_there(planted, tmp_path, monkeypatch):
    given = ["select", f"traces={planted}", "measure=alone"]
    run(*given, f"out={tmp_path / 'o.parquet'}", "selection.tau=0.2")
    run(*given, f"out={tmp_path / 'whole.parquet'}", "selection.tau=0.9")
    monkeypatch.setattr("segrl.commands.attributing.load_model", lambda **_: pytest.fail("a model was loaded"))
    few = read_rows(tmp_path / "o.parquet")
    run(*given, f"out={tmp_path / 'o.parquet'}", "selection.tau=0.9")
    assert read_rows(tmp_path / "o.parquet") == read_rows(tmp_path / "whole.parquet") != few


@pytest.mark.e2e
@pytest.mark.parametrize("measure", ["shapley", "permuted_ig", "confidence_gain", "continuation_gain"])
def test_what_is_drawn_for_a_trace_depends_on_no_other_trace(tmp_path, measure):
    """Alone in a shard or behind two others, first or last."""
    traces = toy.sample_traces(3, seed=3)
    drawn = ["evidence.forwards=40", "evidence.continuations=2", "evidence.continued_tokens=24", *FEW]

    def scores(name, given, shard):
        save_traces(given, tmp_path / f"{name}.jsonl")
        out = tmp_path / f"{name}.parquet"
        run("select", f"traces={tmp_path / name}.jsonl", f"out={out}", f"measure={measure}", f"shard={shard}", *drawn)
        assert len(list(out.with_suffix(".scores").glob("part-*.parquet"))) == -(-len(given) // shard)
        return {row["id"]: row["strength"] for row in read_rows(out)}

    one_by_one = scores("one_by_one", traces, 1)
    assert any(any(strength) for strength in one_by_one.values())
    assert scores("together", traces[::-1], 3) == one_by_one


def test_scores_of_other_traces_or_of_an_edited_measure_are_not_gone_on_with(planted, tmp_path, monkeypatch, capsys):
    file = tmp_path / "edited_measure.py"
    monkeypatch.syspath_prepend(tmp_path)
    source = """
from segrl.importance import from_strength
def measured(evidence, segments):
    return from_strength(evidence.alone_value_S.exp(), segments)
measured.needs = ("alone_value_S",)
"""
    file.write_text(source)
    (tmp_path / "naming_it.py").write_text("from edited_measure import measured")
    traces = load_traces(planted)
    save_traces(traces, tmp_path / "t.jsonl")
    given = ["select", f"traces={tmp_path / 't.jsonl'}", f"out={tmp_path / 'o.parquet'}"]
    run(*given, "measure=naming_it:measured")
    file.write_text(source.replace(".exp()", ".sigmoid()"))
    assert main([*given, "measure=naming_it:measured"]) == 2
    assert "o.scores holds the beginning of another job: measure naming_it:measured was '" in capsys.readouterr().err
    file.write_text(source)
    run(*given, "measure=naming_it:measured")
    save_traces([traces[0], Trace(traces[1].id, traces[1].problem, traces[1].response, "31415")], tmp_path / "t.jsonl")
    assert main([*given, "measure=naming_it:measured"]) == 2
    assert "o.scores holds the beginning of another job: traces was '" in capsys.readouterr().err


def test_traces_in_another_models_tokens_are_refused(tmp_path, capsys):
    save_traces([tokenize(toy.sample_traces(1, seed=0)[0], byte_level_tokenizer())], tmp_path / "t.parquet")
    assert main(["select", f"traces={tmp_path / 't.parquet'}", f"out={tmp_path / 's.jsonl'}"]) == 2
    assert "is saved in tokens that" in capsys.readouterr().err


def test_attributions_are_refused_for_a_measure_that_reads_none(planted, tmp_path, capsys):
    given = [f"traces={planted}", f"attributions={tmp_path / 'ig'}", f"out={tmp_path / 'selections.parquet'}"]
    assert main(["select", *given, "measure=alone"]) == 2
    sentence = "but measure='alone' reads alone_value_S; leave attributions out, or take measure=contribution"
    assert sentence in capsys.readouterr().err


def test_scores_of_a_model_that_was_trained_on_are_not_gone_on_with(planted, tmp_path, capsys):
    model, tokenizer = toy.load_model()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    of_model = [f"traces={planted}", f"attributor_path={tmp_path / 'model'}"]
    commands = [["select", *of_model, "measure=alone", f"out={tmp_path / 's.jsonl'}"]]
    commands += [["attribute", *of_model, f"out={tmp_path / 'a'}"]]
    for command in commands:
        run(*command)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1.01)
    model.save_pretrained(tmp_path / "model")
    for command in commands:
        assert main(command) == 2
        assert "holds the beginning of another job: weights was '" in capsys.readouterr().err


def test_a_trace_that_was_mended_is_not_dropped_for_what_it_was(tmp_path, capsys):
    right, other = toy.sample_traces(2, seed=0)
    given = tmp_path / "t.jsonl"
    save_traces([right, Trace(other.id, other.problem, other.response, "")], given)
    run("attribute", f"traces={given}", f"out={tmp_path / 'a'}")
    saved = [f"attributions={tmp_path / 'a'}", "measure=contribution"]
    run("select", f"traces={given}", *saved, f"out={tmp_path / 's.jsonl'}")
    assert "1 traces left out that could not be scored" in capsys.readouterr().out
    save_traces([right, other], given)
    assert main(["attribute", f"traces={given}", f"out={tmp_path / 'a'}"]) == 2
    assert "holds the beginning of another job: traces was '" in capsys.readouterr().err
