r"""The first thought that reaches the answer: the rival "first correct solution" of Chen et al. (2024) needs it.

A thought reaches the answer where it concludes it, not where the number merely occurs ("we have 3 terms"): in a box, as
"the answer is 3", behind "therefore", as what its last equation comes to, or as what its last sentence comes to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from segrl.grading.verdict import cheap
from segrl.text.boxed import boxed_spans
from segrl.types import Segments, TokenisedTrace

_SENTENCE = re.compile(r"(?<=[.!?])[*)\s]*\s|\n+")
_ANSWERED = re.compile(r"\banswer\b(?:[^.=\n]*?\b(?:is|be|equals|comes to|of)\b|\W*:)", re.IGNORECASE)
_THEREFORE = re.compile(r"\b(?:therefore|thus|hence)\b", re.IGNORECASE)
_COMES_TO = re.compile(r"=|\b(?:is|are|be|equals|makes|gives|get|yields|comes to|equal to)\b", re.IGNORECASE)
_MARKS = re.compile(r"(?:[\s$*]|\\[(\[]|\\displaystyle)+")  # between "is" and the value
_VALUE_ENDS = re.compile(r"\$|\\[)\]]|[.,;!?]?(?:\s|$)")
_GOES_ON = re.compile(r"\w|[.,]\d|\s*[-+*/^=]|\s*\\(?:times|cdot)")  # what stood before it is not the whole value


def first_concluding(trace: TokenisedTrace, segments: Segments) -> int:
    """The first segment that concludes the answer; the last one where none does."""
    if not trace.answer:
        raise ValueError(f"trace {trace.id!r} has no answer, so no segment can conclude it first")
    concluded = enumerate(concluding(trace, segments, trace.answer.strip()))
    return next((s for s, concludes_it in concluded if concludes_it), len(segments) - 1)


def concluding(trace: TokenisedTrace, segments: Segments, answer: str) -> Iterator[bool]:
    """Whether each segment comes to ``answer``."""
    for piece in segments.slices:
        start, end = int(trace.offsets_T[piece.start, 0]), int(trace.offsets_T[piece.stop - 1, 1])
        yield concludes(trace.response[start:end], answer)


def concludes(text: str, answer: str) -> bool:
    """Whether a thought concludes ``answer``: the same text or the same value."""
    if any(_same(text[slice(*span)], answer) for span in boxed_spans(text)):
        return True
    sentences = [sentence for sentence in _SENTENCE.split(text) if sentence and sentence.strip()]
    for sentence in sentences:
        if any(_begins(sentence[match.end() :], answer) for match in _ANSWERED.finditer(sentence)):
            return True
        if _THEREFORE.search(sentence) and _ends_up(sentence, answer):
            return True
    equations = [sentence for sentence in sentences if "=" in sentence]
    return any(_ends_up(sentence, answer) for sentence in [*equations[-1:], *sentences[-1:]])


def _ends_up(sentence: str, answer: str) -> bool:
    """Whether the last "=", "is" or "gives" of a sentence is followed by the answer."""
    matches = list(_COMES_TO.finditer(sentence))
    return bool(matches) and _begins(sentence[matches[-1].end() :], answer)


def _begins(tail: str, answer: str) -> bool:
    """Whether the answer stands at the beginning of a text, not as a part of a longer number, word or term."""
    if marks := _MARKS.match(tail):
        tail = tail[marks.end() :]
    if tail.startswith(answer) and not _GOES_ON.match(tail, len(answer)):
        return True
    end = _VALUE_ENDS.search(tail)
    return end is not None and not _GOES_ON.match(tail, end.start()) and _same(tail[: end.start()], answer)


def _same(text: str, answer: str) -> bool:
    return (cheap(answer, text) or (False,))[0]
