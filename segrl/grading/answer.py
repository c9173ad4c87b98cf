"""What a response answers: the last balanced box after its last ``</think>``."""

from __future__ import annotations

import re

from segrl.text.boxed import boxed_spans
from segrl.text.prompting import THINK_END, opens_thought

THINKING = ("auto", "required", "none")
_BOX = re.compile(r"\\f?boxed\s*\{$")
_JOINT = re.compile(
    r"(?:\s|\$|\\[()\[\]]|\\q?quad|\\[,;: ]|\\(?:text|mathrm|textbf)\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b|,|;)*"
)
_SAYS = re.compile(r"and|or|,(?!\\)|;")
MOST_BOXES = 32


def extract(response: str, thinking: str = "auto", prompt: str = "", finish: str | None = None) -> str | None:
    """The final answer, or None. Where thinking is required, a box before ``</think>`` is a draft, not an answer.

    ``auto`` requires it when the text holds either tag, or the prompt has already opened the thought. A generation cut
    off (``finish="length"``) inside a thought that its prompt opened has no answer, whatever ``thinking`` says.
    """
    if thinking not in THINKING:
        raise ValueError(f"thinking={thinking!r}, expected one of {THINKING}")
    opened = opens_thought(prompt)
    tagged = thinking == "auto" and ("<think>" in response or THINK_END in response)
    if thinking == "required" or tagged or (opened and (thinking == "auto" or finish == "length")):
        if THINK_END not in response:
            return None
        response = response.rpartition(THINK_END)[2]
    return last_answer(response)


def last_answer(text: str, adjacent: bool = False) -> str | None:
    r"""What the last box holds; of boxes that commas, ``and`` or ``or`` join, all: ``\boxed{2} \text{ or } \boxed{1}``.

    With ``adjacent``, boxes beside each other count as joined too.
    """
    spans = boxed_spans(text)
    if not spans:
        return None
    answers = [text[slice(*spans[-1])].strip()]
    for before, span in zip(spans[-2::-1], spans[:0:-1], strict=True):
        opening = _BOX.search(text, before[1] + 1, span[0])
        between = text[before[1] + 1 : opening.start()] if opening and span[0] - before[1] < 80 else "."
        if not _JOINT.fullmatch(between) or not (adjacent or _SAYS.search(between)) or len(answers) == MOST_BOXES:
            break
        answers.append(text[slice(*before)].strip())
    return ", ".join(reversed(answers))
