"""Stands in for the comparison of a grading worker: ``pred`` says what goes wrong."""

from __future__ import annotations

import os
import time

poisoned = False


def equal(gold: str, pred: str) -> tuple[bool, str]:
    global poisoned
    if poisoned:
        os.abort()
    if pred.startswith("sleep "):
        time.sleep(float(pred.split()[1]))
    elif pred == "spin":
        3 ** (10**9)  # minutes
    elif pred == "allocate":
        bytearray(4 << 30)
    elif pred == "abort":
        os.abort()
    elif pred == "raise":
        raise ArithmeticError
    elif pred == "recurse":
        return equal(gold, pred)
    elif pred == "pid":
        return True, str(os.getpid())
    elif pred == "poison":
        poisoned = True
    return gold == pred, "symbolic"
