"""Confidence: the answer forced after each prefix of the thinking and sampled, the share that is right ([IG] 3.1)."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from segrl.attribution.evaluator import CPU_TOKENS, TOKENS, unwrapped
from segrl.attribution.target import TEMPLATE, Explained
from segrl.evidence.answers import explained_traces
from segrl.grading import grade_answer
from segrl.loading import tokenizer_of
from segrl.tokenization import encode
from segrl.types import Segments, Trace

SAMPLED = 16  # times the tokens of a forward: a step of sampling reads one token a row and keeps the others' keys


def confidences(
    model,
    traces: Sequence[Trace],
    tokenizer,
    segments: Sequence[Segments],
    *,
    target: str = "gold",
    template: str = TEMPLATE,
    context: str = "think",
    batch_tokens: int | None = None,
    samples: int = 32,
    temperature: float = 0.6,
    answer_tokens: int = 32,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """``samples`` answers of at most ``answer_tokens`` tokens after each prefix, drawn at ``temperature``."""
    if samples < 1 or temperature <= 0 or answer_tokens < 1:
        raise ValueError(
            f"samples={samples}, temperature={temperature}, answer_tokens={answer_tokens}: expected one or more "
            "samples and tokens, and a temperature above 0"
        )
    tokenizer = tokenizer or tokenizer_of(model)
    together = SAMPLED * (batch_tokens or (CPU_TOKENS if model.device.type == "cpu" else TOKENS))
    explained = explained_traces(model, traces, tokenizer, target, template, context)
    opening, closing = template.split("{answer}")
    found = []
    for one, own in zip(explained, segments, strict=True):
        drawer = Drawer(model, tokenizer, opening, closing, temperature, answer_tokens, f"{seed} {one.trace.id}")
        found.append(_confidence(drawer, one, own, samples, together))
    return found


def _confidence(drawer: Drawer, one: Explained, segments: Segments, samples: int, together: int) -> dict[str, Any]:
    """One pass over the trace, stopping after each segment: what was read stays in the cache."""
    shares: dict[int, float] = {}
    start, stop = one.thinking.start, one.thinking.stop
    for boundary in segments.boundaries:
        end = min(start + boundary, stop)
        if end not in shares:
            drawer.read(one.input_ids[drawer.tokens_read : end])
            answers = drawer.draw(samples, max(1, together // len(one)))
            right = {answer: grade_answer(one.answer, answer).correct for answer in set(answers)}
            shares[end] = sum(right[answer] for answer in answers) / samples
    after = [shares[min(start + boundary, stop)] for boundary in segments.boundaries]
    return {
        "confidence_S": torch.tensor(after[1:], dtype=torch.float64),
        "empty_confidence": after[0],
        "cost": {"confidence_S": drawer.tokens / len(one)},
    }


class Drawer:
    """Reads a trace bit by bit, and draws answers after what it has read."""

    def __init__(
        self, model, tokenizer, opening: str, closing: str, temperature: float, longest: int, seed: str
    ) -> None:
        self.model, self.tokenizer = unwrapped(model), tokenizer
        self.opening_ids, _ = encode(opening, tokenizer, "answer template")
        self.closing, self.temperature, self.longest = closing, temperature, longest
        self.generator = torch.Generator(self.model.device).manual_seed(
            zlib.crc32(seed.encode("utf-8", "surrogatepass"))
        )
        self.cache = None
        self.tokens_read = self.tokens = 0

    @torch.no_grad()
    def read(self, ids: Tensor) -> None:
        self.tokens_read += len(ids)
        self.tokens += len(ids)
        if len(ids):
            ids = ids[None].to(self.model.device)
            self.cache = self.model.base_model(
                input_ids=ids, past_key_values=self.cache, use_cache=True
            ).past_key_values

    @torch.no_grad()
    def draw(self, samples: int, rows: int) -> list[str]:
        """So many answers, ``rows`` at once."""
        ids = self.opening_ids[None].to(self.model.device)
        opened = self.model(input_ids=ids, past_key_values=copy.deepcopy(self.cache), use_cache=True)
        self.tokens += ids.shape[1]
        answers: list[str] = []
        while len(answers) < samples:
            together = min(rows, samples - len(answers))
            branch = copy.deepcopy(opened.past_key_values)
            branch.batch_repeat_interleave(together)
            answers += self._drawn(branch, opened.logits[:, -1].expand(together, -1))
        return answers

    def _drawn(self, cache, logits: Tensor) -> list[str]:
        drawn_B: list[list[int]] = [[] for _ in logits]
        answers: list[str | None] = [None] * len(drawn_B)
        for step in range(self.longest):
            chances = torch.softmax(logits.float() / self.temperature, -1)
            ids_B = torch.multinomial(chances, 1, generator=self.generator)
            for i, id in enumerate(ids_B.flatten().tolist()):
                drawn_B[i].append(id)
                if answers[i] is None:
                    answers[i] = self._closed(drawn_B[i])
            if None not in answers or step == self.longest - 1:
                break
            self.tokens += len(drawn_B)
            logits = self.model(input_ids=ids_B, past_key_values=cache, use_cache=True).logits[:, -1]
        return [answer or "" for answer in answers]

    def _closed(self, ids: list[int]) -> str | None:
        """The answer, once the sampled tokens close it; an end of text closes it too."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        end = closing_at(text, self.closing)
        if end is not None:
            return text[:end]
        return text if ids[-1] == self.tokenizer.eos_token_id else None


def closing_at(text: str, closing: str) -> int | None:
    """Where the template goes on after the answer: at a brace that the answer has not opened itself, or at its text."""
    if not closing.startswith("}"):
        at = text.find(closing or "\n")
        return at if at >= 0 else None
    depth = 0
    for at, char in enumerate(text):
        depth += (char == "{") - (char == "}")
        if depth < 0:
            return at
    return None
