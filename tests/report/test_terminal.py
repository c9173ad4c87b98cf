import re
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console
from testkit.pages import ARABIC, CHINESE, HOSTILE, contrasted, entry_of, many_kinds

from segrl.importance.misleading import Suspect
from segrl.report import Entry, draw, ranks_of, terminal

WIDE = 400  # no line is broken


def shown(entry, colour=False):
    console = Console(file=StringIO(), width=WIDE, force_terminal=colour, color_system="standard" if colour else None)
    draw(terminal(entry), console)
    return console.file.getvalue()


def test_the_head_and_every_segment_with_its_numbers():
    # Strengths 2 / sqrt 2, 3 and 0.5 of 4.914 in all; the answer has none. The first two reach 0.7.
    entry = entry_of(["a b", "c", "d", "</think> \\boxed{12}"], scores_T=[1.0, -1.0, 3.0, 0.5, 0.0, 0.0], gap=0.3)
    lines = shown(entry).splitlines()
    assert [line for line in lines if "verdict   right (exact), answered 12" in line]
    assert [line for line in lines if "gap       0.3" in line]
    numbers = [line for line in lines if "#" in line]
    assert "#2    29% c 0.00 strength" in numbers[0]
    assert "#1    61% c 1.00 consistency" in numbers[1]
    assert "#3    10% c 1.00 forced" in numbers[2]
    assert len(numbers) == 3
    given_up = entry._replace(verdict=replace(entry.verdict, correct=False, status="timeout"))
    assert "verdict   undecided (timeout), answered 12" in shown(given_up)


def test_a_contrast_of_a_right_response_explains_the_gold_answer():
    entry = entry_of(["a b", "c", "</think> \\boxed{12}"], scores_T=[1.0, -1.0, 3.0, 0.0, 0.0])
    entry = entry._replace(attribution=replace(entry.attribution, target="contrast"))
    assert "explained the gold answer\n" in re.sub(" +", " ", shown(entry)).replace(" │", "")
    wrong = entry._replace(verdict=replace(entry.verdict, correct=False, status="numeric"))
    assert "explained the response's own answer against the gold one" in re.sub(" +", " ", shown(wrong))


def test_a_measure_is_called_by_its_name_and_has_no_consistency_that_it_does_not_know():
    entry = contrasted(["a b", "c", "</think> x"], [1.0, 3.0, 0.0])
    text = shown(entry._replace(views={"file": entry.views["mistake"]._replace(measure="alone")}))
    assert "measure   alone (file)" in text
    assert "#1    75% strength" in text


@pytest.mark.parametrize("entry", many_kinds(), ids=lambda entry: entry.trace.id)
def test_no_colour_when_piped_and_the_whole_text(entry):
    text = shown(entry)
    assert "\x1b" not in text
    for words in (HOSTILE, CHINESE, ARABIC.split("\n")[0]):
        assert (words in text) == (words in entry.trace.response)


def test_a_dropped_segment_is_dimmed_and_strong_tokens_are_tinted():
    entry = entry_of(["a b", "c", "d", "e", "</think> x"], scores_T=[4.0, -4.0, 0.0, 0.1, 3.0, 0.0, 0.0])
    text = shown(entry, colour=True)
    assert "\x1b[2m" in next(line for line in text.splitlines() if "dropped" in line)
    first = next(line for line in text.splitlines() if "#1" in line)
    [raised] = re.findall(r"\x1b\[([\d;]*)ma", first)
    [lowered] = re.findall(r"\x1b\[([\d;]*)m b", first)
    assert "44" in raised.split(";")  # on blue: it made the answer more likely
    assert "4" in lowered.split(";")  # underlined: it made it less likely


def test_the_thought_that_misled_is_red_and_called_so():
    entry = entry_of(["a b", "c", "d", "</think> x"], scores_T=[4.0, -4.0, 0.0, 0.1, 3.0, 0.0], gap=None)
    suspect = Suspect(1, score=0.9, reached=0.6, concludes=False)
    lines = shown(entry._replace(suspect=suspect), colour=True).splitlines()
    assert ["2" in line and "\x1b[1;31m" in line for line in lines if "misled" in line] == [True]
    assert sum("\x1b[1;31m" in line for line in lines) == 1
    assert not [line for line in lines if "gap" in line]  # not known of a single node
    for unmarked in (suspect._replace(concludes=True), suspect._replace(score=0.6), None):
        assert "misled" not in shown(entry._replace(suspect=unmarked))


def test_a_token_measure_counts_tokens():
    entry = entry_of(["a b", "c", "</think> x"], scores_T=[4.0, 1.0, 5.0, 0.0, 0.0])
    text = shown(entry._replace(views={"tokens": entry.views["tokens"]}))
    assert " 50%    2 of 2    tokens a b" in text  # first and last thought are kept
    assert " 50%    1 of 1    tokens c" in text


def test_without_a_selection_only_kinds_are_told():
    entry = entry_of(["a", "b", "c"])
    assert "#" not in shown(Entry(entry.trace, entry.segments))


def test_ranks_are_of_thoughts_ties_to_the_earlier():
    entry = entry_of(["a", "b", "c", "d"], scores_T=[1.0, 2.0, 2.0, 9.0])
    assert ranks_of(entry.views["ig"].scores) == [3, 1, 2, None]
