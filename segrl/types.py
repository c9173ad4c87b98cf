"""The types that flow through the pipeline, and the axis legend.

Axis letters, used as suffixes everywhere: ``_T`` response token, ``_S`` segment, ``_B`` rollout in a batch,
``_J`` integration node, ``_A`` answer token, ``_P`` prompt token, ``_Q`` problem of the training set.

Each type checks its invariants when it is made, so a stage that receives a value need not check it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from segrl.text.decoding import decode
from segrl.text.prompting import prompt_hash

T = TypeVar("T")

KEEP_REASONS = ("strength", "forced")
DROP_REASONS = ("dropped", "consistency")


@dataclass(frozen=True, eq=False)
class Trace:
    """A problem and a response to it, as text.

    ``meta`` holds whatever came along with the trace; the entries that segrl reads have properties here.
    """

    id: str
    problem: str
    response: str = ""
    answer: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def problem_id(self) -> str:
        """The id of the problem, the same for all its responses; the trace's id where none was given."""
        return str(self.meta.get("problem_id") or self.id)

    @property
    def finish(self) -> str | None:
        """``stop``, or ``length`` where the generator cut the response off."""
        return self.meta.get("finish")

    @property
    def prompt(self) -> str | None:
        """The rendered prompt, whose end may open the thought."""
        return self.meta.get("prompt")

    @property
    def kinds(self) -> Sequence[str] | None:
        """The planted kind of each segment, in the toy world."""
        return self.meta.get("kinds")

    @property
    def own_answer(self) -> str | None:
        """The answer that the response gives, where it has been read out of the response."""
        return self.meta.get("own_answer")

    @property
    def tokenised(self) -> bool:
        return False

    @property
    def tokens(self) -> int:
        """T, the number of response tokens."""
        raise ValueError(f"trace {self.id!r} is not tokenised; call segrl.tokenize(trace, tokenizer) first")

    @staticmethod
    def from_ids(
        *,
        id: str,
        problem: str,
        prompt_ids,
        response_ids,
        tokenizer,
        answer: str | None = None,
        trainable_T: Tensor | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> TokenisedTrace:
        """A trace from rollout ids, which are kept as they are. Special tokens stand for no characters."""
        ids = torch.as_tensor(response_ids, dtype=torch.long)
        prompt = torch.as_tensor(prompt_ids, dtype=torch.long)
        text, offsets_T = decode(ids, tokenizer)
        return TokenisedTrace(
            id=id,
            problem=problem,
            response=text,
            answer=answer,
            prompt_ids=prompt,
            response_ids=ids,
            offsets_T=offsets_T,
            trainable_T=torch.ones(len(ids), dtype=torch.bool) if trainable_T is None else trainable_T,
            prompt_hash=prompt_hash(tokenizer.decode(prompt.tolist())),
            meta=meta or {},
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenisedTrace(Trace):
    """A trace with the tokenisation that every stage uses.

    ``offsets_T[t] = (start, end)`` are the characters of ``response`` that token t stands for. Pieces of a character
    that is split over several tokens all carry that character's offsets; a special token stands for no character.
    ``trainable_T`` is False for tokens that a tool or an environment wrote.
    """

    prompt_ids: Tensor
    response_ids: Tensor
    offsets_T: Tensor
    trainable_T: Tensor
    prompt_hash: str

    def __post_init__(self) -> None:
        tokens = len(self.response_ids)
        for name, have in (("offsets_T", len(self.offsets_T)), ("trainable_T", len(self.trainable_T))):
            _same_count(f"trace {self.id!r}: {name}", have, tokens)
        if tokens and int(self.offsets_T[-1, 1]) != len(self.response):
            raise ValueError(
                f"trace {self.id!r}: the tokens end at character {int(self.offsets_T[-1, 1])}, "
                f"the response has {len(self.response)} characters"
            )

    @property
    def tokenised(self) -> bool:
        return True

    @property
    def tokens(self) -> int:
        return len(self.response_ids)


@dataclass(frozen=True)
class Segments:
    """A partition of the response's T tokens: segment s is ``boundaries[s]:boundaries[s + 1]``."""

    boundaries: tuple[int, ...]
    kinds_S: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        b = self.boundaries
        if len(b) < 2 or b[0] != 0:
            raise ValueError(f"segment boundaries must start at 0 and end at the number of tokens, got {b[:5]}")
        for left, right in zip(b, b[1:], strict=False):
            if right <= left:
                raise ValueError(f"segment boundaries must increase strictly, got {left} before {right}")
        if not self.kinds_S:
            object.__setattr__(self, "kinds_S", ("thought",) * len(self))
        _same_count("kinds_S of the segments", len(self.kinds_S), len(self))

    def __len__(self) -> int:
        return len(self.boundaries) - 1

    @property
    def tokens(self) -> int:
        return self.boundaries[-1]

    @property
    def tokens_S(self) -> Tensor:
        return torch.tensor(self.boundaries).diff()

    @property
    def slices(self) -> list[slice]:
        return [slice(a, b) for a, b in zip(self.boundaries, self.boundaries[1:], strict=False)]

    @property
    def thought_slices(self) -> list[slice]:
        """The tokens of each thought."""
        return [piece for piece, kind in zip(self.slices, self.kinds_S, strict=True) if kind != "answer"]

    @property
    def thought_T(self) -> Tensor:
        """Whether each token is one of a thought."""
        return self.thought_S[self.index_T]

    @property
    def index_T(self) -> Tensor:
        """The segment of each token."""
        return torch.repeat_interleave(torch.arange(len(self)), self.tokens_S)

    @property
    def by_token(self) -> Segments:
        """Segments of a single token each, of the kind of the segment that the token lies in."""
        kinds = tuple(self.kinds_S[s] for s in self.index_T.tolist())
        return Segments(tuple(range(self.tokens + 1)), kinds)

    @property
    def thought_S(self) -> Tensor:
        """True for the segments of the thinking; False for the final ``answer`` segment, which is never scored."""
        return torch.tensor([kind != "answer" for kind in self.kinds_S])


@dataclass(frozen=True, eq=False)
class Stream:
    """One number for each response token, and how far these numbers are to be trusted."""

    scores_T: Tensor
    gap: float | None = None  # the completeness gap, where it was computed
    copy_share: float | None = None  # the share of all mass that lies on tokens that restate the answer
    path: str = "embeddings"  # or values, of an attribution


@dataclass(frozen=True, eq=False, kw_only=True)
class Attribution(Stream):
    """Integrated gradients of the answer for each response token of one trace, with a certificate.

    ``logp_input`` and ``logp_baseline`` are what is explained, at both ends of the path: a log-probability, log-odds,
    or the margin of a contrast. They, and the gap that follows from them, are None where they were not computed.
    """

    trace_id: str
    target: str
    input_ids: Tensor
    answer_span: tuple[int, int]
    logp_input: float | None
    logp_baseline: float | None
    mass_prompt: float
    mass_suffix: float
    evaluations: int
    flags: tuple[str, ...] = ()
    unevenness: float = float("nan")  # the error that a midpoint grid estimates of itself, as a share of all mass

    def __post_init__(self) -> None:
        if not bool(torch.isfinite(self.scores_T).all()):
            bad = int((~torch.isfinite(self.scores_T)).sum())
            raise ValueError(
                f"trace {self.trace_id!r}: {bad} of {len(self.scores_T)} attribution scores are not finite; "
                "attribute in float32, or look for inf or NaN in the model's weights"
            )


@dataclass(frozen=True, eq=False)
class Evidence:
    """What measures may read of one trace; a field that was not gathered is None.

    Fields in ``_S`` were gathered for ``segments``. Entry s of a prefix field is the value after segment s; ``empty_``
    fields are the values before the first segment. Fields that say ``logp`` hold log-probabilities, or what ``output``
    names if they were gathered so, or the margin of a contrast. ``value`` fields hold v, the answer's log-odds by
    default, with some thoughts in the thinking and the others left out.

    ``cost`` is the cost of each field in evaluations: an evaluation is a forward over the trace (and its backward, if
    any); shorter forwards count by the tokens that they read.
    """

    trace: TokenisedTrace
    ig: Stream | None = None  # an Attribution where `segrl.attribute` made it
    contrast: Stream | None = None  # the same with target=contrast: the response's own answer against the gold one
    logp_T: Tensor | None = None
    entropy_T: Tensor | None = None
    gradient_T: Tensor | None = None  # gradient of the answer's log-probability . the input's embedding
    gradnorm_T: Tensor | None = None  # the norm of their elementwise product
    coefficient_T: Tensor | None = None  # DelTA's, from 0 to 1: how clearly the token belongs to its response's side
    attention_T: Tensor | None = None  # the answer's to each token, mean over layers and heads
    segments: Segments | None = None
    prefix_logp_S: Tensor | None = None  # log p(answer | the thinking up to the end of segment s)
    without_logp_S: Tensor | None = None  # log p(answer | the thinking without segment s)
    alone_value_S: Tensor | None = None  # v of segment s alone
    without_value_S: Tensor | None = None  # v of all but segment s
    shapley_S: Tensor | None = None  # the Shapley value of each thought in the game v, and its standard error
    shapley_error_S: Tensor | None = None
    perplexity_S: Tensor | None = None  # of the response without segment s
    support_S: Tensor | None = None  # what the log-probability of what follows segment s loses without it
    confidence_S: Tensor | None = None  # share of sampled answers that are right after segment s
    continued_S: Tensor | None = None  # share of right answers where the response is sampled on after segment s
    answer_logp: float | None = None
    empty_logp: float | None = None
    empty_value: float | None = None  # v of no thought, and of all
    whole_value: float | None = None
    empty_confidence: float | None = None
    empty_continued: float | None = None
    output: str = "logp"  # or log_odds: what the fields that say logp hold
    cost: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        id = self.trace.id
        for name, stream in (("ig", self.ig), ("contrast", self.contrast)):
            if stream is not None:
                _same_count(f"trace {id!r}: evidence {name}", len(stream.scores_T), self.trace.tokens)
        if self.segments is not None:
            _same_count(f"trace {id!r}: tokens of the evidence's segments", self.segments.tokens, self.trace.tokens)
        for name, values in vars(self).items():
            if isinstance(values, Tensor):
                _check_values(f"trace {id!r}: evidence {name}", values, self._axis(name))

    def _axis(self, name: str) -> int:
        if name.endswith("_T"):
            return self.trace.tokens
        if self.segments is None:
            raise ValueError(f"trace {self.trace.id!r}: evidence {name} comes with the segments it was gathered for")
        return len(self.segments)


@dataclass(frozen=True, eq=False)
class SegmentScores:
    """The scores of each segment by a measure: Eq. 3 and 4, or a rival's score in ``strength_S``.

    ``thought_S`` is False for the ``answer`` segment, which has no score (default: all are thoughts). A rival's scores
    may be negative: ``strength_S`` keeps their sign for ranking, ``share_S`` is that of the positive parts.

    ``excess_S`` is the consistency beyond what random signs would give (default: zero). The scores of a token measure
    hold one entry a token, and in ``segment_T`` the segment each token lies in. ``parts`` are the numbers that a
    strength is made of, by name, where a reader wants to see them too.
    """

    strength_S: Tensor
    share_S: Tensor
    consistency_S: Tensor
    tokens_S: Tensor
    thought_S: Tensor = None  # type: ignore[assignment]  # a tensor once it is made
    excess_S: Tensor = None  # type: ignore[assignment]
    segment_T: Tensor | None = None
    parts: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.thought_S is None:
            object.__setattr__(self, "thought_S", torch.ones(len(self.strength_S), dtype=torch.bool))
        if self.excess_S is None:
            object.__setattr__(self, "excess_S", torch.zeros(len(self.strength_S), dtype=torch.float64))
        for name in ("share_S", "consistency_S", "tokens_S", "thought_S", "excess_S"):
            _same_count(f"segment scores: {name}", len(getattr(self, name)), len(self.strength_S))
        if self.segment_T is not None:
            _same_count("segment scores: segment_T", len(self.segment_T), len(self.strength_S))
        for name, part_S in self.parts.items():
            _same_count(f"segment scores: part {name}", len(part_S), len(self.strength_S))
        for name in ("strength_S", "share_S", "consistency_S", "excess_S"):
            if not bool(torch.isfinite(getattr(self, name)).all()):
                raise ValueError(
                    f"segment scores: {name} holds NaN or infinity: {getattr(self, name).tolist()[:8]}; "
                    "a measure gives finite numbers, 0 where it has nothing to say"
                )
        total = float(self.share_S.sum())
        if len(self.share_S) and abs(total - 1) > 1e-6 and total != 0:
            raise ValueError(f"segment scores: share_S must sum to 1, got {total}")

    def __len__(self) -> int:
        return len(self.strength_S)


@dataclass(frozen=True, eq=False)
class Selection:
    """Which segments to keep, and why: ``strength``, ``forced``, ``dropped`` or ``consistency``.

    With the scores of a token measure there is one entry a token.
    """

    keep_S: Tensor
    reason_S: tuple[str, ...]

    def __post_init__(self) -> None:
        _same_count("selection: reasons", len(self.reason_S), len(self.keep_S))
        for keep, reason in zip(self.keep_S.tolist(), self.reason_S, strict=True):
            if reason not in (KEEP_REASONS if keep else DROP_REASONS):
                raise ValueError(f"selection: a segment that is {'kept' if keep else 'dropped'} has reason {reason!r}")

    def __len__(self) -> int:
        return len(self.keep_S)


def given(value: T | None) -> T:
    """The value, which the caller knows not to be None."""
    assert value is not None
    return value


def _check_values(what: str, values: Tensor, want: int) -> None:
    _same_count(what, len(values), want)
    if not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values)).sum())
        raise ValueError(
            f"{what}: {bad} of {len(values)} values are not finite; gather in float32, or look for inf or NaN in the "
            "model's weights"
        )


def _same_count(what: str, have: int, want: int) -> None:
    if have != want:
        raise ValueError(f"{what}: got {have} for {want}")
