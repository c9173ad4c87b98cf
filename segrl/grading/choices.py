r"""Multiple choice: which letter an answer names, in ``(C)``, ``\text{C}``, ``C.``, ``Option C``, ``(C) 12``."""

from __future__ import annotations

import re

_ALONE = re.compile(r"(?:(?:option|choice|answer)\s*:?\s*)?[(\[{]?\s*([A-J])\s*[)\]}]?\s*[.:]?", re.IGNORECASE)
_LABELLED = re.compile(
    r"(?:(?:option|choice|answer)\s*:?\s*)?(?:\(\s*([A-J])\s*\)|([A-J])\s*[).:](?!\s*[A-Z0-9]\s*=))\s*\S.*",
    re.DOTALL | re.IGNORECASE,
)
_SAID = re.compile(r".*\banswer\s+is:?\s*\(?([A-J])\b(?!\)?\s*(?:[=+*/^,-]|or\b|and\b)).*", re.DOTALL)
_NAMED = re.compile(r"([A-J])\s+[A-Z][a-z]+.*", re.DOTALL)


def choice(text: str) -> tuple[str, str] | None:
    """The letter an answer names and what follows it, or None. ``text`` is tidied."""
    bare = re.sub(r"\\w\{([^{}]*)\}", r"\1", text).strip()
    if found := _ALONE.fullmatch(bare):
        return found[1], ""
    if found := _LABELLED.fullmatch(bare) or _SAID.fullmatch(bare) or _NAMED.fullmatch(bare):
        which = 1 if found[1] else 2
        rest = bare[found.end(which) :].strip(" ).:")
        return None if re.search(r"(?<![A-Za-z])[A-J]\s*\)", rest) else (found[which], rest)
    return None


def same_choice(gold: str, pred: str) -> bool | None:
    """Whether two answers name the same letter; None where the gold is no choice, or the prediction is none."""
    expected, given = choice(gold), choice(pred)
    if expected is None or not expected[0].isupper():
        return None
    if given is None or (expected[1] and given[1]):
        return None
    return expected[0] == given[0].upper()
