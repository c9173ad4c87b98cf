import json
from dataclasses import replace

import pytest
import torch
from testkit import paper
from testkit.tiny import byte_level_tokenizer, tiny_model

import segrl
from segrl import Trace
from segrl.data import read_rows, records, write_rows
from segrl.data.shards import Shards, read_shards


def traces(n=3):
    made = [Trace(f"t{i}", "3+4?", f"Okay, 3.\n\nWait,{' 1' * i} 7.\n</think> \\boxed{{7}}", "7") for i in range(n)]
    return [segrl.tokenize(trace, byte_level_tokenizer()) for trace in made]


def test_what_is_written_is_read_back(tmp_path):
    trace = traces()[2]
    segments = segrl.segment(trace)
    [attribution] = paper.attribute(tiny_model(), [trace], byte_level_tokenizer(), nodes=3, tolerance=1e-9, max_nodes=3)
    parts = {"alone": torch.arange(len(segments)).double()}
    scores = replace(segrl.score(attribution, segments, "ig"), parts=parts)
    selection = segrl.select(scores)
    write_rows(tmp_path / "a.parquet", [records.attribution_row(trace, attribution)])
    write_rows(tmp_path / "s.parquet", [records.selection_row(trace, segments, scores, selection)])
    [a], [s] = read_rows(tmp_path / "a.parquet"), read_rows(tmp_path / "s.parquet")

    again = records.attribution_of(a)
    assert torch.equal(again.scores_T, attribution.scores_T)
    assert torch.equal(again.input_ids, attribution.input_ids)
    for name in ("trace_id", "target", "answer_span", "gap", "copy_share", "evaluations", "flags", "logp_input"):
        assert getattr(again, name) == getattr(attribution, name), name
    assert again.flags == ("coarse",)
    assert records.segments_of(s) == segments
    assert torch.equal(records.selection_of(s).keep_S, selection.keep_S)
    assert records.selection_of(s).reason_S == selection.reason_S
    for name in ("strength_S", "share_S", "consistency_S", "tokens_S", "thought_S"):
        assert torch.equal(getattr(records.scores_of(s), name), getattr(scores, name)), name
    assert torch.equal(records.scores_of(s).parts["alone"], parts["alone"])
    del s[records.PARTS]  # as in a file without the column
    assert records.scores_of(s).parts == {}


def test_a_row_belongs_to_one_prompt_and_one_response():
    one, other = traces()[:2]
    row = records.segments_row(one, segrl.segment(one))
    records.check_identity(one, row, "selection")
    with pytest.raises(ValueError, match="the selection of 't0' was made for another id"):
        records.check_identity(other, row, "selection")
    changed = segrl.tokenize(Trace("t0", "3+5?", one.response, "7"), byte_level_tokenizer())
    with pytest.raises(ValueError, match="was made for another prompt"):
        records.check_identity(changed, row, "selection")


# --- shards ----------------------------------------------------------------------------------------------------------


def test_shards_count_what_is_done_and_what_is_left(tmp_path):
    shards = Shards(tmp_path / "out", {"nodes": 4}, traces(5), 2)
    assert [[t.id for t in group] for _, group in shards.todo()] == [["t0", "t1"], ["t2", "t3"], ["t4"]]
    write_rows(shards.part(1), [{"id": "t2"}, {"id": "t3"}])
    assert shards.done == 2
    again = Shards(tmp_path / "out", {"nodes": 4}, traces(5), 2)
    assert [i for i, _ in again.todo()] == [0, 2]
    write_rows(shards.part(2), [{"id": "t4"}])
    write_rows(shards.part(0), [{"id": "t0"}, {"id": "t1"}])
    assert [row["id"] for row in read_shards(tmp_path / "out")] == ["t0", "t1", "t2", "t3", "t4"]  # the job's order


@pytest.mark.parametrize(
    ("settings", "items", "size", "changed"),
    [
        ({"nodes": 5}, 4, 2, "nodes was 4, now 5"),
        ({"nodes": 4}, 3, 2, "ids was"),
        ({"nodes": 4}, 4, 3, "shard was 2, now 3"),
    ],
)
def test_another_job_is_refused_with_what_changed(tmp_path, settings, items, size, changed):
    Shards(tmp_path, {"nodes": 4}, traces(4), 2)
    before = json.loads((tmp_path / "settings.json").read_text())
    with pytest.raises(ValueError, match=changed):
        Shards(tmp_path, settings, traces(items), size)
    assert json.loads((tmp_path / "settings.json").read_text()) == before


def test_an_empty_folder_is_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"holds no part-\*.parquet; was the job that writes it started"):
        read_shards(tmp_path)
