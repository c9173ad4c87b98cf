import pytest
from hypothesis import given
from hypothesis import strategies as st

from segrl import Trace
from segrl.generation import Sampling, samples, whole_groups
from segrl.generation.sampling import answered


def test_samples_are_named_numbered_and_seeded_by_name():
    one, other = ([Trace(id, "p", "old", "7", meta={"level": 3}) for id in ids] for ids in (("a", "b"), ("b",)))
    asked = samples(one, 3, seed=1)
    assert [trace.id for trace in asked] == ["a#0", "a#1", "a#2", "b#0", "b#1", "b#2"]
    assert [(t.response, t.answer, t.meta["level"], t.meta["problem_id"], t.meta["sample"]) for t in asked[3:]] == [
        ("", "7", 3, "b", k) for k in range(3)
    ]
    seeds = {trace.id: trace.meta["seed"] for trace in asked}
    assert len(set(seeds.values())) == 6
    assert all(0 <= seed < 2**31 for seed in seeds.values())
    assert {t.id: t.meta["seed"] for t in samples(other, 2, seed=1)}.items() <= seeds.items()
    assert {t.meta["seed"] for t in samples(one, 3, seed=2)}.isdisjoint(seeds.values())


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.randoms())
def test_a_group_comes_whole_in_its_order_once_its_last_trace_has_come(sizes, random):
    groups = {i: [Trace(f"{i}.{k}", "p") for k in range(size)] for i, size in enumerate(sizes)}
    stream = [trace for group in groups.values() for trace in group]
    random.shuffle(stream)
    came = []

    def coming():
        for trace in stream:
            came.append(trace.id)
            yield trace

    done = []
    for i, group in whole_groups(groups, coming()):
        done.append(i)
        assert [trace.id for trace in group] == [trace.id for trace in groups[i]]
        assert came[-1] in {trace.id for trace in group}
    assert sorted(done) == sorted(groups)


def test_a_backend_that_leaves_samples_out_is_a_sentence():
    groups = {4: [Trace("a", "p"), Trace("b", "p")]}
    with pytest.raises(ValueError, match="no response to 1 samples, the first 'b'"):
        list(whole_groups(groups, groups[4][:1]))


def test_what_the_prompt_was_travels_with_the_response():
    trace = answered(Trace("a#0", "p", meta={"sample": 0}), "So", "length", 3, "<user>p<think>\n")
    assert trace.meta["prompt"] == "<user>p<think>\n"
    assert len(trace.meta["prompt_hash"]) == 16
    assert (trace.response, trace.meta["finish"], trace.meta["tokens"], trace.meta["sample"]) == ("So", "length", 3, 0)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"temperature": -0.1}, "temperature=-0.1, expected 0"),
        ({"top_p": 0.0}, "top_p=0.0, expected more than 0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0, expected more than 0"),
        ({"max_tokens": 0}, "max_tokens=0, expected 1 or more"),
        ({"stop": [""]}, "holds an empty text"),
    ],
)
def test_bad_settings_are_sentences(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        Sampling("model", **wrong)
    with pytest.raises(ValueError, match="n=0 samples a problem"):
        samples([], 0, seed=0)
