"""Arms of a table of truth that are not segrl's: the paper's loop, captum and FlashTrace.

The paper's loop and captum's call are written here from their description: 50 nodes, one at a time, logits for every
position. FlashTrace is its own package (``pip install 'segrl[bench]'``) and is called as its README says.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec

import torch
from torch import Tensor

from segrl.analysis.arms import Arm, Bench, Scored
from segrl.attribution.path import evaluating, resolve_baseline
from segrl.attribution.target import Explained, explain
from segrl.importance.aggregation import segment_scores, summed
from segrl.importance.reading import attending

NODES = 50

# --- the calls: a number for each token of the thinking --------------------------------------------------------------


def answer_logp(model, explained: Explained, **inputs) -> Tensor:
    """The summed log-probability of the answer, logits computed for every position."""
    start, end = explained.answer_span
    logp = torch.log_softmax(model(use_cache=False, **inputs).logits.float(), -1)
    ids = explained.input_ids[None, start:end, None].expand(len(logp), -1, -1)
    return logp[:, start - 1 : end - 1].gather(-1, ids).sum()


def authors_loop(model, explained: Explained, pad: int, nodes: int = NODES, batch: int = 1) -> Tensor:
    """linspace(0, 1, 50), one node at a time, sums in the model's own dtype, no check of completeness."""
    with torch.no_grad():
        embed = model.get_input_embeddings()
        inputs = embed(explained.input_ids[None])
        baseline = embed(torch.full_like(explained.input_ids[None], pad))
    total = torch.zeros_like(inputs)
    for alphas in torch.linspace(0, 1, nodes, dtype=inputs.dtype).split(batch):
        point = (baseline + alphas[:, None, None] * (inputs - baseline)).requires_grad_(True)
        (gradient,) = torch.autograd.grad(answer_logp(model, explained, inputs_embeds=point), point)
        total += gradient.sum(0, keepdim=True)
    return ((inputs - baseline) * total / nodes).sum(-1)[0, explained.thinking].detach()


def captum_call(model, explained: Explained, pad: int, method: str, nodes: int = NODES) -> Tensor:
    """captum's LayerIntegratedGradients on the embedding."""
    from captum.attr import LayerIntegratedGradients

    def logp(ids: Tensor) -> Tensor:
        return answer_logp(model, explained, input_ids=ids)[None]

    explainer = LayerIntegratedGradients(logp, model.get_input_embeddings())
    ids = explained.input_ids[None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"n_steps": nodes, "method": method, "internal_batch_size": 1}
        return explainer.attribute(ids, torch.full_like(ids, pad), **options).sum(-1)[0, explained.thinking].detach()


def flashtrace(bench: Bench, explained: Explained, whole: bool = False) -> Tensor:
    """FlashTrace's scores of the thinking for the answer, one hop.

    Prompt and thinking are its prompt, and what the template appends is its target. With an output span alone the
    package looks back from the whole target, the template's words included (``whole``). With the answer as its
    reasoning span too, it looks back from the answer.
    """
    stop, (first, last) = explained.thinking.stop, explained.answer_span
    answer = first - stop, last - 1 - stop
    result = _traced(bench, explained, stop, output_span=answer, reasoning_span=None if whole else answer)
    return torch.tensor(result.scores)[explained.thinking]


def flashtrace_through(bench: Bench, explained: Explained) -> Tensor:
    """FlashTrace's scores as it is meant for reasoning: back in one hop from thinking and answer, its target."""
    start, stop, (first, last) = explained.thinking.start, explained.thinking.stop, explained.answer_span
    spans = {"output_span": (first - start, last - 1 - start), "reasoning_span": (0, stop - start - 1)}
    return over_hops(_traced(bench, explained, start, **spans))[explained.thinking]


def over_hops(result) -> Tensor:
    """A number for each token of FlashTrace's prompt and target, summed over hops as FlashTrace sums the prompt's.

    FlashTrace's own scores cover the prompt alone. A hop counts by the share that the hop before it left in the target.
    """
    hops = torch.tensor([hop.tolist() for hop in result.metadata["ifr"]["per_hop_projected"]])
    return torch.tensor([1.0, *result.thinking_ratios[: len(hops) - 1]]) @ hops


def _traced(bench: Bench, explained: Explained, at: int, **spans):
    """FlashTrace's result, with the text up to position ``at`` as its prompt and the text after it as its target."""
    from flashtrace import FlashTrace

    parts = explained.input_ids[:at].tolist(), explained.input_ids[at:].tolist()
    prompt, target = (_spelt(bench.tokenizer, part) for part in parts)
    with attending(bench.model, "eager"):  # it reads attention weights
        return FlashTrace(bench.model, bench.tokenizer).trace(prompt=prompt, target=target, hops=1, **spans)


def _spelt(tokenizer, ids: list[int]) -> str:
    """The text of ``ids``, for a package that tokenises text itself; raises where it would get other ids."""
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    again = tokenizer(text, add_special_tokens=False)["input_ids"]
    if again != ids:
        raise ValueError(
            f"the text {text[:40]!r}... is {len(ids)} tokens here and {len(again)} other ones where FlashTrace "
            "tokenises it, so its scores would be of other tokens; leave its arms or this trace out"
        )
    return text


# --- the arms --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peer:
    """A call's scores of the thinking's tokens, as a number for each thought."""

    call: Callable[[Bench, Explained], Tensor]
    evaluations: float
    target: str = "gold"
    strength: bool = False  # by Eq. 3, not as signed sums

    def run(self, bench: Bench) -> Scored:
        scores_T, seconds = _tokens(bench, self.call, self.target)
        segments = bench.segments
        values_S = segment_scores(scores_T, segments).strength_S if self.strength else summed(scores_T, segments)
        return Scored(values_S[segments.thought_S].tolist(), self.evaluations, seconds)


@lru_cache(maxsize=8)  # of one trace: arms that share a call make it once, and its cost counts for each
def _tokens(bench: Bench, call: Callable[[Bench, Explained], Tensor], target: str) -> tuple[Tensor, float]:
    """A number for each token of the response, zero behind the thinking, and the seconds that the call took."""
    explained = explain(bench.trace, bench.tokenizer, target)
    began = time.perf_counter()
    with evaluating(bench.model):
        inside = call(bench, explained)
    seconds = time.perf_counter() - began
    scores_T = torch.zeros(bench.trace.tokens, dtype=torch.float64)
    scores_T[: len(inside)] = inside.double()
    return scores_T, seconds


def _loop(bench: Bench, explained: Explained) -> Tensor:
    return authors_loop(bench.model, explained, resolve_baseline("pad", bench.tokenizer))


def _captum(bench: Bench, explained: Explained, nodes: int = NODES) -> Tensor:
    return captum_call(bench.model, explained, resolve_baseline("pad", bench.tokenizer), "gausslegendre", nodes)


# FlashTrace takes one forward and computes its layers' attention outputs again, which is counted as one evaluation.
OF_THE_ANSWER: dict[str, Arm] = {
    "the paper's loop, 50": Peer(_loop, NODES, strength=True),
    "the paper's loop, 50, signed": Peer(_loop, NODES),
    "captum, 50": Peer(_captum, NODES, strength=True),
    "captum, 50, signed": Peer(_captum, NODES),
}
FLASHTRACE: dict[str, Arm] = {
    "FlashTrace": Peer(flashtrace, 1),
    "FlashTrace, whole target": Peer(partial(flashtrace, whole=True), 1),
    "FlashTrace, through the thinking": Peer(flashtrace_through, 1),
}
# None of them contrasts two answers: for a wrong response they explain the answer that it gives.
OF_ITS_OWN: dict[str, Arm] = {
    "the paper's loop, 50, its own answer": Peer(_loop, NODES, "own", strength=True),
    "the paper's loop, 50, signed, its own answer": Peer(_loop, NODES, "own"),
}
FLASHTRACE_OF_ITS_OWN: dict[str, Arm] = {"FlashTrace, its own answer": Peer(flashtrace, 1, "own")}


def peers() -> tuple[dict[str, Arm], dict[str, Arm]]:
    """The arms for which thoughts carry the answer, and for which misled; FlashTrace's where it is installed."""
    if find_spec("flashtrace") is None:
        print("FlashTrace is not installed, so its arms are left out: pip install 'segrl[bench]'", flush=True)
        return OF_THE_ANSWER, OF_ITS_OWN
    import flashtrace  # noqa: F401  # it loads spacy, which is no part of its arms' time

    return {**OF_THE_ANSWER, **FLASHTRACE}, {**OF_ITS_OWN, **FLASHTRACE_OF_ITS_OWN}
