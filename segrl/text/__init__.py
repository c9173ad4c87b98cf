"""Texts and token ids without a trace: prompts, boxed answers, and the characters of each id."""
