r"""One spelling for an answer that LaTeX, Unicode or plain text writes in many.

Words come out as ``\w{word}``, everything else as the LaTeX that ``parser.py`` knows. Runs of letters are the hard
part: ``xy`` is a product, ``cm`` after a number a unit, ``even`` a word.
"""

from __future__ import annotations

import re
import unicodedata

from segrl.grading.units import UNIT_NAMES
from segrl.grading.vocabulary import (
    CHARACTERS,
    CURRENCIES,
    FUNCTIONS,
    NUMBERS,
    ORDINALS,
    SHORT_WORDS,
    SUBSCRIPTS,
    SUPERSCRIPTS,
    SYNONYMS,
    names,
)

_NOTHING = re.compile(
    r"\\(?:left|right|[bB]ig{1,2}[lrm]?|displaystyle|textstyle|limits|nolimits|mathopen|mathclose|quad|qquad|rm|bf|it"
    r"|hfill|newline|angle|triangle|thinspace|enspace|medspace)(?![A-Za-z])\.?"
)
_WRAPPERS = re.compile(
    r"\\(text(?:bf|it|rm|sf|tt|normal|up|sl)?|mbox|hbox|mathrm|mathsf|mathit|mathtt|operatorname\*?|mathbf|boldsymbol"
    r"|bm|mathcal|mathfrak|mathscr|boxed|fbox|underline|emph|pmb|tag|hspace\*?|phantom|color|mathbb|unit|ensuremath)"
    r"\s*(?=\{|[A-Za-z0-9])"
)
_STYLES = names("mathbf boldsymbol bm mathcal mathfrak mathscr boxed fbox underline pmb ensuremath")
_DROPPED = names("tag hspace hspace* phantom color")
_LETTERS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_WORD = re.compile(r"(?<![\\A-Za-z])(?<!\\w\{)[A-Za-z]+")
_NOON = re.compile(r"\b([ap])\.\s?m\.?(?![A-Za-z])|(?<=\d)\s*([ap])m\b", re.IGNORECASE)
_THIN_SPACE = re.compile(r"(?<=\d)(?:\{,\}|,\s*\\!|\\!|\\,|\\:|\\;|\\ |~)\s*(?=\d{3}(?!\d))")
_ORDINAL = re.compile(r"(?<=\d)\s*\^?\s*\{?\s*\\w\{(?:th|st|nd|rd)\}\s*\}?")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\overline\s*\{(\d+)\}")
_SPACED_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d/]|\s*\\frac)")
_STRAY_STOP = re.compile(r"(?<!\.)\.(?=\s*(?:[\])}]|\\\}))")
_BASE_IN_WORDS = re.compile(r"_\s*\{?\s*\\w\{([a-z]+)\}\s*\}?")
_ARRAY = re.compile(r"\\(begin|end)\s*\{array\}(?:\s*\{[lcr| ]*\})?")
_ESCAPES = {"\f": "\\f", "\b": "\\b", "\t": "\\t", "\r": "\\r", "\v": "\\v"}


def tidy(text: str) -> str:
    """The answer in one spelling, with the same meaning."""
    text = _spacing(_characters(_repair(text)))
    text = _NOON.sub(lambda m: f" \\w{{{(m[1] or m[2]).lower()}m}} ", text)
    text = re.sub(r"\\([A-Za-z]+=?)", _synonym, _unwrap(text))
    text = _BASE_IN_WORDS.sub(lambda m: f"_{{{NUMBERS.get(m[1], m[1])}}}", text)
    text = _ARRAY.sub(r"\\\1{matrix}", text)
    text = _LETTERS.sub(lambda run: _letters(run[0], text[: run.start()].rstrip()), text)
    text = _REPEATING.sub(_repeating, _ORDINAL.sub(" ", text))
    text = _SPACED_THOUSANDS.sub(lambda m: m[0].replace(" ", ""), text)
    text = re.sub(r"^\s*(?:\\approx|=)", "", _STRAY_STOP.sub("", text))
    return _ends(re.sub(r"\s+", " ", text))


def key(tidied: str) -> str:
    """A text without spaces and braces, equal for two answers of the same text; spaces between digits count."""
    bare = re.sub(r"\\w\{([^{}]*)\}", r"\1", tidied)
    bare = re.sub(r"(?<=\d) (?=[\d.])", "_", bare).replace(" ", "")
    return re.sub(r"\{([A-Za-z0-9])\}", r"\1", bare)


def words(tidied: str) -> list[str]:
    """The words, numbers and signs of an answer, words in lower case."""
    pairs = re.findall(r"\\w\{([^{}]*)\}|(\\?[A-Za-z]+|\d+(?:\.\d+)?|[^\s\w])", tidied)
    return [word.lower() or other for word, other in pairs if (word or other) not in ",.;:!\"'{}"]


def has_words(tidied: str) -> bool:
    return "\\w{" in tidied


def _repair(text: str) -> str:
    r"""The text without careless escapes (``\\frac`` for ``\frac``, a form feed for ``\f``) and Markdown's bold."""
    text = re.sub("([\f\b\t\r\v])(?=[A-Za-z])", lambda m: _ESCAPES[m[1]], text)
    if "\\begin" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z{}$%])", r"\\", text)
    return text.replace("**", "") if re.match(r"\s*\*\*", text) else text


def _characters(text: str) -> str:
    if text.isascii():
        return text
    for sign, name in CURRENCIES.items():
        text = text.replace(sign, f"\\w{{{name}}}")
    text = re.sub(r"(?<=\d)\s*([kcm]?m|ft|in)(?=[²³])", r"\\w{\1}", text)  # plain text, where m² is an area
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", lambda m: "^{" + m[0].translate(SUPERSCRIPTS) + "}", text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉ₙₖ]+", lambda m: "_{" + m[0].translate(SUBSCRIPTS) + "}", text)
    text = re.sub("[¼½¾⅐-⅞]", _vulgar, text)
    return unicodedata.normalize("NFKC", text.translate(CHARACTERS))


def _vulgar(fraction: re.Match) -> str:
    above, below = unicodedata.normalize("NFKC", fraction[0]).split("⁄")
    return f"\\frac{{{above}}}{{{below}}}"


def _spacing(text: str) -> str:
    text = text.replace("\\$", "\\w{dollar}").replace("$", " ")
    if re.match(r"\s*\\[(\[]", text):
        text = re.sub(r"\\[()\[\]]", " ", text)
    text = _THIN_SPACE.sub("", text)
    text = re.sub(r"(?<!\\)\\(?:(?=\s)|[,;:!>])|~|&nbsp;", " ", text)
    return _NOTHING.sub(" ", text)


def _unwrap(text: str) -> str:
    r"""``\text{cm}`` is ``\w{cm}``; ``\mathbf{x}`` is ``x``."""
    unwrapped = ""
    while wrapper := _WRAPPERS.search(text):
        name, (inside, after) = wrapper[1], _argument(text, wrapper.end())
        unwrapped += text[: wrapper.start()]
        if name == "mathbb":
            unwrapped += f"\\{inside.strip()} "
        elif name in _STYLES:
            after = f" {inside} {after}" if name in ("boxed", "fbox") else inside + after
        elif name not in _DROPPED:
            after = _WORD.sub(_marked, inside) + after
        text = after
    return unwrapped + text


def _argument(text: str, start: int) -> tuple[str, str]:
    """What the braces at ``start`` hold, and what follows them; without braces, one character."""
    if text[start] != "{":
        return text[start], text[start + 1 :]
    depth = 0
    for at in range(start, len(text)):
        if text[at] in "{}" and text[at - 1] != "\\":
            depth += 1 if text[at] == "{" else -1
            if not depth:
                return text[start + 1 : at], text[at + 1 :]
    return text[start + 1 :], ""


def _marked(word: re.Match) -> str:
    return f"\\{word[0]} " if word[0] in FUNCTIONS else f"\\w{{{word[0]}}} "


def _synonym(command: re.Match) -> str:
    if command[1] == "w":
        return command[0]
    name = SYNONYMS.get(command[1], command[1])
    return f"\\{name} " if name.isalpha() else f"{name} "


def _letters(letters: str, before: str) -> str:
    """A run of letters outside any wrapper, marked as a function or a word; a product of variables as it is."""
    if re.search(r"\\(?:w|begin|end)\s*\{$", before):
        return letters
    if letters in FUNCTIONS or letters in ("pi", "infty", "infinity", "theta", "alpha", "beta"):
        return f"\\{letters} ".replace("infinity", "infty")
    glued = re.match(r"(and|or)(?=[A-Z])", letters)
    if glued and before[-1:] in "0123456789)}":  # "1orW(x)"
        return f"\\w{{{glued[1]}}} {letters[glued.end() :]}"
    return f"\\w{{{letters}}} " if _is_word(letters, before) else letters


def _is_word(letters: str, before: str) -> bool:
    low = letters.lower()
    if low in SHORT_WORDS and not letters.isupper():
        return True
    if before[-1:].isdigit() and low in UNIT_NAMES | ORDINALS:
        return True
    in_alphabet = all(ord(b) - ord(a) == 1 for a, b in zip(low, low[1:], strict=False))  # abcd is a product
    return len(letters) > 3 and not in_alphabet and not letters.isupper() and any(c in "aeiouy" for c in low)


def _repeating(decimal: re.Match) -> str:
    whole, head, cycle = decimal[1] or "0", decimal[2], decimal[3]
    above = int(whole + head + cycle) - int(whole + head)
    return f"\\frac{{{above}}}{{{'9' * len(cycle)}{'0' * len(head)}}}"


def _ends(text: str) -> str:
    """The text without the full stop, comma or stray sign that ends its sentence."""
    before = None
    while before != text:
        before, text = text, text.strip().rstrip(",;")
        text = re.sub(r"(?:(?<!\.)\.|\^|(?<!\\)\\|\\\\)$", "", text)
    return text
