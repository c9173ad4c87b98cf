"""Trace -> segments: where a long response is cut ([IG] 2.1 and C.2, and the rivals' ways).

A segmenter is a function. A segmenter of text takes ``text`` and returns the characters at which a new segment starts;
a segmenter of tokens takes ``trace`` (and ``evidence``) and returns tokens. A user's function of either kind is named
``segmenter="package.module:function"``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from segrl.resolving import check_options, resolve
from segrl.tokenization import thinking_tokens
from segrl.types import Evidence, Segments, TokenisedTrace

KEYWORDS = (
    "Wait",
    "Alternatively",
    "But wait",
    "But alternatively",
    "But just to",
    "However",
    "Not sure",
    "Going back",
    "Backtrack",
    "Trace back",
    "Another",
)
RETRO_SEARCH = (
    "Wait",
    "Alternatively",
    "But",
    "However",
    "Hmmm",
    "Hmm",
    "Not sure",
    "Going back",
    "Backtrack",
    "Trace back",
    "Another",
)
SENTENCE_END = re.compile(r"[.!?\n]\s*$")


def split(text: str, segmenter: str | Callable = "keywords", **options) -> list[str]:
    """The pieces of ``text``; joined again they are the text. An empty text has no pieces."""
    cut = _find(segmenter)
    if not _reads_text(cut):
        raise ValueError(f"the segmenter {segmenter!r} cuts between tokens; use segrl.segment on a tokenised trace")
    starts = _inside(cut(text, **options), len(text))
    return [text[a:b] for a, b in zip([0, *starts], [*starts, len(text)], strict=True) if b > a]


def segment(
    trace: TokenisedTrace,
    segmenter: str | Callable = "keywords",
    evidence: Evidence | None = None,
    *,
    min_tokens: int = 1,  # a shorter segment joins the one before it
    max_segments: int | None = None,  # join the shortest neighbours until there are at most this many
    **options,
) -> Segments:
    """The segments of a response. What follows the first ``</think>`` is a single last segment of kind ``answer``.

    A token with a boundary inside it belongs to the segment in which it starts; a part of ``</think>`` to the answer.
    """
    if trace.tokens == 0:
        raise ValueError(f"trace {trace.id!r} has an empty response: there is nothing to segment")
    thinking = thinking_tokens(trace)
    cut = _find(segmenter)
    check_options(f"segmenter={segmenter!r}", cut, [trace], options)
    if _reads_text(cut):
        starts = _tokens_at(trace, _inside(cut(trace.response, **options), len(trace.response)))
    else:
        starts = cut(trace, evidence=evidence, **options)
    boundaries = [0, *_inside(starts, thinking), thinking]
    boundaries = _merge_short(boundaries, min_tokens)
    boundaries = _merge_to(boundaries, max_segments)
    return _segments(boundaries, trace.tokens)


def _segments(boundaries: list[int], tokens: int) -> Segments:
    """Thoughts between the boundaries, and behind the last boundary the answer, if tokens are left."""
    thoughts = [b for b in dict.fromkeys(boundaries) if b < tokens]
    kinds = ["thought"] * (len(thoughts) - (boundaries[-1] < tokens))
    return Segments((*thoughts, tokens), (*kinds, *["answer"] * (len(thoughts) - len(kinds))))


# --- segmenters that read text: characters at which a segment starts -------------------------------------------------


def keywords(
    text: str, words: Sequence[str] = KEYWORDS, word_boundary: bool = False, crlf: bool = False
) -> Iterable[int]:
    """Before each blank line that a transition keyword follows. ``word_boundary`` keeps "Waiting" from splitting."""
    blank_line = r"(?:\r?\n){2}" if crlf else r"\n\n"
    longest_first = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    end = r"\b" if word_boundary else ""
    return regex(text, rf"{blank_line}(?:{longest_first}){end}")


def retro_search(text: str, **options) -> Iterable[int]:
    return keywords(text, RETRO_SEARCH, **options)


def paragraphs(text: str) -> Iterable[int]:
    """After each blank line."""
    return [match.end() for match in re.finditer(r"(?:\r?\n){2,}", text)]


def regex(text: str, pattern: str) -> Iterable[int]:
    """Before each match of ``pattern``."""
    try:
        return [match.start() for match in re.finditer(pattern, text)]
    except re.error as error:
        raise ValueError(f"pattern={pattern!r} is no regular expression: {error}") from error


# --- segmenters that read tokens: tokens at which a segment starts ---------------------------------------------------


def fixed(trace: TokenisedTrace, evidence: Evidence | None = None, tokens: int = 64) -> Iterable[int]:
    """Every ``tokens`` tokens."""
    if tokens < 1:
        raise ValueError(f"segmenter 'fixed': tokens={tokens}, expected 1 or more")
    return range(0, trace.tokens, tokens)


def entropy(
    trace: TokenisedTrace, evidence: Evidence | None = None, window: int = 16, threshold: float = 1.0
) -> Iterable[int]:
    """After a sentence's end, where the mean entropy of the next ``window`` tokens rises above that of the last.

    The rise is z-scored over the response; ``threshold`` is in standard deviations ([ACPO], as far as it is public).
    """
    if window < 1:
        raise ValueError(f"segmenter 'entropy': window={window}, expected 1 or more")
    entropy_T = _stream(evidence, "entropy_T", "entropy")
    sums = torch.cat([torch.zeros(1, dtype=torch.float64), entropy_T.double().cumsum(0)])
    token = torch.arange(1, trace.tokens)
    before, after = (token - window).clamp_min(0), (token + window).clamp_max(trace.tokens)
    rise = (sums[after] - sums[token]) / (after - token) - (sums[token] - sums[before]) / (token - before)
    z = (rise - rise.mean()) / rise.std().clamp_min(1e-12) if len(rise) > 1 else torch.zeros_like(rise)
    return [t for t in token[z > threshold].tolist() if _ends_sentence(trace, t)]


def probability(
    trace: TokenisedTrace, evidence: Evidence | None = None, below: float = 0.9, cutpoints: int = 5
) -> Iterable[int]:
    """After every ``cutpoints`` tokens with a probability below ``below`` (SPO's adaptive partition)."""
    if cutpoints < 1:
        raise ValueError(f"segmenter 'probability': cutpoints={cutpoints}, expected 1 or more")
    logp_T = _stream(evidence, "logp_T", "probability")
    uncertain = (logp_T.exp() < below).nonzero().flatten().tolist()
    return uncertain[cutpoints::cutpoints]


def auto(
    trace: TokenisedTrace, evidence: Evidence | None = None, longest: int = 512, shortest: int = 32
) -> Iterable[int]:
    """For rollouts: at keywords, and in pieces over ``longest`` tokens also at paragraphs of ``shortest`` or more."""
    pieces = [0, *_inside(_tokens_at(trace, keywords(trace.response)), trace.tokens), trace.tokens]
    paragraph_starts = torch.tensor(_tokens_at(trace, paragraphs(trace.response)), dtype=torch.long)
    starts: list[int] = []
    for a, b in zip(pieces, pieces[1:], strict=False):
        inside = paragraph_starts[(paragraph_starts > a) & (paragraph_starts < b)].unique().tolist()
        starts += _accumulate([a, *inside, b], shortest) if b - a > longest else [a]
    return starts


SEGMENTERS: dict[str, Callable] = {
    "keywords": keywords,
    "retro_search": retro_search,
    "paragraphs": paragraphs,
    "regex": regex,
    "fixed": fixed,
    "entropy": entropy,
    "probability": probability,
    "auto": auto,
}


# --- from characters to tokens, and merging --------------------------------------------------------------------------


def _tokens_at(trace: TokenisedTrace, chars: Iterable[int]) -> list[int]:
    """For each character the first token that starts at it or behind it."""
    starts = trace.offsets_T[:, 0].contiguous()
    return torch.searchsorted(starts, torch.tensor(list(chars), dtype=torch.long)).tolist()


def _inside(starts: Iterable[int], end: int) -> list[int]:
    """The distinct starts between 0 and ``end``, in order."""
    return sorted({start for start in starts if 0 < start < end})


def _merge_short(boundaries: list[int], min_tokens: int) -> list[int]:
    """The boundaries after each segment under ``min_tokens`` is merged into the previous, the first into the next."""
    if min_tokens < 1:
        raise ValueError(f"min_tokens={min_tokens}, expected 1 or more")
    merged = [boundaries[0]]
    for start, end in zip(boundaries[1:], boundaries[2:], strict=False):
        if end - start >= min_tokens and start - merged[0] >= min_tokens:
            merged.append(start)
    return [*merged, boundaries[-1]]


def _accumulate(boundaries: list[int], min_tokens: int) -> list[int]:
    """The starts that remain when neighbours are joined, from the front, until each piece has ``min_tokens``."""
    starts = [boundaries[0]]
    for start in boundaries[1:-1]:
        if start - starts[-1] >= min_tokens and boundaries[-1] - start >= min_tokens:
            starts.append(start)
    return starts


def _merge_to(boundaries: list[int], max_segments: int | None) -> list[int]:
    """The boundaries after the shortest pair of neighbours is merged until at most ``max_segments`` are left."""
    if max_segments is not None and max_segments < 1:
        raise ValueError(f"max_segments={max_segments}, expected 1 or more")
    while max_segments is not None and len(boundaries) - 1 > max_segments:
        pair_lengths = [c - a for a, c in zip(boundaries, boundaries[2:], strict=False)]
        del boundaries[1 + pair_lengths.index(min(pair_lengths))]
    return boundaries


def _ends_sentence(trace: TokenisedTrace, t: int) -> bool:
    start, end = trace.offsets_T[t - 1].tolist()
    return bool(SENTENCE_END.search(trace.response[start:end]))


def _stream(evidence: Evidence | None, name: str, segmenter: str) -> Tensor:
    """The field ``name`` of the evidence; an error tells how to gather it."""
    values_T = None if evidence is None else getattr(evidence, name)
    if values_T is None:
        gather = f"segrl.gather(model, [trace], needs=({name[:-2]!r},))"
        raise ValueError(f"the segmenter {segmenter!r} reads {name}; pass evidence={gather}")
    return values_T


def _find(segmenter: str | Callable) -> Callable:
    return resolve(segmenter, SEGMENTERS, "segmenter")


def _reads_text(cut: Callable) -> bool:
    return next(iter(inspect.signature(cut).parameters)) == "text"
