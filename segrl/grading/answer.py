"""What a response answers: the last balanced box after its last ``</think>``."""

from __future__ import annotations

from segrl.boxed import last_boxed
from segrl.prompting import opens_thought

THINKING = ("auto", "required", "none")


def extract(response: str, thinking: str = "auto", prompt: str = "") -> str | None:
    """The final answer, or None. Where thinking is required, a box before ``</think>`` is a draft, not an answer.

    ``auto`` requires it when the text holds either tag, or the prompt has already opened the thought.
    """
    if thinking not in THINKING:
        raise ValueError(f"thinking={thinking!r}, expected one of {THINKING}")
    opened = "<think>" in response or "</think>" in response or opens_thought(prompt)
    if thinking == "required" or (thinking == "auto" and opened):
        if "</think>" not in response:
            return None
        response = response.rpartition("</think>")[2]
    return last_boxed(response)
