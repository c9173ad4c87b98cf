"""Continuations on the bundled model: what each prefix of a trace still reaches."""

import pytest
import torch

import segrl
from segrl import toy


@pytest.fixture(scope="module")
def loaded():
    return toy.load_model()


def gathered(loaded, trace, **options):
    model, tokenizer = loaded
    trace = segrl.tokenize(trace, tokenizer)
    segments = segrl.segment(trace)
    [evidence] = segrl.gather(model, [trace], tokenizer, ("continued",), segments=[segments], **options)
    return evidence, segments


@pytest.mark.e2e
def test_what_is_reached_after_all_steps_is_what_the_steps_say(loaded):
    """After a right solution's thinking every continuation reads off the gold answer, after a wrong one's none does."""
    [right] = toy.sample_traces(1, seed=5, ask="last")
    [wrong] = toy.sample_mistakes(1, seed=5, ask="last")
    for trace, share in ((right, 1.0), (wrong, 0.0)):
        evidence, segments = gathered(loaded, trace, continuations=4)
        assert float(evidence.continued_S[-1]) == share
        scores = segrl.score(evidence, segments, "continuation_gain")
        thoughts_S = scores.strength_S[segments.thought_S]
        assert float(thoughts_S.sum()) == pytest.approx(share - evidence.empty_continued)
        # Each prefix is read once for each continuation, and some tokens are sampled behind it.
        lengths = [len(evidence.trace.prompt_ids) + end for end in segments.boundaries[:-1]]
        whole = len(evidence.trace.prompt_ids) + evidence.trace.tokens
        assert evidence.cost["continued_S"] > 4 * sum(lengths) / whole


@pytest.mark.e2e
def test_a_mistake_that_is_carried_on_shows_where_it_is_made(loaded):
    """The step that decides the wrong answer stands nowhere in it, and loses more than the others on the whole."""
    at_the_mistake, elsewhere = [], []
    for trace in toy.sample_mistakes(6, seed=8, ask="last"):
        evidence, segments = gathered(loaded, trace, continuations=4)
        gains_S = segrl.score(evidence, segments, "continuation_gain").strength_S
        first = trace.meta["kinds"].index("wrong")
        at_the_mistake.append(float(gains_S[first]))
        elsewhere += [float(gain) for s, gain in enumerate(gains_S[segments.thought_S]) if s != first]
    assert sum(at_the_mistake) / len(at_the_mistake) < -0.2
    assert sum(elsewhere) / len(elsewhere) > -0.1


@pytest.mark.e2e
def test_the_same_trace_draws_the_same_and_leaves_the_generator_alone(loaded):
    [trace] = toy.sample_traces(1, seed=6, ask="last")
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    draws = [gathered(loaded, trace, continuations=2)[0].continued_S.tolist() for _ in range(2)]
    assert draws[0] == draws[1]
    assert torch.equal(torch.rand(3), expected)


def test_a_number_below_one_is_refused(loaded):
    [trace] = toy.sample_traces(1, seed=6)
    with pytest.raises(ValueError, match="continuations=0, expected 1 or more"):
        gathered(loaded, trace, continuations=0)
