"""Offsets of tokens, found slowly and independently."""

from __future__ import annotations


def slow_offsets(ids, tokenizer):
    """An oracle: decode every prefix anew. A token whose prefix ends inside a character waits for the rest of it."""
    text = tokenizer.decode(ids, skip_special_tokens=True)
    ends = []
    for k in range(1, len(ids) + 1):
        prefix = tokenizer.decode(ids[:k], skip_special_tokens=True)
        ends.append(len(prefix) if text.startswith(prefix) else None)
    spans, start = [], 0
    for k, end in enumerate(ends):
        whole = next(e for e in ends[k:] if e is not None)
        spans.append([start, whole])
        start = start if end is None else end
    return text, spans


def walked_offsets(text, ids, tokenizer):
    """Another oracle: byte-level tokens are spelled one letter a byte; walk the text by bytes, knowing their owners."""
    owner = [i for i, char in enumerate(text) for _ in char.encode()]
    spans, at = [], 0
    for token in tokenizer.convert_ids_to_tokens(ids):
        spans.append([owner[at], owner[at + len(token) - 1] + 1])
        at += len(token)
    return spans
