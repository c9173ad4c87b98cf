"""Which thought concludes the answer: by hand, on the toy world, and on real traces."""

import pytest
from testkit.real import real_traces
from testkit.tiny import byte_level_tokenizer

import segrl
from segrl import Segments, Trace, toy
from segrl.importance.concluding import concludes, first_concluding

TOKENIZER = byte_level_tokenizer()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{3}, I guess", "3"),
        ("So the answer is 3. Let me check.", "3"),
        ("Hence the final answer should be \\( \\frac{1}{2} \\). Now,", "0.5"),
        ("**Final Answer**: 27 miles", "27"),
        ("Therefore, m + n = 3. But is that right?", "3"),
        ("18 + 9 = 27 miles.\n\nThat seems plausible, for both of them.", "27"),
        ("The triangle is right. So the area is 1,625 square centimetres.", "1625"),
        (" together that makes 286.", "286"),
        ("Thus, the sum is $-1$.", "-1"),
    ],
)
def test_a_thought_concludes(text, answer):
    assert concludes(text, answer)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("We have 3 terms.", "3"),
        ("Since x is 3, y = 5.", "3"),
        ("So x = 3 + 4 = 7.", "3"),
        ("Let u = 3 + x.", "3"),
        ("The answer is 3.5.", "3"),
        ("The answer is 31.", "3"),
        ("The answer is not clear, as 3 of them differ.", "3"),
        ("Therefore it is even, and 3 is odd.", "3"),
        ("\\boxed{13}", "3"),
        ("", "3"),
    ],
)
def test_a_mention_is_no_conclusion(text, answer):
    assert not concludes(text, answer)


def test_where_no_thought_concludes_all_are_kept_and_without_an_answer_it_is_a_sentence():
    trace = segrl.tokenize(Trace("t", "p", "One.\n\nWait, two.\n</think> \\boxed{4}", "3"), TOKENIZER)
    segments = segrl.segment(trace)
    assert first_concluding(trace, segments) == len(segments) - 1 == 2
    silent = segrl.tokenize(Trace("t", "p", "One."), TOKENIZER)
    with pytest.raises(ValueError, match="trace 't' has no answer, so no segment can conclude it first"):
        first_concluding(silent, Segments((0, silent.tokens)))


def test_a_toy_trace_concludes_where_it_puts_the_digits_together():
    """The thought of kind "restated", else the answer: no other holds all digits."""
    for trace in toy.sample_traces(48, seed=5):
        kinds = trace.meta["kinds"]
        tokenised = segrl.tokenize(trace, TOKENIZER)
        named = kinds[first_concluding(tokenised, segrl.segment(tokenised))]
        assert named == ("restated" if "restated" in kinds else "answer")


# Read by hand: the first thought that comes to the answer, counted from 0; None where the response is wrong.
READ = {
    "amc23-0-0": (0, "Therefore, they meet 27 miles"),
    "amc23-7-0": (15, "so m + n = 3."),  # thoughts from the first on mention a 3
    "amc23-9-0": (1, "m - n is 9 - 5 = 4."),
    "amc23-24-0": (9, "9 + 4 = 13."),
    "amc23-35-0": (6, "guesses needed is four."),
    "amc23-20-0": None,
}


def test_real_traces_conclude_where_a_reader_finds_it():
    for trace in [trace for trace in real_traces() if trace.id in READ]:
        tokenised = segrl.tokenize(trace, TOKENIZER)
        segments = segrl.segment(tokenised)
        s = first_concluding(tokenised, segments)
        piece = segments.slices[s]
        start, end = tokenised.offsets_T[piece.start, 0], tokenised.offsets_T[piece.stop - 1, 1]
        expected, words = READ[trace.id] or (len(segments) - 1, "")
        assert s == expected, trace.id
        assert words in trace.response[int(start) : int(end)], trace.id
