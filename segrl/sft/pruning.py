"""Selection -> a shorter trace: the text of the kept segments ([IG] section 4.5). Masking keeps all text instead."""

from __future__ import annotations

import re

from segrl.types import Segments, Selection, TokenisedTrace, Trace

HEAD = re.compile(r"\s*(<think>\s*)?")


def prune(trace: TokenisedTrace, segments: Segments, selection: Selection) -> Trace:
    """The trace with the text of its kept segments, the answer among them; to be tokenised anew.

    A kept segment has the white space before it that it has in the whole trace, on either side of the cut: a dropped
    segment takes no blank line with it and leaves none behind. A ``<think>`` that opens the response stays.
    """
    if len(selection) != len(segments):
        raise ValueError(
            f"trace {trace.id!r}: got a selection of {len(selection)} for {len(segments)} segments. A token measure's "
            "selection masks, it does not prune: text with tokens left out is no trace"
        )
    head = HEAD.match(trace.response)
    assert head is not None
    written, space, keep = [head[0]], "", False
    for (start, end), kept in zip(_spans(trace, segments), selection.keep_S.tolist(), strict=True):
        piece = trace.response[max(start, head.end()) : end]
        space += piece[: len(piece) - len(piece.lstrip())]
        if not piece.strip():
            continue
        if kept:
            written += [space if len(written) > 1 else "", piece.strip()]
        space, keep = piece[len(piece.rstrip()) :], kept
    return Trace(
        id=trace.id,
        problem=trace.problem,
        response="".join(written) + (space if keep else ""),
        answer=trace.answer,
        meta={**trace.meta, "kept_segments": selection.keep_S.nonzero().flatten().tolist()},
    )


def _spans(trace: TokenisedTrace, segments: Segments) -> list[tuple[int, int]]:
    """The characters of each segment: from the start of its first token to the start of the next segment's."""
    starts = [int(trace.offsets_T[boundary, 0]) for boundary in segments.boundaries[:-1]]
    return list(zip(starts, [*starts[1:], len(trace.response)], strict=True))
