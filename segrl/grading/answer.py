r"""The text of an answer: how it is taken from a response, whether computer algebra may read it, which choice it names.

The answer of a response is its last balanced box after its last ``</think>``; where it ended without ``</think>``, its
last balanced box.
"""

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

LONGEST = 1000  # characters
DEEPEST = 20  # brackets
_SUSPECT = re.compile(
    r"\^\s*[{(][^{}]*\d[)\]]*\s*\^|\^\s*\d+\s*\^"  # a tower of numbers
    r"|\d{3,}\s*[)}\]]*\s*!|[)}\]]\s*!|!\s*!|\d!\s*[)\]}]*\s*[!^]"  # factorials of what may be large
    r"|\\[dt]?binom\s*\{?\s*\d{4,}|\\choose|\\Gamma|\\Beta|\\zeta\s*[({]"
    r"|\^\s*\{?\s*\(?\s*-?\s*\d{4,}"  # huge powers
    r"|\d{6,}\s*[)}]*\s*\^"
    r"|\d{400,}|__"
)

# A letter alone, a letter before a text, a letter in a sentence, a letter before a name.
_ALONE = re.compile(r"(?:(?:option|choice|answer)\s*:?\s*)?[(\[{]?\s*([A-J])\s*[)\]}]?\s*[.:]?", re.IGNORECASE)
_LABELLED = re.compile(
    r"(?:(?:option|choice|answer)\s*:?\s*)?(?:\(\s*([A-J])\s*\)|([A-J])\s*[).:](?!\s*[A-Z0-9]\s*=))\s*\S.*",
    re.DOTALL | re.IGNORECASE,
)
_SAID = re.compile(r".*\banswer\s+is:?\s*\(?([A-J])\b(?!\)?\s*(?:[=+*/^,-]|or\b|and\b)).*", re.DOTALL)
_NAMED = re.compile(r"([A-J])\s+[A-Z][a-z]+.*", re.DOTALL)


def extract(response: str, thinking: str = "auto", prompt: str = "", finish: str | None = None) -> str | None:
    """The final answer, or None: a box before ``</think>`` is a draft. The table of cases is in docs/concepts.md.

    ``auto`` takes what follows the last ``</think>``. Where nothing follows, as in models trained on traces with the
    tag after the whole solution, a response that ended by itself (``finish="stop"``) answers with its last box. Without
    the tag, a response answers with its last box if it ended by itself or never opened a thought; one that is still in
    its thought has no answer. ``required`` takes nothing without the tag. ``none`` takes any box, unless the response
    was cut off (``finish="length"``) inside a thought that its prompt opened.
    """
    if thinking not in THINKING:
        raise ValueError(f"thinking={thinking!r}, expected one of {THINKING}")
    if thinking == "none" and not (opens_thought(prompt) and finish == "length"):
        return last_answer(response)
    solution, closed, answering = response.rpartition(THINK_END)
    if thinking == "auto" and finish == "stop" and not answering.strip():
        return last_answer(solution)
    unfinished = finish != "stop" and (opens_thought(prompt) or "<think>" in response)
    if not closed and (thinking == "required" or unfinished):
        return None
    return last_answer(answering)


def last_answer(text: str, adjacent: bool = False) -> str | None:
    r"""The content of the last box, or of all last boxes that commas, ``and`` or ``or`` join: ``\boxed{2}, \boxed{1}``.

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


def too_long(text: str) -> bool:
    """Whether a text is too long to be read; it is then compared as it stands."""
    return len(text) > LONGEST


def explosive(text: str) -> bool:
    """Whether a text may cost a computer algebra too much: towers, large factorials, huge powers, deep nesting."""
    return _deep(text) or bool(_SUSPECT.search(text))


def _deep(text: str) -> bool:
    depth = deepest = 0
    for character in text:
        depth += (character in "{([") - (character in "})]")
        deepest = max(deepest, depth)
    return deepest > DEEPEST


def choice(tidied: str) -> tuple[str, str] | None:
    r"""The letter an answer names and what follows it, or None: ``(C)``, ``\text{C}``, ``Option C``, ``(C) 12``."""
    bare = re.sub(r"\\w\{([^{}]*)\}", r"\1", tidied).strip()
    if match := _ALONE.fullmatch(bare):
        return match[1], ""
    if match := _LABELLED.fullmatch(bare) or _SAID.fullmatch(bare) or _NAMED.fullmatch(bare):
        group = 1 if match[1] else 2
        rest = bare[match.end(group) :].strip(" ).:")
        return None if re.search(r"(?<![A-Za-z])[A-J]\s*\)", rest) else (match[group], rest)
    return None


def same_choice(gold: str, pred: str) -> bool | None:
    """Whether two tidied answers name the same letter; None where the gold is no choice, or the prediction is none."""
    expected, given = choice(gold), choice(pred)
    if expected is None or not expected[0].isupper():
        return None
    if given is None or (expected[1] and given[1]):
        return None
    return expected[0] == given[0].upper()
