import pytest
import torch
from testkit.pages import ARABIC, CHINESE, HOSTILE, entry_of, many_kinds, read, trace_of

from segrl import TokenisedTrace
from segrl.commands.cli import main
from segrl.commands.config import compose
from segrl.commands.traces import how_selected
from segrl.data import save_traces
from segrl.report import Entry, page
from segrl.report.page import LEVELS


def test_what_a_user_wrote_is_data_and_comes_back_whole():
    entries = many_kinds()
    blocks, data = read(page(entries, title=HOSTILE))
    assert [data[f"trace-{i}"]["text"] for i in range(4)] == [entry.trace.response for entry in entries]
    assert [head["id"] for head in data["index"]["traces"]] == ["hostile<b>", "chinese", "arabic", "wrong"]
    assert data["index"]["title"] == HOSTILE
    scripts = [attributes for tag, attributes in blocks.elements if tag == "script"]
    assert len(scripts) == 6  # the index, four traces, the code
    assert "img" not in {tag for tag, _ in blocks.elements}


def test_nothing_is_fetched_from_anywhere():
    blocks, _ = read(page(many_kinds()))
    assert not [one for _, one in blocks.elements if {"src", "href"} & set(one)]
    [policy] = [one["content"] for _, one in blocks.elements if one.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")


@pytest.mark.parametrize("pieces", [[CHINESE, "x"], [ARABIC, "x"], ["a𠀀b 😀😀 c", "x"]])
def test_tokens_are_counted_as_javascript_counts(pieces):
    """JavaScript's strings are UTF-16: the lengths must cut that, and give every token's own text."""
    trace, segments = trace_of(pieces)
    _, data = read(page([Entry(trace, segments)]))
    units, at, found = trace.response.encode("utf-16-le"), 0, []
    for length in data["trace-0"]["lengths"]:
        found.append(units[2 * at : 2 * (at + length)].decode("utf-16-le"))
        at += length
    assert found == [trace.response[start:end] for start, end in trace.offsets_T.tolist()]


def test_a_character_of_several_tokens_is_shown_once():
    spans = torch.tensor([[0, 1], [1, 2], [1, 2], [1, 2], [2, 3]])
    ids = torch.arange(5)
    tokens = {"prompt_ids": ids, "response_ids": ids, "offsets_T": spans, "trainable_T": ids >= 0, "prompt_hash": "h"}
    trace = TokenisedTrace("t", "p", "a😀b", "1", **tokens)
    _, data = read(page([Entry(trace, trace_of(["a", "b"])[1])]))
    assert data["trace-0"]["lengths"] == [1, 2, 0, 0, 1]


def test_a_lone_surrogate_reaches_the_page():
    trace, segments = trace_of(["a \ud800 b", "x"])
    text = page([Entry(trace, segments)])
    assert "\\ud800" in text.encode("utf-8").decode()
    assert read(text)[1]["trace-0"]["text"] == trace.response


def test_scores_are_rounded_and_selections_are_not():
    entry = entry_of(["a b c", "Wait d", "e f"], scores_T=[1.0, -0.5, 0.25, 1e-9, 0.0, 0.125, 2.0])
    body = read(page([entry]))[1]["trace-0"]
    assert body["tints"]["score"]["levels"] == [
        5000,
        -2500,
        1250,
        0,
        0,
        625,
        LEVELS,
    ]  # halves of 9999 to the even neighbour
    assert body["tints"]["score"]["unit"] == 2.0 / LEVELS
    ig, random = entry.views["ig"].scores, body["views"][1]
    assert body["views"][0]["strength"] == ig.strength_S.tolist()
    assert [one / body["views"][0]["total"] for one in ig.strength_S.tolist()] == ig.share_S.tolist()
    assert body["views"][0]["kinds"] == [["thought", 2], ["answer", 1]]
    assert random["consistency"] == 0.0  # the same all along


def test_a_trace_that_a_measure_lacks_says_so():
    first, second = entry_of(["a", "b", "c"]), entry_of(["d", "e", "f"], id="u")
    _, data = read(page([first._replace(views={}), second]))
    assert data["index"]["measures"] == ["ig", "random", "tokens"]
    assert data["trace-0"]["views"] == [None] * 3


def test_the_command_writes_a_page_of_saved_files(tmp_path, capsys):
    from segrl import toy

    sampled = toy.sample_traces(2, seed=1)
    save_traces(sampled, tmp_path / "traces.parquet")
    traces = f"traces={tmp_path / 'traces.parquet'}"
    for measure in ("length", "position"):
        assert main(["select", traces, f"out={tmp_path / measure}.parquet", f"measure={measure}"]) == 0
    files = f"selections=[{tmp_path / 'length.parquet'},{tmp_path / 'position.parquet'}]"
    assert main(["report", traces, files, f"out={tmp_path / 'new' / 'report.html'}", "tau=0.5"]) == 0
    assert "2 traces, 2 right, measures: length, position" in capsys.readouterr().out
    _, data = read((tmp_path / "new" / "report.html").read_text(encoding="utf-8"))
    assert data["index"]["settings"]["tau"] == 0.5
    assert data["trace-0"]["planted"][-1] == "answer"
    of_contrast = compose("select", [traces, f"out={tmp_path / 'position.parquet'}", "measure=mistake"])
    contrast = how_selected(of_contrast, sampled)
    (tmp_path / "position.json").write_text(contrast)
    assert main(["report", traces, files, f"out={tmp_path / 'report.html'}"]) == 0
    views = read((tmp_path / "report.html").read_text(encoding="utf-8"))[1]["trace-0"]["views"]
    assert ["contrast" in view for view in views] == [False, True]
    save_traces(toy.sample_traces(1, seed=9), tmp_path / "others.parquet")
    others = ["report", f"traces={tmp_path / 'others.parquet'}", files, f"out={tmp_path / 'r.html'}"]
    assert main(others) == 2
    assert "length has no selection of any of these 1 traces" in capsys.readouterr().err
