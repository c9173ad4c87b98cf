"""(model, traces, needs) -> evidence: everything that measures read, computed once.

A gatherer is a function ``(model, traces, tokenizer, segments, reading) -> fields of each trace's evidence``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from typing import Any

from segrl.attribution import attribute
from segrl.attribution.engine import AttributionSettings
from segrl.attribution.path import evaluating
from segrl.importance.answers import gradients, prefixes, without
from segrl.importance.coalitions import alone, shapley, without_value
from segrl.importance.confidence import confidences
from segrl.importance.continuing import continuations
from segrl.importance.reading import Reading
from segrl.importance.streams import attentions, likelihoods, perplexities, supports, token_streams
from segrl.resolving import near
from segrl.types import Evidence, Segments, TokenisedTrace

__all__ = ["NEEDS", "gather", "token_streams"]

Fields = dict[str, Any]


def attributions(model, traces: Sequence[TokenisedTrace], tokenizer, segments, options: Fields) -> list[Fields]:
    """The attribution of each trace, by integrated gradients."""
    attributed = attribute(model, traces, tokenizer, **options)
    return [{"ig": attribution, "cost": {"ig": attribution.evaluations}} for attribution in attributed]


def contrasts(model, traces: Sequence[TokenisedTrace], tokenizer, segments, options: Fields) -> list[Fields]:
    """The attribution of each trace's contrast: the response's own answer against the gold one."""
    attributed = attribute(model, traces, tokenizer, **{**options, "target": "contrast"})
    return [{"contrast": attribution, "cost": {"contrast": attribution.evaluations}} for attribution in attributed]


ONLY_WHILE_TRAINING = (
    "measure=delta compares the responses of a batch by their advantages, so it exists only while training: segrl grpo "
    "segrl.measure=delta segrl.sign=both; for finished traces take a measure of one trace, like contribution"
)


def comparisons(model, traces: Sequence[TokenisedTrace], tokenizer, segments, reading: Reading) -> list[Fields]:
    """Raise: the advantages of a batch are not known here."""
    raise ValueError(ONLY_WHILE_TRAINING)


NEEDS: dict[str, Callable[..., list[Fields]]] = {
    "ig": attributions,
    "contrast": contrasts,
    "logp_T": likelihoods,
    "entropy_T": likelihoods,
    "gradient_T": gradients,
    "gradnorm_T": gradients,
    "coefficient_T": comparisons,
    "attention_T": attentions,
    "prefix_logp_S": prefixes,
    "without_logp_S": without,
    "alone_value_S": alone,
    "without_value_S": without_value,
    "shapley_S": shapley,
    "perplexity_S": perplexities,
    "support_S": supports,
    "confidence_S": confidences,
    "continued_S": continuations,
}

ON_PATHS = (attributions, contrasts)  # take the options of `segrl.attribute`, whose default output is not Reading's

KEYWORD = inspect.Parameter.KEYWORD_ONLY
READING = tuple(field.name for field in fields(Reading))
OF_CALL = [option.name for option in inspect.signature(attribute).parameters.values() if option.kind is KEYWORD]
PATH = tuple(dict.fromkeys((*OF_CALL, *(field.name for field in fields(AttributionSettings)))))
OPTIONS = tuple(dict.fromkeys((*PATH, *READING)))


def gather(
    model,
    traces: Sequence[TokenisedTrace],
    tokenizer=None,
    needs: Sequence[str] = ("ig",),
    *,
    segments: Sequence[Segments] | None = None,
    **options,
) -> list[Evidence]:
    """The evidence of each trace, with the fields that ``needs`` names, with or without their axis letter.

    ``segments`` (one Segments a trace) are for the needs that end in ``_S``. ``options`` are those of
    :func:`segrl.attribute` for ``ig`` and ``contrast``; for the others, of
    :class:`segrl.importance.reading.Reading`.
    """
    needs = [_field(need) for need in needs]
    for name in options:
        if name == "rule":
            raise ValueError("gather has no option 'rule'; quadrature= says how nodes are chosen")
        if name not in OPTIONS:
            raise ValueError(f"gather has no option {name!r}{near(name, OPTIONS)}")
    if segments is None and any(need.endswith("_S") for need in needs):
        raise ValueError(f"needs={tuple(needs)} are of segments; pass segments=, one Segments a trace")
    if segments is not None and len(segments) != len(traces):
        raise ValueError(f"got {len(segments)} segments for {len(traces)} traces")
    path, reading = _those(options, PATH), Reading(**_those(options, READING))
    gathered: list[Fields] = [{"cost": {}} for _ in traces]
    for gatherer in dict.fromkeys(NEEDS[need] for need in needs):
        with evaluating(model):
            new = gatherer(model, traces, tokenizer, segments, path if gatherer in ON_PATHS else reading)
        for evidence, more in zip(gathered, new, strict=True):
            evidence.update(more, cost={**evidence["cost"], **more["cost"]})
    for evidence, trace_segments in zip(gathered, segments or (), strict=bool(segments)):
        evidence["segments"] = trace_segments
    return [
        Evidence(trace, output=reading.output, **evidence) for trace, evidence in zip(traces, gathered, strict=True)
    ]


def _field(need: str) -> str:
    """The evidence field that ``need`` names."""
    for name in (need, f"{need}_T", f"{need}_S"):
        if name in NEEDS:
            return name
    raise ValueError(f"nothing is gathered as {need!r}{near(need, NEEDS)}")


def _those(options: Fields, known: Collection[str]) -> Fields:
    return {name: value for name, value in options.items() if name in known}
