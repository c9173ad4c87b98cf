"""The tables of truth as commands, and the peers' arms against what they wrap."""

import json
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from testkit import paper
from testkit.script_files import loaded

import segrl
from segrl import toy
from segrl.analysis.arms import Bench
from segrl.attribution.target import explain
from segrl.commands.config import compose
from segrl.data.traces import load_traces, save_traces

peers = loaded("peers")
tables = loaded("truth_tables")
needs_flashtrace = pytest.mark.skipif(
    find_spec("flashtrace") is None, reason="FlashTrace is not installed: pip install 'segrl[bench]'"
)


@pytest.fixture(scope="module")
def bench():
    """A short toy trace on the bundled model."""
    model, tokenizer = toy.load_model()
    short = min(toy.sample_traces(20, seed=3), key=lambda trace: len(trace.meta["kinds"]))
    trace = segrl.tokenize(short, tokenizer)
    return Bench(model, tokenizer, trace, segrl.segment(trace), {})


def thoughts(values_S, bench):
    return values_S[bench.segments.thought_S].tolist()


def scaled(values):
    """The values with the largest at one."""
    return [value / max(map(abs, values)) for value in values]


# --- the tables ------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_peers(monkeypatch):
    for name in ("CARRIES", "MISLED"):
        monkeypatch.setattr(tables, name, dict(getattr(tables, name)))
    tables.add_arms()


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_table_composes_and_names_arms_that_there_are(name, with_peers, tmp_path):
    table = tables.TABLES[name]
    step = tables.truth(f"{name}-dev", table, tmp_path, "model", half="dev", limit=2)
    config = compose("truth", step.arguments[2:])
    assert config.out == str(tmp_path / f"{name}-dev")
    assert (config.limit, config.half, config.world) == (2, "dev", table.world)
    assert dict(config.world_options) == dict(table.options)
    assert config.attributor_path == ("model" if table.pretrained else None)
    assert list(config.measures) == table.names()
    assert {arm for arm in table.arms or () if arm not in config.measures} <= set(peers.FLASHTRACE)
    assert {*table.without} <= {*(tables.MISLED if table.options.get("wrong") else tables.CARRIES)}


def test_a_table_without_its_model_is_left_out(tmp_path, capsys):
    found = list(tables.steps(["lines", "toy", "real"], tmp_path, None, "test", 1))
    assert [step.name for step in found] == ["toy-test"]
    said = capsys.readouterr().out
    assert "lines: left out" in said
    assert "real: left out" in said
    assert "scripts/fetch_smollm2.py" in said


def test_a_table_runs_and_goes_on(tmp_path):
    table = tables.Table("toy", 1, {"ask": "last", "most": 7}, arms=("length", "position"))
    step = tables.truth("small", table, tmp_path, None, half="dev")
    assert tables.run(step, tmp_path)
    part = next((tmp_path / "small" / "scores").glob("*.parquet"))
    written = part.stat().st_mtime_ns
    assert tables.run(step, tmp_path)
    assert part.stat().st_mtime_ns == written  # what is done is not done again
    assert not tables.run(step._replace(arguments=[*step.arguments, "world=nowhere"]), tmp_path)
    minutes = (tmp_path / "minutes.jsonl").read_text().splitlines()
    assert ['"done": true' in line for line in minutes] == [True, True, False]


@pytest.mark.e2e
def test_real_traces_that_fit_are_scored_and_the_shortest_held_against_samples(tmp_path, monkeypatch, capsys):
    """Toy traces in the place of real ones, of which the longest is made too long for the model."""
    short = sorted(toy.sample_traces(20, seed=3), key=lambda trace: len(trace.response))[::10]
    long = replace(short[0], id="long", response="Okay. " * 2000 + short[0].response)
    save_traces([long, *reversed(short)], tmp_path / "given.jsonl")
    monkeypatch.setattr(tables, "PATH", str(tmp_path / "given.jsonl"))
    monkeypatch.setattr(tables, "HELD", replace(tables.HELD, limit=1, arms=("position", "values, 1 at half")))
    steps = list(tables.real(tmp_path, str(toy.MODEL_PATH), None))
    assert all(tables.run(step, tmp_path) for step in steps)
    said = capsys.readouterr().out
    assert "2 of 3 real traces fit" in said
    assert "too long: long (" in said
    rows = load_traces(tmp_path / "real" / "fitting.jsonl")
    assert [row.id for row in rows] == [trace.id for trace in short]
    selections = (tmp_path / "real" / "selections.jsonl").read_text().splitlines()
    assert len(selections) == 2
    truth = json.loads((tmp_path / "real" / "shapley" / "truth.json").read_text())
    assert truth["traces"] == 1
    assert truth["table"]["values, 1 at half"]["traces"]["shapley_spearman"] == 1


# --- the arms of peers -----------------------------------------------------------------------------------------------


def test_the_papers_loop_is_compat_authors(bench):
    """Up to the scale: the paper's code divides a trace's scores by their length."""
    ours = paper.attribute(bench.model, [bench.trace], bench.tokenizer, compat="authors")[0].scores_T
    by_strength, signed = (peers.OF_THE_ANSWER[f"the paper's loop, 50{how}"].run(bench) for how in ("", ", signed"))
    strength_S = peers.segment_scores(ours, bench.segments).strength_S
    signed_S = peers.summed(ours.double(), bench.segments)
    assert scaled(by_strength.values) == pytest.approx(scaled(thoughts(strength_S, bench)), abs=1e-3)
    assert scaled(signed.values) == pytest.approx(scaled(thoughts(signed_S, bench)), abs=1e-3)
    assert by_strength.evaluations == signed.evaluations == 50
    assert by_strength.seconds == signed.seconds > 0  # one call, for which each is charged


def test_captum_is_engine_captum(bench):
    how = {"engine": "captum", "quadrature": "gauss_legendre", "nodes": 6, "tolerance": None}
    ours = paper.attribute(bench.model, [bench.trace], bench.tokenizer, **how)[0].scores_T
    expected = thoughts(peers.summed(ours.double(), bench.segments), bench)
    arm = peers.Peer(partial(peers.OF_THE_ANSWER["captum, 50, signed"].call, nodes=6), 6)
    assert arm.run(bench).values == pytest.approx(expected, abs=1e-3)


def test_a_text_with_other_tokens_is_refused(bench):
    """A "t" and an "e" that are spelt as the tokenizer's "te"."""
    with pytest.raises(ValueError, match="is 2 tokens here and 1 other ones where FlashTrace tokenises it"):
        peers._spelt(bench.tokenizer, bench.tokenizer.convert_tokens_to_ids(["t", "e"]))


def test_hops_are_summed_by_the_share_that_the_hop_before_left():
    """Half of hop 0 stays in the target, so hop 1 counts half: 1 + 4 / 2, 2 + 6 / 2."""
    hops = [torch.tensor([1.0, 2.0]), torch.tensor([4.0, 6.0])]
    result = SimpleNamespace(metadata={"ifr": {"per_hop_projected": hops}}, thinking_ratios=[0.5, 0.2])
    assert peers.over_hops(result).tolist() == [3.0, 5.0]


@needs_flashtrace
def test_flashtrace_scores_the_thinking_from_the_answer(bench):
    """The same call as its README shows it, on text."""
    from flashtrace import FlashTrace

    explained = explain(bench.trace, bench.tokenizer)
    stop, (first, last) = explained.thinking.stop, explained.answer_span
    prompt = bench.tokenizer.decode(explained.input_ids[:stop])
    target = bench.tokenizer.decode(explained.input_ids[stop:])
    with peers.eager(bench.model):
        result = FlashTrace(bench.model, bench.tokenizer).trace(
            prompt=prompt, target=target, output_span=(first - stop, last - 1 - stop), hops=1
        )
    assert "".join(result.generation_tokens[first - stop : last - stop]) == bench.trace.answer
    scores_T = torch.zeros(bench.trace.tokens, dtype=torch.float64)
    scores_T[: explained.thinking.stop - explained.thinking.start] = torch.tensor(result.scores)[explained.thinking]
    expected = thoughts(peers.summed(scores_T, bench.segments), bench)
    assert peers.FLASHTRACE["FlashTrace, whole target"].run(bench).values == pytest.approx(expected)
    assert peers.FLASHTRACE["FlashTrace"].run(bench).values != pytest.approx(expected)
    assert bench.model.config._attn_implementation != "eager"


@needs_flashtrace
def test_over_hops_of_the_prompt_are_flashtraces_own_scores(bench):
    explained = explain(bench.trace, bench.tokenizer)
    start, stop, (first, last) = explained.thinking.start, explained.thinking.stop, explained.answer_span
    spans = {"output_span": (first - start, last - 1 - start), "reasoning_span": (0, stop - start - 1)}
    result = peers._traced(bench, explained, start, **spans)
    assert peers.over_hops(result)[:start].tolist() == pytest.approx(result.scores, rel=1e-4, abs=1e-7)
