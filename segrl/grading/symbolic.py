"""math-verify's verdict, without a bound on its time or memory: what a worker process runs, see ``pool.py``."""

from __future__ import annotations

import logging


def equal(gold: str, pred: str) -> tuple[bool, str]:
    """Whether math-verify takes the prediction for the gold, and ``symbolic`` or ``gold_unparsable``."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of each call without a time limit of its own

    expected = [form for form in parse(f"\\boxed{{{gold}}}", parsing_timeout=None) if not isinstance(form, str)]
    if not expected:  # or no more than its text, which is not the prediction's
        return False, "gold_unparsable"
    given = parse(f"\\boxed{{{pred}}}", parsing_timeout=None)
    return bool(verify(expected, given, timeout_seconds=None)), "symbolic"
