"""A shortened trace: what is kept, whole, and set off as it was."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from testkit.tiny import byte_level_tokenizer

import segrl
from segrl import Segments, Selection, Trace, toy
from segrl.importance import token_scores
from segrl.sft.pruning import prune

TEXT = "Okay, 3.\n\nWait, (no)\n\nAnother, 4.\n\nHowever, 7.\n</think>\n\nIt is \\boxed{7}. "


def pruned(text, *kept):
    trace = segrl.tokenize(Trace("t", "p", text, "7"), byte_level_tokenizer())
    segments = segrl.segment(trace)
    keep_S = torch.tensor([s in kept for s in range(len(segments))])
    reasons = tuple("strength" if keep else "dropped" for keep in keep_S.tolist())
    return prune(trace, segments, Selection(keep_S, reasons)).response


def test_blank_lines_stay_wherever_the_tokenizer_cuts():
    """``.\n\n`` is one token, which ends a segment; ``)`` and ``\n\n`` are two, and the blank line begins the next."""
    trace = segrl.tokenize(Trace("t", "p", TEXT, "7"), byte_level_tokenizer())
    starts = [int(trace.offsets_T[b, 0]) for b in segrl.segment(trace).boundaries[:-1]]
    assert [TEXT[start : start + 2] for start in starts] == ["Ok", "Wa", "\n\n", "Ho", "</"]
    assert pruned(TEXT, 0, 2, 4) == "Okay, 3.\n\nAnother, 4.\n</think>\n\nIt is \\boxed{7}. "
    assert pruned(TEXT, 0, 1, 3, 4) == "Okay, 3.\n\nWait, (no)\n\nHowever, 7.\n</think>\n\nIt is \\boxed{7}. "
    assert pruned(TEXT, 2, 3, 4) == "Another, 4.\n\nHowever, 7.\n</think>\n\nIt is \\boxed{7}. "
    assert pruned(TEXT, 0, 1) == "Okay, 3.\n\nWait, (no)"
    assert pruned(TEXT, 0, 1, 2, 3, 4) == TEXT


def test_what_opens_the_thought_stays():
    assert pruned("<think>\nOkay, 3.\n\nWait, 7.\n</think> 7", 1, 2) == "<think>\nWait, 7.\n</think> 7"
    assert pruned("\n<think>\n\nOkay, 3.\n\nWait, 7.", 0, 1) == "\n<think>\n\nOkay, 3.\n\nWait, 7."


PIECE = st.sampled_from(["Wait, a.", "Wait, b)", "However, c 1", "Another: d", "Alternatively, e.\n\nfor f."])


@given(st.lists(PIECE, min_size=1, max_size=6), st.data())
def test_pruning_is_joining_the_kept_paragraphs(pieces, data):
    text = "\n\n".join(pieces) + "\n</think> \\boxed{7}"
    keep = [s for s in range(len(pieces)) if data.draw(st.booleans())] or [0]
    joined = "\n\n".join(pieces[s] for s in keep)
    assert pruned(text, *keep, len(pieces)) == joined + "\n</think> \\boxed{7}"


def test_a_pruned_trace_is_a_trace_to_tokenise_anew():
    tokenizer = byte_level_tokenizer()
    trace = segrl.tokenize(toy.sample_traces(3, seed=1)[2], tokenizer)
    segments = segrl.segment(trace)
    selection = segrl.select(segrl.score(segrl.Evidence(trace), segments, "length"), tau=0.5)
    shorter = prune(trace, segments, selection)
    assert not shorter.tokenised
    assert (shorter.id, shorter.answer) == (trace.id, trace.answer)
    assert shorter.meta["kept_segments"] == selection.keep_S.nonzero().flatten().tolist()
    again = segrl.tokenize(shorter, tokenizer)
    assert len(segrl.segment(again)) == int(selection.keep_S.sum()) < len(segments)
    assert again.response.endswith(f"\\boxed{{{trace.answer}}}")


def test_tokens_are_not_pruned():
    trace = segrl.tokenize(Trace("t", "p", "Okay, 3 and 4", "7"), byte_level_tokenizer())
    segments = Segments((0, trace.tokens))
    selection = segrl.select(token_scores(torch.rand(trace.tokens), segments))
    with pytest.raises(ValueError, match=r"got a selection of \d+ for 1 segments. A token measure's selection"):
        prune(trace, segments, selection)
