"""What `segrl sft` selects by itself: as `segrl attribute` and `segrl select` do, once, and not for another job."""

import json
from dataclasses import replace

import pytest
from testkit.composed import changed

from segrl import toy
from segrl.commands.cli import main as cli
from segrl.commands.cold_start import select_here, selects_here
from segrl.commands.config import ConfigError, compose
from segrl.data import read_rows, save_traces
from segrl.sft.masking import Rules
from segrl.sft.rows import read_selections, supervise
from segrl.sft.stages import Stage, claim_stage, stages_of

TWO = "stages=[{mode: full, epochs: 7, lr: 1.5e-5}, {mode: selective, epochs: 4, lr: 8e-6}]"


def sft_config(folder, *overrides):
    return changed("sft", "toy_cpu", f"traces={folder}/traces.jsonl", f"out={folder}", *overrides)


def test_without_selections_they_are_made_and_made_again_when_asked_for_others(tmp_path):
    """By length, which needs no model: the longest thoughts that reach tau, the first, the last and the answer."""
    save_traces(toy.sample_traces(2, seed=0), tmp_path / "traces.jsonl")

    def selected(*overrides):
        config = sft_config(tmp_path, "measure=length", *overrides)
        select_here(config)
        assert config.selections == str(tmp_path / "selections.jsonl")
        assert config.data.segrl.tau is None  # they are as they should be, and not selected once more
        return [sum(row["keep"]) for row in read_rows(config.selections)]

    few = selected("tau=0.2")
    assert selected("tau=0.2") == few
    more = selected("tau=0.9")
    assert all(a < b for a, b in zip(few, more, strict=True))
    assert json.loads((tmp_path / "selections.json").read_text())["tau"] == 0.9


def test_what_is_attributed_here_is_what_attribute_and_select_write(tmp_path, capsys):
    """And once: a shard that is there is left, one that is missing is made again, the same."""
    save_traces(toy.sample_traces(4, seed=0), tmp_path / "traces.jsonl")
    given = ["shard=2", "attribution.nodes=2", "attribution.tolerance=null"]
    cut = ["measure=contribution", "segmenter=paragraphs", "segmentation.min_tokens=3"]
    options = [*given, *cut]
    config = sft_config(tmp_path, *options)
    select_here(config)
    shards = sorted((tmp_path / "attributions").glob("*.parquet"))
    assert [len(read_rows(shard)) for shard in shards] == [2, 2]
    traces = f"traces={tmp_path}/traces.jsonl"
    assert cli(["attribute", traces, *given, f"out={tmp_path}/a"]) == 0
    assert cli(["select", traces, *cut, f"attributions={tmp_path}/a", f"out={tmp_path}/s.jsonl"]) == 0
    made = (tmp_path / "selections.jsonl").read_bytes()
    assert made == (tmp_path / "s.jsonl").read_bytes()
    before = [(shard.read_bytes(), shard.stat().st_mtime_ns) for shard in shards]
    shards[1].unlink()
    (tmp_path / "selections.jsonl").unlink()
    select_here(sft_config(tmp_path, *options))
    assert [shard.read_bytes() for shard in shards] == [content for content, _ in before]
    assert shards[0].stat().st_mtime_ns == before[0][1]
    assert (tmp_path / "selections.jsonl").read_bytes() == made
    with pytest.raises(ValueError, match="not on path=values: attribute with attribution=paper"):  # what lies in a/
        select_here(sft_config(tmp_path, "measure=ig", f"attributions={tmp_path}/a", f"out={tmp_path}/other"))


def test_what_another_measure_reads_is_read_once(tmp_path, capsys, monkeypatch):
    """As by `segrl select`: of the missing shard alone, and not for another threshold."""
    save_traces(toy.sample_traces(4, seed=0), tmp_path / "traces.jsonl")
    given = ["measure=alone", "shard=2"]
    select_here(sft_config(tmp_path, *given, "tau=0.5"))
    shards = sorted((tmp_path / "selections.scores").glob("*.parquet"))
    assert [len(read_rows(shard)) for shard in shards] == [2, 2]
    by_hand = ["select", f"traces={tmp_path}/traces.jsonl", *given, "selection.tau=0.5", f"out={tmp_path}/s.jsonl"]
    assert cli(by_hand) == 0
    made = (tmp_path / "selections.jsonl").read_bytes()
    assert made == (tmp_path / "s.jsonl").read_bytes()
    before = [(shard.read_bytes(), shard.stat().st_mtime_ns) for shard in shards]
    shards[1].unlink()
    (tmp_path / "selections.jsonl").unlink()
    select_here(sft_config(tmp_path, *given, "tau=0.5"))
    assert [shard.read_bytes() for shard in shards] == [content for content, _ in before]
    assert shards[0].stat().st_mtime_ns == before[0][1]
    assert (tmp_path / "selections.jsonl").read_bytes() == made
    monkeypatch.setattr("segrl.commands.attributing.load_model", lambda **_: pytest.fail("a model was loaded"))
    select_here(sft_config(tmp_path, *given, "tau=0.9"))
    assert (tmp_path / "selections.jsonl").read_bytes() != made


def test_the_papers_measure_is_refused_before_anything_is_attributed_on_another_path(tmp_path):
    save_traces(toy.sample_traces(1, seed=0), tmp_path / "traces.jsonl")
    with pytest.raises(ValueError, match="measure=ig is the paper's Eq"):
        select_here(sft_config(tmp_path, "measure=ig"))
    assert not (tmp_path / "attributions").exists()


def test_another_attribution_or_segmenter_does_not_go_on_unseen(tmp_path):
    """Three thoughts and the answer."""
    save_traces(toy.sample_traces(2, seed=0), tmp_path / "traces.jsonl")
    few = ["measure=contribution", "attribution.nodes=2", "attribution.tolerance=null"]

    def selected(*overrides):
        config = sft_config(tmp_path, *overrides)
        select_here(config)
        return [row["boundaries"] for row in read_rows(config.selections)]

    many, few_segments = selected(*few), selected(*few, "segmentation.max_segments=3")
    assert [len(one) - 1 for one in few_segments] == [4, 4] != [len(one) - 1 for one in many]
    with pytest.raises(ValueError, match="holds the beginning of another job: nodes was 2, now 3"):
        selected(few[0], "attribution.nodes=3", few[2])


def test_selections_are_made_again_for_other_traces(tmp_path):
    traces = toy.sample_traces(3, seed=0)
    for given in (traces[:2], traces, [*traces[:2], replace(traces[2], response=traces[1].response)]):
        save_traces(given, tmp_path / "traces.jsonl")
        config = sft_config(tmp_path, "measure=length")
        select_here(config)
        assert len(read_rows(config.selections)) == len(given)
        supervise(given, toy.load_model()[1], Rules(), selections=read_selections(config.selections))


def test_any_template_and_any_path_reach_the_selection(tmp_path):
    """Which Hydra would read as its own grammar where they stood in an override."""
    folder = tmp_path / "a=b, [c]"
    folder.mkdir()
    save_traces(toy.sample_traces(2, seed=0), folder / "traces.jsonl")
    config = sft_config(tmp_path, "measure=length")
    config.traces, config.out, config.segrl.template = str(folder / "traces.jsonl"), str(folder), "Q: {problem} A:"
    select_here(config)
    assert len(read_rows(folder / "selections.jsonl")) == 2


def test_selections_that_a_training_has_begun_on_are_kept(tmp_path):
    save_traces(toy.sample_traces(2, seed=0), tmp_path / "traces.jsonl")

    def selected(*overrides):
        config = sft_config(tmp_path, "measure=length", *overrides)
        select_here(config)

    selected("tau=0.2")
    before = (tmp_path / "selections.jsonl").read_bytes()
    claim_stage(sft_config(tmp_path), Stage(1, "selective", 4, 1e-3), "data")
    with pytest.raises(ValueError, match=r"holds a training on other selections: tau was 0.2, now 0.3; choose another"):
        selected("tau=0.3")
    assert (tmp_path / "selections.jsonl").read_bytes() == before


def test_where_every_stage_is_full_nothing_is_selected(tmp_path):
    for overrides, selects in {("mode=full",): False, (TWO,): True, (TWO, "selections=s.jsonl"): False}.items():
        config = sft_config(tmp_path, *overrides)
        assert selects_here(config, stages_of(config)) == selects


@pytest.mark.e2e
def test_the_keys_of_a_cold_start_are_those_of_its_commands():
    """A segmenter's option of any name, a section by its name, and a neighbour for a typo."""
    given = ["attribution=authors", "segmenter=retro_search", "segmentation.options.crlf=true"]
    config = compose("sft", given)
    assert (config.attribution.compat, config.segmenter) == ("authors", "retro_search")
    assert config.segmentation.options == {"crlf": True}
    for command in ("attribute", "select"):
        own = compose(command, [])
        shared = set(own) & set(config) - {"attributions", "out", "traces", "attributor_path", "model_path"}
        plain = compose("sft", [])
        assert {key: plain[key] for key in shared} == {key: own[key] for key in shared}
    with pytest.raises(ConfigError, match=r"no key 'attribution.nodess', did you mean 'nodes'\?"):
        compose("sft", ["attribution.nodess=4"])
    with pytest.raises(ConfigError, match=r"no key 'shards', did you mean 'shard'\?"):
        compose("sft", ["shards=4"])
