"""The verdict as users see it: what is right, what is not, and which stage says so."""

import asyncio
import threading
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testkit.real import real_traces

import segrl
from segrl.grading.verdict import COMPARED, cheap

RIGHT = r"""
27 | 27. | exact
3.14159 | 3.141592653 | numeric
2.718281828 | 2.71828 | numeric
-1.4142135 | -1.41421356 | numeric
27 | $27$ | exact
\frac{1}{2} | \dfrac12 | exact
\text{Even} | even | exact
\begin{bmatrix} 1 & 0 \\ 0 & 1 \end{bmatrix} | \begin{pmatrix}1&0\\0&1\end{pmatrix} | symbolic
\frac{1}{2} | 0.5 | numeric
-\frac{1}{2} | \frac{1}{-2} | numeric
1\frac{4}{5} | 1.8 | numeric
-2\frac13 | -\frac{7}{3} | numeric
3 1/2 | 7/2 | numeric
1000 | 1,000 | numeric
1000 | 1{,}000 | exact
1000 | 1\,000 | exact
1000 | 1 000 | exact
900,\!000 | 900000 | exact
1000,99 | 1000.99 | numeric
4.5e33 | 4.5 \times 10^{33} | numeric
1e-8 | 1.0 × 10⁻⁸ | numeric
0.1\overline{6} | \frac{1}{6} | numeric
50\% | 50 | numeric
50\% | \frac12 | numeric
0.5 | 50 percent | numeric
\$18.90 | 18.9 | numeric
\$32{,}348 | 32348 \text{ dollars} | numeric
5\text{ km} | 5 km | exact
5\text{ km} | 5000 meters | numeric
10 \text{ m/s} | 36 \text{ km/h} | numeric
15\mbox{ cm}^2 | 15 \text{ square centimeters} | numeric
60 \text{ mph} | 60 \text{ miles per hour} | numeric
3\text{ square units} | 3 | numeric
48^\circ | 48 | numeric
\frac{\pi}{6} | 30^\circ | numeric
12 | 12^{\mathrm{th}} | exact
2516_8 | 2516_{8} | exact
2516_8 | 2516_{\text{eight}} | exact
1011_2 | 1011 | numeric
3:2 | \frac{3}{2} | numeric
1:2:3 | 2:4:6 | numeric
3:30\text{ p.m.} | 3:30 | numeric
\text{June 20} | 20\text{ June} | exact
\text{(B)} | B | exact
B | \textbf{(B)}\ 12 | exact
C | Option C | exact
C | The answer is (C) | exact
x=5 | 5 | symbolic
7 | n=7 | symbolic
7 | \text{The answer is } 7 | numeric
7 | n \text{ where } n=7 | numeric
11 | x = 5+5+1 = 11 | symbolic
\frac{\sqrt3}{3} | \frac{1}{\sqrt{3}} \approx 0.577 | symbolic
m_{\max}=n^2-n-1 | n^2-n-1 | symbolic
f(n)=n^2 | f(m) = m^2 | symbolic
y=2x+3 | 2x+3 | symbolic
2x+3y=5 | 4x+6y-10=0 | symbolic
xy=6 | \frac{6}{x} | symbolic
x>3 | (3,\infty) | symbolic
20<P<30 | (20, 30) | symbolic
x < 1 | -x > -1 | symbolic
(-\infty,0)\cup(1,\infty) | x<0 \text{ or } x>1 | symbolic
[-2,7] | \{x \in \mathbb{R} \mid -2 \le x \le 7\} | symbolic
x \ne 1 | \mathbb{R} \setminus \{1\} | symbolic
1\leq|z|\leq \frac{3}{2} | z \in [-1.5,-1] \cup [1,1.5] | symbolic
1,-2 | x=-2 \text{ or } x=1 | symbolic
\{1,2\} | 2, 1 | symbolic
\{1,1,2\} | \{2,1\} | symbolic
\pm 2 | 2, -2 | symbolic
1 \pm \sqrt{19} | 1+\sqrt{19}, 1-\sqrt{19} | symbolic
p=5,q=2;p=7,q=2 | (5,2),(7,2) | symbolic
1,2,3 | (x,y,z) = (1,2,3) | symbolic
(1,2,3) | \begin{pmatrix}1\\2\\3\end{pmatrix} | symbolic
x=\frac{\pi}{6}+k\pi | \frac{\pi}{6}+n\pi, n \in \mathbb{Z} | symbolic
\emptyset | \{\} | symbolic
(x+1)^2 | x^2+2x+1 | symbolic
\tan^2 y + 1 | \sec^2 y | symbolic
\binom{10}{3} | 120 | numeric
\frac{d!}{2k(d-k)!} | \frac{1}{2}\binom{d}{k}(k-1)! | symbolic
\sqrt{1/n} | \frac{1}{\sqrt{n}} | symbolic
\frac{600}{7}\text{ cm} | 85.714286 | numeric
0.458 | \frac{27}{59} | numeric
2004! | 2004! | exact
10^{10^7} | 10^{10^7} | exact
"""
WRONG = r"""
27 | 28 | numeric
12345.67 | 12345.68 | numeric
1000.25 | 1000.24 | numeric
0.142857 | 0.142858 | numeric
3.141592653 | 3.14158 | numeric
\frac{1}{2^{98}} | \frac{1}{2^{99}} | numeric
\frac{10^{20}}{3} | \frac{10^{20}+1}{3} | numeric
4.5e33 | 4.5e32 | numeric
0 | e^{-100} | numeric
11/2 | 1 1/2 | numeric
25 | 2,5 | symbolic
12,34 | 1234 | symbolic
(1,234) | (1234) | symbolic
50 | 0.5 | numeric
5\text{ km} | 5\text{ m} | numeric
15 \text{ cm}^2 | 15 \text{ cm}^3 | numeric
3\text{ apples} | 3\text{ pears} | numeric
\$5 | 5 \text{ euros} | numeric
5m | 5 | symbolic
2516_8 | 2516_9 | numeric
1011_2 | 11 | numeric
12:00 | 1:00 | numeric
9:30\text{ a.m.} | 9:30\text{ p.m.} | numeric
C | A, B, C, D | symbolic
C | D | exact
A | The answer is A or C | symbolic
\text{oddd} | odd | exact
ab | ba | exact
x=5 | y=5 | symbolic
f(x)=2x | g(x)=2x | symbolic
k+1 | n+1 | symbolic
7 | 7=8 | symbolic
7 | 6<7 | symbolic
7 | x > 7 | symbolic
7 | 7, 8 | symbolic
7 | 7 \text{ or } 8 | symbolic
7 | \{6,7\} | symbolic
7 | [7,7] | symbolic
7 | \text{not } 7 | exact
7 | 8\text{ (not 7)} | exact
7 | \text{between }1\text{ and }10 | exact
7 | 3\text{ apples and }7\text{ pears} | symbolic
7 | 7\text{ if lucky, else }8 | exact
7 | 6 \to 7 | symbolic
7 | \infty | numeric
7 | \frac{7}{0} | numeric
3.14 | \pi | numeric
\frac{1}{3} | 0.333 | numeric
(1,2) | (2,1) | symbolic
[0,1] | (0,1) | symbolic
x>3 | x \ge 3 | symbolic
1,1,2 | 1,2 | symbolic
\pm 2 | 2 | numeric
(1,2),(3,4) | (1,2),(4,3) | symbolic
\begin{pmatrix} 1 & 2 \end{pmatrix} | \begin{pmatrix} 1 \\ 2 \end{pmatrix} | symbolic
|x| | x | symbolic
y=2x+3 | 2x+4 | symbolic
xy=6 | \frac{6}{x+1} | symbolic
\frac{x^2}{4}+\frac{y^2}{3}=1 | \frac{x^2}{16}+\frac{y^2}{12}=1 | symbolic
4 | 4\sqrt(2) | numeric
1 | 9^{9^{9^{9}}} | refused
1 | 100000000! | refused
1 | \binom{1000000}{500000} | refused
1 | 7^{1000000} | refused
1 | \Gamma(100000000) | refused
\frac{1}{2004!} | \frac{1}{2006!} | refused
7 | \text{} | no_answer
"""


def cases(block: str) -> list[tuple[str, str, str]]:
    rows = [line.rsplit(" | ", 1) for line in block.strip().splitlines()]
    return [(*both.split(" | ", 1), status) for both, status in rows]


@pytest.mark.parametrize(("gold", "pred", "status"), cases(RIGHT))
def test_an_answer_written_otherwise_is_right(gold, pred, status):
    verdict = segrl.grade_answer(gold, pred)
    assert (verdict.correct, verdict.status, verdict.pred, verdict.gold) == (True, status, pred, gold)
    assert verdict.ms >= 0
    assert not verdict.wrong


@pytest.mark.parametrize(("gold", "pred", "status"), cases(WRONG))
def test_an_answer_that_is_not_the_gold_is_wrong(gold, pred, status):
    verdict = segrl.grade_answer(gold, pred)
    assert (verdict.correct, verdict.status) == (False, status)
    assert verdict.wrong == (status not in ("refused", "no_answer"))  # else it was not compared


@pytest.mark.parametrize(
    ("gold", "pred", "status"),
    [
        *(("27", None, "no_answer"), ("27", "", "no_answer"), ("27", " \n", "no_answer")),
        *(("", "", "gold_unparsable"), (" ", "7", "gold_unparsable")),  # the response is not to blame
    ],
)
def test_nothing_is_no_answer(gold, pred, status):
    verdict = segrl.grade_answer(gold, pred)
    assert (verdict.correct, verdict.status) == (False, status)


@pytest.mark.parametrize("pred", ["1" * 100_000, "\\frac{" * 30_000, "1," * 50_000, "{" * 100_000, "0." + "1" * 10**6])
def test_what_is_too_long_is_the_same_text_or_refused(pred):
    assert cheap("1", pred) == (False, "refused")
    assert cheap(pred, pred) == (True, "exact")


def test_what_only_computer_algebra_knows_is_asked_of_a_worker():
    verdict = segrl.grade_answer("55", "\\sum_{k=1}^{10} k")
    assert (verdict.correct, verdict.status) == (True, "symbolic")
    assert segrl.grade_answer("54", "\\sum_{k=1}^{10} k").correct is False
    assert segrl.grade_answer("\\sum_{", "7").status == "gold_unparsable"


def test_a_verdict_in_a_thread_or_an_event_loop_is_the_same():
    from segrl.grading import grade_async

    found = []
    thread = threading.Thread(target=lambda: found.append(segrl.grade_answer("\\frac{\\sqrt{2}}{2}", "2^{-1/2}")))
    thread.start()
    thread.join(60)
    found.append(asyncio.run(grade_async("\\frac{\\sqrt{2}}{2}", "\\boxed{2^{-1/2}}")))
    assert [(v.correct, v.status) for v in found] == [(True, "numeric")] * 2


def test_a_loop_runs_on_while_long_answers_are_read():
    """The loop's own thread works a few milliseconds between two of its turns, not those of four texts."""
    texts = ["\\boxed{" + "{" * 300_000, "\\boxed{" + "1" * 1_000_000 + "}", "\\boxed{" + "\\frac{" * 50_000]
    between = []

    async def watch() -> None:
        last = time.thread_time()
        while True:
            await asyncio.sleep(0.002)
            between.append(time.thread_time() - last)
            last = time.thread_time()

    async def run() -> list:
        watcher = asyncio.create_task(watch())
        await asyncio.sleep(0.01)
        found = await asyncio.gather(*(segrl.grading.grade_async("2", text) for text in 2 * texts))
        await asyncio.sleep(0.01)
        watcher.cancel()
        return found

    assert {one.status for one in asyncio.run(run())} == {"no_answer", "refused"}
    assert max(between) < 0.03


def test_threads_share_no_precision():
    """mpmath's caches are not made for threads: 8 of them at once must agree with one alone."""
    pairs = [(f"\\sin {n}^\\circ", f"\\cos {90 - n}^\\circ") for n in range(1, 40)]
    found: list[bool] = []
    threads = [
        threading.Thread(target=lambda: found.extend(segrl.grade_answer(*pair).correct for pair in pairs))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [True] * (8 * len(pairs))


def rendered(value: Fraction) -> list[str]:
    """One rational in many forms."""
    n, d = value.numerator, value.denominator
    sign, size = ("-" if n < 0 else ""), abs(n)
    forms = [f"\\frac{{{n}}}{{{d}}}", f"{sign}\\dfrac{{{size}}}{{{d}}}", f"{n}/{d}", f"({n})/({d})", f"x = {n}/{d}"]
    forms += [f"\\boxed{{{n}/{d}}}", f"\\frac{{{3 * n}}}{{{3 * d}}}", f"${n} / {d}$.", f"{n}\\cdot {d}^{{-1}}"]
    if d == 1:
        forms += [f"{n}", f"{n}.0", f"{n:,}", f"{n:,}".replace(",", "{,}"), f"{n}\\text{{ cm}}", f"{n}^\\circ"]
        forms += [f"\\text{{{n}}}", f"{n} \\times 10^0", f"{n}e0", f"\\left({n}\\right)", f"{n}\\%"]
    if size > d > 1:
        forms.append(f"{sign}{size // d}\\frac{{{size % d}}}{{{d}}}")
    if 10**6 % d == 0:
        forms.append(f"{float(value):.6f}")
    return forms


@settings(max_examples=60, deadline=None)
@given(st.fractions(-(10**5), 10**5, max_denominator=64), st.data())
def test_a_number_is_itself_in_any_form_and_no_other(value, data):
    forms = rendered(value)
    gold, pred = data.draw(st.sampled_from(forms)), data.draw(st.sampled_from(forms))
    assert segrl.grade_answer(gold, pred).correct
    other = data.draw(st.sampled_from([value + 1, -value, value / 2, value * 10, value + Fraction(1, 64)]))
    if other not in (value, value / 100, value * 100):  # which a percent sign allows
        verdict = segrl.grade_answer(gold, data.draw(st.sampled_from(rendered(other))))
        assert not verdict.correct


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-99, 99), min_size=2, max_size=5, unique=True), st.randoms())
def test_a_set_has_no_order_and_a_tuple_has_one(members, random):
    shuffled = random.sample(members, len(members))
    listed, mixed = ", ".join(map(str, members)), ", ".join(map(str, shuffled))
    assert segrl.grade_answer(f"\\{{{listed}\\}}", mixed).correct
    assert segrl.grade_answer(listed, f"\\{{{mixed}\\}}").correct
    assert segrl.grade_answer(f"({listed})", f"({mixed})").correct == (members == shuffled)
    assert not segrl.grade_answer(listed, ", ".join(map(str, members[1:]))).correct
    assert not segrl.grade_answer(listed, ", ".join(map(str, [100, *members[1:]]))).correct


@settings(max_examples=40, deadline=None)
@given(st.integers(-9, 9), st.integers(-9, 9), st.integers(1, 9))
def test_a_polynomial_is_its_factors_and_no_neighbour(a, b, c):
    product = f"{c}(x+{a})(x+{b})".replace("+-", "-")
    spelt = f"{c}x^2+{c * (a + b)}x+{c * a * b}".replace("+-", "-")
    assert segrl.grade_answer(product, spelt).correct
    assert segrl.grade_answer(spelt, product).correct
    assert not segrl.grade_answer(product, f"{spelt}+1").correct


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("0123456789+-*/^_(){}[]|,;:.=<>!%$&\\ xynfeiπ√°½²≤∞"), max_size=24), st.booleans())
def test_no_text_breaks_the_cheap_stages(text, as_gold):
    verdict = cheap(text, "7") if as_gold else cheap("\\frac{x}{7}", text)
    assert verdict is None or verdict[1] in (*COMPARED, "no_answer", "refused") or (as_gold and not text.strip())
    if text.strip():
        assert cheap(text, text) == (True, "exact")


def test_real_traces_get_their_recorded_verdicts():
    verdicts = [segrl.grade(trace.answer, trace.response) for trace in real_traces()]
    assert [v.correct for v in verdicts] == [trace.meta["correct"] for trace in real_traces()]
    assert sum(v.correct for v in verdicts) == 38


def test_a_trace_cut_before_its_thinking_ends_has_no_answer():
    for trace in real_traces():
        cut = trace.response[: trace.response.index("</think>")]
        assert segrl.grade(trace.answer, cut, thinking="required").status == "no_answer"
        assert segrl.grade(trace.answer, cut, prompt="<|Assistant|><think>\n").status == "no_answer"
        assert segrl.grade(trace.answer, cut, prompt="<think>", thinking="none", finish="length").status == "no_answer"
