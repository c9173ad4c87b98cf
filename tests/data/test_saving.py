"""Traces at rest come back as they were, and nothing that stood there is lost when writing fails."""

import errno
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segrl.data import load_traces, save_traces
from segrl.types import TokenisedTrace, Trace

TENSORS = ("prompt_ids", "response_ids", "offsets_T", "trainable_T")
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
# Texts that would change if a saved file were read like a foreign one.
tricky = st.sampled_from(["$5$", "27.0", "#### 3", "\\boxed{1}", "", " ", "a\u2028b\r\n", "\ufeffx", "None", "nan"])
json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
plain_fields = st.fixed_dictionaries(
    {
        "problem": text | tricky,
        "response": text | tricky,
        "answer": st.none() | text | tricky,
        "meta": st.dictionaries(text | st.just("id"), json_value, max_size=3),
    }
)


@st.composite
def traces(draw):
    fields = draw(plain_fields)
    tokens = draw(st.integers(0, 4)) if not fields["response"] else draw(st.integers(1, 4))
    if draw(st.booleans()):
        ids = st.lists(st.integers(0, 2**62), min_size=tokens, max_size=tokens)
        ends = sorted(draw(st.lists(st.integers(0, len(fields["response"])), min_size=tokens, max_size=tokens)))
        ends = [*ends[:-1], len(fields["response"])] if tokens else []
        fields |= {
            "prompt_ids": torch.tensor(draw(st.lists(st.integers(0, 2**62), max_size=3)), dtype=torch.int64),
            "response_ids": torch.tensor(draw(ids), dtype=torch.int64),
            "offsets_T": torch.tensor(list(zip([0, *ends], ends, strict=False)), dtype=torch.int64).reshape(-1, 2),
            "trainable_T": torch.tensor(draw(st.lists(st.booleans(), min_size=tokens, max_size=tokens)), dtype=bool),
            "prompt_hash": draw(text),
        }
    return fields


def assert_same(have: Trace, want: Trace) -> None:
    for name in ("id", "problem", "response", "answer", "prompt_hash", "meta"):
        assert getattr(have, name, None) == getattr(want, name, None), name
    for name in TENSORS:
        left, right = getattr(have, name, None), getattr(want, name, None)
        assert (left is None) == (right is None), name
        if left is not None:
            assert (left.dtype, left.tolist()) == (right.dtype, right.tolist()), name
            assert left.shape == right.shape, name


def made(**fields):
    return TokenisedTrace(**fields) if "prompt_ids" in fields else Trace(**fields)


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_save_then_load_is_the_same(tmp_path, ending):
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(st.lists(traces(), min_size=1, max_size=3))
    def round_trip(many):
        saved = [made(id=f"{number} $x$", **fields) for number, fields in enumerate(many)]
        save_traces(saved, tmp_path / f"traces.{ending}")
        for have, want in zip(load_traces(tmp_path / f"traces.{ending}"), saved, strict=True):
            assert_same(have, want)

    round_trip()


def tokenised(response="a é 😀") -> TokenisedTrace:
    # Five characters in four tokens, the last two of which share the emoji.
    return TokenisedTrace(
        id="t",
        problem="p",
        response=response,
        answer="5",
        prompt_ids=torch.tensor([1, 2]),
        response_ids=torch.tensor([7, 8, 9, 9], dtype=torch.int32),
        offsets_T=torch.tensor([[0, 2], [2, 4], [4, 5], [4, 5]]),
        trainable_T=torch.tensor([True, False, True, True]),
        prompt_hash="abc",
        meta={"kinds": ("needed", "repeat"), "score": 0.1, 3: "three"},
    )


def test_ids_become_int64_and_meta_passes_through_json(tmp_path):
    save_traces([tokenised()], tmp_path / "deep" / "er" / "a.parquet")
    [trace] = load_traces(tmp_path / "deep" / "er" / "a.parquet")
    assert trace.response_ids.dtype == torch.int64
    assert trace.response_ids.tolist() == [7, 8, 9, 9]
    assert trace.offsets_T.tolist() == [[0, 2], [2, 4], [4, 5], [4, 5]]
    assert trace.trainable_T.tolist() == [True, False, True, True]
    assert trace.meta == {"kinds": ["needed", "repeat"], "score": 0.1, "3": "three"}


def test_a_column_added_to_a_saved_file_lands_in_meta(tmp_path):
    path = tmp_path / "a.jsonl"
    save_traces([tokenised()], path)
    row = json.loads(path.read_text()) | {"verdict": "right"}
    path.write_text(json.dumps(row))
    assert load_traces(path)[0].meta["verdict"] == "right"
    path.write_text(json.dumps(row | {"trainable": [True]}))
    with pytest.raises(ValueError, match=r"a.jsonl row 1 is not the trace that was saved .*trainable_T: got 1 for 4"):
        load_traces(path)


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ([], "no rows to write"),
        ([Trace(id="x", problem="p"), Trace(id="x", problem="p")], "'x' stands twice, in trace 1 and in trace 2"),
        ([Trace(id="x", problem="p", meta={"t": torch.ones(1)})], "meta of trace 'x' cannot be written as JSON"),
        ([Trace(id="x", problem="cut \ud83d")], "column 'problem' holds the lone surrogate"),
        ([Trace(id="x", problem="p", meta={"a": ["\udc00"]})], "column 'meta' holds the lone surrogate"),
    ],
)
def test_what_cannot_be_written_leaves_the_old_file(tmp_path, ending, bad, says):
    path = tmp_path / f"a.{ending}"
    save_traces([tokenised()], path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=says):
        save_traces(bad, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, ending):
    path = tmp_path / f"a.{ending}"
    save_traces([tokenised()], path)

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        OSError, match=r"was not written \(No space left on device\); what stood there before"
    ) as caught:
        save_traces([Trace(id="new", problem="p")], path)
    assert caught.value.errno == errno.ENOSPC
    assert load_traces(path)[0].id == "t"
    assert os.listdir(tmp_path) == [path.name]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "real.jsonl")
    save_traces([tokenised()], tmp_path / "link.jsonl")
    assert (tmp_path / "link.jsonl").is_symlink()
    assert load_traces(tmp_path / "real.jsonl")[0].id == "t"


def test_a_path_of_another_kind(tmp_path):
    with pytest.raises(ValueError, match=r"ends in .csv"):
        save_traces([tokenised()], tmp_path / "a.csv")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"a.jsonl was not written"):
        save_traces([tokenised()], tmp_path / "file" / "a.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(OSError, match=r"folder.jsonl was not written \(Is a directory\)"):
        save_traces([tokenised()], tmp_path / "folder.jsonl")


def test_a_truncated_or_altered_parquet_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    save_traces([Trace(id=str(n), problem="p" * 50, response="a quick brown fox") for n in range(50)], path)
    whole = path.read_bytes()
    for size in (0, 4, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"a.parquet cannot be read as parquet"):
            load_traces(path)
    path.write_bytes(whole.replace(b"brown", b"black", 1))
    with pytest.raises(ValueError, match=r"a.parquet cannot be read as parquet"):
        load_traces(path)


KILLED = """
import os, signal, sys
from segrl.data import save_traces
from segrl.types import TokenisedTrace, Trace

def killed_before_it_is_on_disk(descriptor):
    print(os.fstat(descriptor).st_size, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

os.fsync = killed_before_it_is_on_disk
save_traces([Trace(id="new", problem="p" * 100_000)], sys.argv[1])
"""


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.jsonl"
    save_traces([tokenised()], path)
    done = subprocess.run([sys.executable, "-c", KILLED, path], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert int(done.stdout) > 100_000
    assert [trace.id for trace in load_traces(path)] == ["t"]
    # What the killed writer left behind is hidden from folders too, and does not stop the next one.
    assert [trace.id for trace in load_traces(tmp_path)] == ["t"]
    save_traces([Trace(id="next", problem="p")], path)
    assert [trace.id for trace in load_traces(path)] == ["next"]
