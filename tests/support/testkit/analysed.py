"""A gathered trace with the numbers that a test is about, the rest plausible."""

from __future__ import annotations

import math


def row(strength, after, *, consistency=None, problem="p", correct=True, sampled=None, **changed):
    """``after`` holds the answer's probability after no thought, the first, ...; shares follow from ``strength``."""
    n = len(strength)
    assert len(after) == n + 1
    return {
        "id": f"{problem}-{changed.get('name', 0)}",
        "problem_id": problem,
        "correct": correct,
        "status": "exact",
        "flags": [],
        "error": None,
        "kinds": None,
        "texts": [f"thought {s}" for s in range(n)],
        "answer_text": "So 7.",
        "tokens": [10] * n,
        "strength": [float(one) for one in strength],
        "share": [one / sum(strength) for one in strength],
        "consistency": consistency or [0.0] * n,
        "answer_logp": [math.log(one) for one in after],
        "confidence": sampled,
        "log_perplexity": [0.1] * n,
        "entropy": [0.2] * n,
        "bleu": [None, *[0.5] * (n - 1)],
        **changed,
    }
