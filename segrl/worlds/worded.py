r"""Word problems in plain English, with planted truth: people, things, units, and numbers that are not needed.

A problem tells of three to seven steps, the first a product, each later one from a result before it, and of facts that
no step needs. A solution states each step with its arithmetic; between the steps stand thoughts that are not needed.

    problem   Ada packs 6 boxes with 12 pens in each. The hall has 9 rows of 14 chairs. Omar brings 15 more pens. 8 pens
              turn out to be dry. How many pens are there in the end?
    response  Okay, the boxes of Ada hold 6 * 12 = 72 pens.                              needed
              Next, the rows in the hall come to 9 * 14 = 126 chairs.                    superficial
              Now, with those that Omar brings the total is 72 + 15 = 87 pens.                  needed
              So, the problem says that Omar brings 15 more pens.                        superficial
              Here, the boxes of Ada hold 6 * 12 = 72 pens.                              repeat
              Then, without the dry ones the total is 87 - 8 = 79 pens.                         needed
              Well, that is everything.                                                  close
              </think> So, the final answer is \boxed{79}                                answer

In a wrong solution one step before the last states a wrong result (``wrong``), and what depends on it is computed
rightly from there (``carried``). The wrong result is neither the answer in the box nor the right one.

No surface feature should tell needed from redundant. Openers are drawn regardless of kind. A thought restates the fact,
or the two facts, whose digits and length come nearest to those of a step of the same solution.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations

from segrl.types import Trace
from segrl.worlds.halves import generated, short
from segrl.worlds.scenarios import NAMES, SCENARIOS, Product, Scenario, Turn

STEPS = (3, 4, 5, 6, 7)
LARGEST = 5000  # result of a step
NUMBERS = {"+": (12, 90), "-": (12, 60)}
FACTORS, EXTRA_FACTORS = ((3, 12), (4, 15)), ((11, 29), (11, 59))
MOST_THOUGHTS = 10
REDUNDANT = ("repeat", "repeat", "extra", "extra", "fact")
P_TRADE, P_BRANCH, P_EARLY = 0.6, 0.5, 0.7
OPENERS = ("Okay,", "So,", "Now,", "Next,", "Then,", "Well,", "Here,", "Also,", "Hmm,", "Let me see:")
SAID = ("the problem says that {}", "we know that {}", "it is given that {}", "as stated, {}", "{}")
TOTALS = ("the total is {eq}", "that makes {eq}", "it comes to {eq}")
CLOSES = ("that is everything.", "this is all that was asked.", "nothing is left to compute.")
SLIPS = (1, 2, 3, 5, 8, 10, 20, 30, 100)  # how far a wrong result is off, to either side

Thought = tuple[str, int]  # its kind, and the step it deals with or -1


@dataclass(frozen=True)
class Result:
    """An operand that is the result of an earlier step."""

    step: int


@dataclass(frozen=True)
class Step:
    """``left op right``, and the clause that states it."""

    left: int | Result
    op: str
    right: int | Result
    says: str

    def text(self, values: Sequence[int], value: int) -> str:
        """The clause with the arithmetic and its value in it."""
        left, right = (values[x.step] if isinstance(x, Result) else x for x in (self.left, self.right))
        return self.says.replace("{eq}", f"{left} {self.op} {right} = {value}")


@dataclass
class Story:
    """A problem as it is told: facts in order, the steps that the question needs, and the steps that it does not."""

    names: Mapping[str, str]
    facts: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    extras: list[Step] = field(default_factory=list)
    ask: str = ""

    @property
    def problem(self) -> str:
        return " ".join([*(f"{fact[0].upper()}{fact[1:]}." for fact in self.facts), self.ask])

    def say(self, text: str, **numbers: int) -> str:
        for name, value in {**self.names, **numbers}.items():
            text = text.replace(f"{{{name}}}", str(value))
        return text


def worded(half: str, n: int | None, seed: int, *, wrong: bool = False, most: int | None = None) -> list[Trace]:
    """n solutions, right or ``wrong`` ones, of at most ``most`` thoughts."""
    sample = sample_mistakes if wrong else sample_traces
    return generated(lambda count, s: short(lambda drawn: sample(drawn, s), count, most), half, n, seed)


def sample_traces(n: int, seed: int) -> list[Trace]:
    """n right solutions; ``meta`` has the kind of each segment in ``kinds`` and the step it deals with in ``steps``."""
    return [_trace(seed, index, wrong=False) for index in range(n)]


def sample_mistakes(n: int, seed: int) -> list[Trace]:
    """n wrong solutions of the same problems; ``Trace.answer`` stays the right answer, the box holds the wrong one."""
    return [_trace(seed, index, wrong=True) for index in range(n)]


def results(steps: Sequence[Step], slips: Mapping[int, int] | None = None) -> list[int]:
    """The result of each step; ``slips`` are wrong results that take the place of right ones."""
    values: list[int] = []
    for i, step in enumerate(steps):
        left, right = (values[x.step] if isinstance(x, Result) else x for x in (step.left, step.right))
        right_value = {"+": left + right, "-": left - right, "*": left * right}[step.op]
        values.append((slips or {}).get(i, right_value))
    return values


# --- the problem -----------------------------------------------------------------------------------------------------


def _story(rng: random.Random) -> Story:
    n = rng.choice(STEPS)
    while True:
        story = _told(rng, rng.choice(SCENARIOS), n)
        if all(1 < value <= LARGEST for value in results(story.steps)):
            return story


def _told(rng: random.Random, scenario: Scenario, n: int) -> Story:
    """A story of n steps; its results may be too large or too small."""
    story = Story(dict(zip("ABC", rng.sample(NAMES, 3), strict=True)))
    turns, trade, money = _parts(rng, scenario, n)
    _tell_product(rng, story, scenario.start)
    for part in turns:
        if isinstance(part, Product):
            _tell_branch(rng, story, part, scenario.unit)
        else:
            _tell_turn(rng, story, part, scenario.unit)
    for turn in (*trade, *money):
        _tell_turn(rng, story, turn, "dollars")
    story.ask = story.say(scenario.ask_money if trade else scenario.ask)
    _add_distractors(rng, story, scenario)
    return story


def _parts(rng: random.Random, scenario: Scenario, n: int) -> tuple[list[Turn | Product], list[Turn], list[Turn]]:
    """What follows the start: turns and perhaps a branch, which takes two steps; the trade; turns of money."""
    while True:
        trade = [scenario.trade] if rng.random() < P_TRADE else []
        money = rng.sample(scenario.money, rng.randint(0, 2)) if trade else []
        branch = [scenario.branch] if rng.random() < P_BRANCH else []
        left = n - 1 - len(trade) - len(money) - 2 * len(branch)
        if 0 <= left <= len(scenario.turns):
            turns: list[Turn | Product] = [*rng.sample(scenario.turns, left), *branch]
            return rng.sample(turns, len(turns)), trade, money


def _tell_product(rng: random.Random, story: Story, product: Product) -> None:
    x, y = (rng.randint(*factor) for factor in FACTORS)
    story.facts.append(story.say(product.fact, x=x, y=y))
    story.steps.append(Step(x, "*", y, story.say(product.says)))


def _tell_branch(rng: random.Random, story: Story, branch: Product, unit: str) -> None:
    before = Result(len(story.steps) - 1)
    _tell_product(rng, story, branch)
    says = story.say(f"{branch.when} {rng.choice(TOTALS)} {unit}")
    story.steps.append(Step(before, "+", Result(len(story.steps) - 1), says))


def _tell_turn(rng: random.Random, story: Story, turn: Turn, unit: str) -> None:
    low, high = turn.numbers or NUMBERS[turn.op]
    before = results(story.steps)[-1]
    number = rng.randint(low, high if turn.op != "-" else max(low, min(high, before // 2)))
    story.facts.append(story.say(turn.fact, n=number))
    says = story.say(f"{turn.when} {rng.choice(TOTALS)} {unit}")
    story.steps.append(Step(Result(len(story.steps) - 1), turn.op, number, says))


def _add_distractors(rng: random.Random, story: Story, scenario: Scenario) -> None:
    """Put one or two products and up to two numbers that are not needed anywhere between the facts."""
    told = []
    for extra in rng.sample(scenario.extras, rng.randint(1, 2)):
        x, y = (rng.randint(*factor) for factor in EXTRA_FACTORS)
        told.append(story.say(extra.fact, x=x, y=y))
        story.extras.append(Step(x, "*", y, story.say(extra.says)))
    told += [story.say(aside, n=rng.randint(12, 60)) for aside in rng.sample(scenario.asides, rng.randint(0, 2))]
    for fact in told:
        story.facts.insert(rng.randint(0, len(story.facts)), fact)


# --- the solution ----------------------------------------------------------------------------------------------------


def _trace(seed: int, index: int, wrong: bool) -> Trace:
    rng = random.Random(f"segrl worded {seed} {index}")  # seeding by str is stable over processes and Python versions
    story = _story(rng)
    right = results(story.steps)
    slips = _slip(rng, story.steps) if wrong else {}
    values = results(story.steps, slips)
    off = [value != known for value, known in zip(values, right, strict=True)]
    plan = _plan(rng, off)
    thoughts = _texts(rng, story, plan, values)
    return Trace(
        id=f"worded-{seed}-{index}" + "-wrong" * wrong,
        problem=story.problem,
        response="\n\n".join(thoughts) + f"\n</think> So, the final answer is \\boxed{{{values[-1]}}}",
        answer=str(right[-1]),
        meta={
            "problem_id": f"worded-{seed}-{index}",
            "n_steps": len(values),
            "kinds": (*(_kind(thought, off, slips) for thought in plan), "answer"),
            "steps": (*(at for _, at in plan), -1),
        },
    )


def _slip(rng: random.Random, steps: Sequence[Step]) -> dict[int, int]:
    """A wrong result of one step before the last. It changes the answer, and its digits stand in neither answer."""
    right = results(steps)
    slips = [{i: right[i] + side * size} for i in range(len(steps) - 1) for size in SLIPS for side in (1, -1)]
    for slip in rng.sample(slips, len(slips)):
        values = results(steps, slip)
        [stated] = slip.values()
        spoilt = any(str(stated) in str(answer) for answer in (values[-1], right[-1]))
        if min(values) > 1 and values[-1] != right[-1] and not spoilt:
            return slip
    raise AssertionError(f"no mistake can be carried through {steps}")


def _plan(rng: random.Random, off: Sequence[bool]) -> list[Thought]:
    """The kind and the step of each thought, in order; only right steps are repeated, and only once stated."""
    n = len(off)
    before: list[list[Thought]] = [[] for _ in range(n)]
    after: list[list[Thought]] = [[] for _ in range(n)]
    for _ in range(rng.randint(1, min(n, 4, MOST_THOUGHTS - 1 - n))):
        at = rng.randrange(n)
        repeatable = [i for i in range(max(0, at - 2), at + 1) if not off[i]]
        kind = rng.choice(REDUNDANT)
        if kind == "repeat" and repeatable:
            after[at].append((kind, rng.choice(repeatable)))
        elif kind != "repeat":
            (before if rng.random() < P_EARLY else after)[at].append((kind, -1))
    thoughts = [[*before[at], ("step", at), *after[at]] for at in range(n)]
    return [*(thought for group in thoughts for thought in group), ("close", -1)]


def _kind(thought: Thought, off: Sequence[bool], slips: Mapping[int, int]) -> str:
    """The kind as the toy world names it."""
    name, at = thought
    if name != "step":
        return {"fact": "superficial", "extra": "superficial"}.get(name, name)
    return "wrong" if at in slips else "carried" if off[at] else "needed"


def _texts(rng: random.Random, story: Story, plan: Sequence[Thought], values: Sequence[int]) -> list[str]:
    steps = [step.text(values, value) for step, value in zip(story.steps, values, strict=True)]
    extras = [step.text([], results([step])[0]) for step in story.extras]
    texts = []
    for name, at in plan:
        if name == "fact":
            text = _restated(rng, story.facts, rng.choice(steps))
        elif name == "extra":
            text = rng.choice(extras)
        else:
            text = steps[at] if at >= 0 else ""
        core = rng.choice(CLOSES) if name == "close" else f"{text}."
        texts.append(f"{rng.choice(OPENERS)} {core}")
    return texts


def _restated(rng: random.Random, facts: Sequence[str], like: str) -> str:
    """One fact or two, said in the way that comes nearest to ``like`` in digits and length."""
    said = [*facts, *(" and ".join(pair) for pair in permutations(facts, 2))]
    texts = [form.format(text) for text in said for form in SAID]
    digits, length = _digits(like), len(like)
    rng.shuffle(texts)
    return min(texts, key=lambda text: abs(_digits(text) - digits) * 10 + abs(len(text) - length))


def _digits(text: str) -> int:
    return sum(map(str.isdigit, text))
