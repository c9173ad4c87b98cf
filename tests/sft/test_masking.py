"""What counts as a label, token by token: by hand, and as properties of any response and selection."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from testkit.tiny import byte_level_tokenizer

import segrl
from segrl import Trace
from segrl.sft.masking import Choice, Rules, example, mask, project, truncate

RESPONSE = "First, 3 + 4 = 7.\n\nWait, so \\boxed{7}.\n\nHowever, 7.\n</think>\nthe answer is \\boxed{7}."
TOKENIZER = byte_level_tokenizer()
EOS = TOKENIZER.eos_token_id


def trace(response: str = RESPONSE, **fields) -> Trace:
    return segrl.tokenize(Trace(id="t", problem="What is 3 + 4?", response=response, **fields), TOKENIZER)


def choice(given: Trace, keep: str) -> Choice:
    """``keep`` is a 1 or 0 for each segment."""
    segments = segrl.segment(given)
    assert len(segments) == len(keep)
    return Choice(torch.tensor([float(one) for one in keep])[segments.index_T], segments.index_T)


def counted(masked) -> str:
    return TOKENIZER.decode(masked.trace.response_ids[masked.weights_T > 0].tolist())


RAW = {"end": "segment", "think_end": "segment", "boxed": "segment"}


def test_segment_alone_says_what_counts():
    assert counted(mask(trace(), choice(trace(), "0100"), Rules(**RAW))) == "Wait, so \\boxed{7}.\n\n"


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"think_end": "always"}, "Wait, so \\boxed{7}.\n\n</think>"),
        ({"boxed": "always"}, "Wait, so \\boxed{7}.\n\n \\boxed{7}."),  # ` \` and `}.` are one token each
        ({"boxed": "never"}, "Wait, so \\boxed{7}.\n\n"),  # the last box alone, a draft before it is text
    ],
)
def test_marks_count_as_asked_beside_what_their_segments_say(rules, expected):
    assert counted(mask(trace(), choice(trace(), "0100"), Rules(**{**RAW, **rules}))) == expected


def test_marks_of_a_kept_segment_can_be_left_out():
    masked = mask(trace(), choice(trace(), "0011"), Rules(**{**RAW, "think_end": "never", "boxed": "never"}))
    assert counted(masked) == "However, 7.\n\nthe answer is"


@pytest.mark.parametrize(
    ("end", "keep", "weight"), [("always", "1000", 1), ("segment", "1000", 0), ("never", "1111", 0)]
)
def test_the_end_of_text_counts_as_asked(end, keep, weight):
    given = trace()
    one = example(mask(given, choice(given, keep), Rules(**{**RAW, "end": end})), EOS)
    assert (int(one.ids_L[-1]), float(one.mask_L[-1])) == (EOS, weight)


def test_a_response_that_its_generator_cut_off_teaches_no_end():
    given = trace("First, 3 + 4", meta={"finish": "length"})
    one = example(mask(given, choice(given, "1"), Rules()), EOS)
    assert torch.equal(one.ids_L, torch.cat([given.prompt_ids, given.response_ids]))


def test_where_nothing_is_kept_there_is_no_row():
    assert mask(trace(), choice(trace(), "0000"), Rules()) is None


def test_where_the_rules_leave_nothing_of_what_is_kept_there_is_no_row():
    """Kept are ``</think>`` and the box alone, and neither counts: a mask of zeros would make the batch's loss NaN."""
    given = trace("First.\n</think>\\boxed{7}")
    never = {"think_end": "never", "boxed": "never"}
    assert mask(given, choice(given, "01"), Rules(end="never", **never)) is None
    assert counted(mask(given, choice(given, "01"), Rules(end="always", **never))) == ""  # its end alone counts
    assert (
        mask(trace("First.\n</think>\\boxed{7}", meta={"finish": "length"}), choice(given, "01"), Rules(**never))
        is None
    )


def test_tokens_that_others_wrote_never_count():
    given = trace()
    trainable_T = torch.arange(given.tokens) % 2 == 0
    ids = {"prompt_ids": given.prompt_ids, "response_ids": given.response_ids}
    given = Trace.from_ids(id="t", problem="", tokenizer=TOKENIZER, trainable_T=trainable_T, **ids)
    assert torch.equal(mask(given, choice(given, "1111"), Rules()).weights_T > 0, trainable_T)


def test_cut_at_the_last_segment_that_fits_and_without_an_end():
    given = trace()
    segments = segrl.segment(given)
    masked = mask(given, choice(given, "1111"), Rules())
    for room, kept in ((segments.boundaries[2], 2), (segments.boundaries[3] - 1, 2), (segments.boundaries[3], 3)):
        short = truncate(masked, room)
        assert short.trace.tokens == segments.boundaries[kept]
        assert given.response.startswith(short.trace.response)
        assert int(example(short, EOS).ids_L[-1]) != EOS
    assert truncate(masked, segments.boundaries[1] - 1) is None
    assert truncate(mask(given, choice(given, "0111"), Rules()), segments.boundaries[1]) is None


def test_per_trace_every_row_sums_to_one():
    given = trace()
    one = example(mask(given, choice(given, "0101"), Rules()), EOS, "trace")
    whole = example(mask(given, choice(given, "0101"), Rules()), EOS)
    torch.testing.assert_close(one.mask_L, whole.mask_L / float((whole.mask_L > 0).sum()))
    assert float(one.mask_L.sum()) == pytest.approx(1)


# --- any response ----------------------------------------------------------------------------------------------------

PIECES = st.lists(
    st.sampled_from(
        ["Wait, ", "\n\nWait, so", "\n\nHowever", " 3 + 4", " naïve café", "👩‍🚀", "東京", "\n</think>\n", "7."]
    ),
    min_size=1,
    max_size=12,
)


@given(PIECES, st.randoms(use_true_random=False), st.sampled_from(("batch", "trace")))
def test_each_label_counts_as_its_own_segment_says(pieces, random, normalise):
    given = trace("".join(pieces))
    segments = segrl.segment(given)
    keep = [random.random() < 0.5 for _ in range(len(segments))]
    masked = mask(given, Choice(torch.tensor(keep).float()[segments.index_T], segments.index_T), Rules(**RAW))
    if not any(keep):
        assert masked is None
        return
    one = example(masked, EOS, normalise)
    prompt = len(given.prompt_ids)
    assert torch.equal(one.ids_L, torch.cat([given.prompt_ids, given.response_ids, torch.tensor([EOS])]))
    expected = [0] * prompt + [int(keep[s]) for s, t in enumerate(segments.tokens_S.tolist()) for _ in range(t)]
    assert (one.mask_L > 0).int().tolist() == [*expected, int(keep[-1])]
    assert float(one.mask_L[0]) == 0


@given(PIECES, st.integers(min_value=0, max_value=3))
def test_a_token_belongs_to_the_segment_of_its_first_character(pieces, shift):
    """Against the definition, character by character, for another tokenizer and a text that begins earlier."""
    text = "".join(pieces)
    maker = trace(text)
    other = byte_level_tokenizer(300)
    own = segrl.tokenize(Trace(id="t", problem="p", response="x" * shift + text), other)
    segments = segrl.segment(maker)
    of_char = {}
    for t, s in enumerate(segments.index_T.tolist()):
        for char in range(*maker.offsets_T[t].tolist()):
            of_char.setdefault(char, s)
    expected = [of_char[max(0, int(start) - shift)] for start in own.offsets_T[:, 0]]
    assert project(segments, maker.offsets_T, own.offsets_T, shift).tolist() == expected


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"mode": "selectiv"}, r"mode='selectiv', did you mean 'selective'\?"),
        ({"boxed": "alway"}, r"boxed='alway', did you mean 'always'\?"),
        ({"normalise": "row"}, r"normalise='row', expected one of batch, trace"),
    ],
)
def test_a_wrong_rule_is_named(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        Rules(**given)
