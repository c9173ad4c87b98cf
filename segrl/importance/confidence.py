"""Confidence: the share of right answers among those sampled after each prefix of the thinking ([IG] 3.1)."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from segrl.attribution.evaluator import unwrapped
from segrl.attribution.target import Explained
from segrl.grading import grade_answer
from segrl.importance.reading import Reading, read_on, seed_of
from segrl.loading import tokenizer_of
from segrl.text.ending import end_tokens
from segrl.tokenization import encode
from segrl.types import Segments, TokenisedTrace

SAMPLED = 16  # a step of sampling takes 16 forwards of tokens: it reads one token a row and caches the others
Draw = tuple[list[int], int]  # the tokens of an answer so far, and how many samples begin with them


def confidences(
    model, traces: Sequence[TokenisedTrace], tokenizer, segments: Sequence[Segments], reading: Reading
) -> list[dict[str, Any]]:
    """The share of right answers after each prefix, of ``samples`` answers drawn at ``temperature``.

    An answer has at most ``answer_tokens`` tokens.
    """
    tokenizer = tokenizer or tokenizer_of(model)
    explained = reading.explained(model, traces, tokenizer)
    return [
        _confidence(Drawer(model, tokenizer, reading, sequence.trace.id), sequence, trace_segments, reading)
        for sequence, trace_segments in zip(explained, segments, strict=True)
    ]


def _confidence(drawer: Drawer, sequence: Explained, segments: Segments, reading: Reading) -> dict[str, Any]:
    """The confidence fields of one trace, which is read once: the cache keeps each prefix for the next."""
    held = reading.batching.held(drawer.model.device)
    shares: dict[int, float] = {}
    start, stop = sequence.thinking.start, sequence.thinking.stop
    for boundary in segments.boundaries:
        end = min(start + boundary, stop)
        if end not in shares:
            drawer.read(sequence.input_ids[drawer.tokens_read : end])
            answers = drawer.draw(reading.samples, max(1, SAMPLED * held // len(sequence)))
            right = sum(times for answer, times in answers.items() if grade_answer(sequence.answer, answer).correct)
            shares[end] = right / reading.samples
    after = [shares[min(start + boundary, stop)] for boundary in segments.boundaries]
    return {
        "confidence_S": torch.tensor(after[1:], dtype=torch.float64),
        "empty_confidence": after[0],
        "cost": {"confidence_S": drawer.tokens / len(sequence)},
    }


class Drawer:
    """Reads a trace piece by piece, and draws answers after the tokens that it has read."""

    def __init__(self, model, tokenizer, reading: Reading, name: str) -> None:
        self.model, self.tokenizer = unwrapped(model), tokenizer
        opening, self.closing = reading.template.split("{answer}")
        self.opening_ids, _ = encode(opening, tokenizer, "answer template")
        self.temperature, self.longest = reading.temperature, reading.answer_tokens
        self.ends = end_tokens(tokenizer, getattr(self.model, "generation_config", None))
        seed = seed_of(reading.seed, name)
        self.generator = torch.Generator(self.model.device).manual_seed(seed)
        self.cache = None
        self.tokens_read = self.tokens = 0

    @torch.no_grad()
    def read(self, ids: Tensor) -> None:
        self.tokens_read += len(ids)
        self.tokens += len(ids)
        self.cache = read_on(self.model, ids, self.cache)

    @torch.no_grad()
    def draw(self, samples: int, rows: int) -> Counter[str]:
        """How often each answer was drawn, of ``samples`` draws.

        Draws with equal tokens are read once. A forward holds at most ``rows`` of them.
        """
        ids = self.opening_ids[None].to(self.model.device)
        opened = self.model(input_ids=ids, past_key_values=copy.deepcopy(self.cache), use_cache=True)
        self.tokens += ids.shape[1]
        answers: Counter[str] = Counter()
        self._grow(opened.past_key_values, opened.logits[:, -1], [([], samples)], rows, answers)
        return answers

    def _grow(self, cache, logits_BV: Tensor, drawn: Sequence[Draw], rows: int, answers: Counter[str]) -> None:
        """Draw one more token of each draw, and add to ``answers`` those that it completes; the others grow on."""
        unfinished: list[tuple[int, Draw]] = []
        for row, (ids, times) in enumerate(drawn):
            for id, often in self._next(logits_BV[row], times):
                longer = [*ids, id]
                answer = self._closed(longer)
                if answer is None and len(longer) < self.longest:
                    unfinished.append((row, (longer, often)))
                else:
                    answers[answer or ""] += often
        for at in range(0, len(unfinished), rows):
            part = unfinished[at : at + rows]
            branch = cache if at + rows >= len(unfinished) else copy.deepcopy(cache)
            chosen = [row for row, _ in part]
            if chosen != list(range(len(drawn))):
                branch.batch_select_indices(torch.tensor(chosen, device=logits_BV.device))
            newest = torch.tensor([[ids[-1]] for _, (ids, _) in part], device=logits_BV.device)
            self.tokens += len(part)
            output = self.model(input_ids=newest, past_key_values=branch, use_cache=True)
            self._grow(branch, output.logits[:, -1], [draw for _, draw in part], rows, answers)

    def _next(self, logits_V: Tensor, times: int) -> Iterator[tuple[int, int]]:
        """Each token that was drawn, and how often, of ``times`` draws."""
        chances_V = torch.softmax(logits_V.float() / self.temperature, -1)
        ids = torch.multinomial(chances_V, times, replacement=True, generator=self.generator)
        return zip(*(column.tolist() for column in ids.unique(return_counts=True)), strict=True)

    def _closed(self, ids: list[int]) -> str | None:
        """The answer if the sampled tokens close it, by the template's text or an end of text; else None."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        end = closing_at(text, self.closing)
        if end is not None:
            return text[:end]
        return text if ids[-1] in self.ends else None


def closing_at(text: str, closing: str) -> int | None:
    """The character at which the answer ends and ``closing`` begins; None where it has not ended.

    A closing that starts with a brace begins at a brace that the answer has not opened.
    """
    if not closing.startswith("}"):
        at = text.find(closing or "\n")
        return at if at >= 0 else None
    depth = 0
    for at, char in enumerate(text):
        depth += (char == "{") - (char == "}")
        if depth < 0:
            return at
    return None
