"""Which problems of the training set come next, by their pass rates, in one phase or two.

A problem is a row of the training set. Nothing here knows of verl, Ray or a model.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Generator, Tensor

from segrl.resolving import check_options, resolve

# --- orders: from pass rates to the problems that come next ----------------------------------------------------------


def shuffled(rates_Q: Tensor, count: int, generator: Generator) -> list[int]:
    """All problems once, in a random order."""
    return torch.randperm(len(rates_Q), generator=generator).tolist()


def easy_to_hard(rates_Q: Tensor, count: int, generator: Generator) -> list[int]:
    """All problems once, from the highest pass rate to the lowest; equal ones in a random order."""
    mixed = torch.randperm(len(rates_Q), generator=generator)
    return mixed[rates_Q[mixed].argsort(descending=True, stable=True)].tolist()


def gaussian(rates_Q: Tensor, count: int, generator: Generator, centre: float = 0.5, width: float = 0.25) -> list[int]:
    """``count`` problems, drawn by weights exp(-(rate - centre)² / (2 width²))."""
    if width <= 0:
        raise ValueError(f"gaussian with width={width}, expected more than 0")
    shares_Q = torch.softmax(-((rates_Q - centre) / width).square() / 2, 0)
    return systematic(shares_Q, count, generator)


# Each takes the problems' pass rates, the number of problems in a step, a generator, and its options. It returns
# positions in the rates: of all problems for a whole pass, or of one step's problems.
ORDERS: dict[str, Callable[..., list[int]]] = {
    "shuffled": shuffled,
    "easy_to_hard": easy_to_hard,
    "gaussian": gaussian,
}


def systematic(shares_Q: Tensor, count: int, generator: Generator) -> list[int]:
    """``count`` positions in a random order. Each occurs ``count`` times its share, rounded down or up.

    This is systematic sampling: intervals as long as ``count`` times the shares are laid end to end, and points one
    apart, with a random start, fall on them. Independent draws would put a problem twice into one step and leave it out
    of the next.
    """
    mixed = torch.randperm(len(shares_Q), generator=generator)
    ends_Q = (shares_Q[mixed] * count).cumsum(0)
    teeth = torch.arange(count) + torch.rand((), dtype=torch.float64, generator=generator)
    hit = torch.searchsorted(ends_Q, teeth, right=True).clamp(max=len(mixed) - 1)
    return mixed[hit].tolist()


# --- settings --------------------------------------------------------------------------------------------------------


@dataclass
class CurriculumSettings:
    """Which problems come next: the section ``segrl.curriculum`` of `segrl grpo`."""

    # shuffled, easy_to_hard, gaussian (those solved half of the time come most often), or package.module:function;
    # null: verl's own order, and the rest of this section has no effect
    order: str | None = None
    options: dict[str, Any] = field(default_factory=dict)  # of that function: {centre: 0.5, width: 0.25} for gaussian
    # the average pass rate from which a problem counts as solved and comes no more, like 0.95; null: none is dropped
    drop_solved: float | None = None
    drop_visits: int = 2  # the steps that must have had a problem before it counts as solved
    decay: float = 0.5  # the weight of a problem's average at its next visit; 0: its last pass rate alone counts
    unseen: float = 0.5  # the pass rate that a problem has before its first visit
    # the reward from which a rollout has passed; where the reward function gives an `acc`, it is compared instead
    passed_from: float = 0.5
    convergence: str | None = None  # the order of a second phase; null: there is one phase
    convergence_options: dict[str, Any] = field(default_factory=dict)  # of that order
    convergence_step: int | None = None  # the step with which the second phase begins
    # or it begins after the first step with less entropy than this, by verl's actor/entropy; the earlier of both counts
    convergence_entropy: float | None = None

    def __post_init__(self) -> None:
        for name, options in (("order", "options"), ("convergence", "convergence_options")):
            _check_order(name, getattr(self, name), getattr(self, options))
        for name in ("decay", "unseen", "drop_solved"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"segrl.curriculum.{name}={value}, expected a number from 0 to 1")
        if self.decay == 1:
            raise ValueError("segrl.curriculum.decay=1 leaves every average at the first pass rate; take less")
        if self.drop_visits < 1:
            raise ValueError(f"segrl.curriculum.drop_visits={self.drop_visits}, expected 1 or more")
        begins = self.convergence_step is not None or self.convergence_entropy is not None
        if begins != (self.convergence is not None):
            raise ValueError(
                f"segrl.curriculum.convergence={self.convergence} with convergence_step={self.convergence_step} and "
                f"convergence_entropy={self.convergence_entropy}: a second phase needs an order, and a step or an "
                "entropy with which it begins"
            )
        if self.convergence and not self.order:
            raise ValueError(
                f"segrl.curriculum.convergence={self.convergence} without segrl.curriculum.order, the order of the "
                "first phase; give one, like shuffled"
            )


def _check_order(key: str, name: str | None, options: Mapping[str, Any]) -> None:
    """Raise where the order does not exist or does not take these options."""
    if name is not None:
        order = resolve(name, ORDERS, "order of problems")
        made_up = (torch.tensor([0.2, 0.8], dtype=torch.float64), 1, Generator())
        check_options(f"segrl.curriculum.{key}={name}", order, made_up, options)
        order(*made_up, **options)


# --- state -----------------------------------------------------------------------------------------------------------


class Difficulty:
    """The moving average of each problem's pass rate, and its visits: the steps that had it.

    The first pass rate is the first average; from then on it is decay x average + (1 - decay) x pass rate. A problem
    without a visit has the rate ``unseen``.
    """

    def __init__(self, decay: float, unseen: float) -> None:
        self.decay, self.unseen = decay, unseen
        self.rates: dict[int, float] = {}
        self.visits: dict[int, int] = {}

    def update(self, problem: int, passed: float) -> None:
        """Take one step into the average: ``passed`` is the share of the problem's rollouts that passed in it."""
        if not 0 <= passed <= 1:
            raise ValueError(f"problem {problem}: a share of {passed} of its rollouts passed, expected one from 0 to 1")
        average = self.rates.get(problem, passed)
        self.rates[problem] = self.decay * average + (1 - self.decay) * passed
        self.visits[problem] = self.visits.get(problem, 0) + 1

    def rate(self, problem: int) -> float:
        return self.rates.get(problem, self.unseen)

    def solved(self, problem: int, threshold: float, visits: int) -> bool:
        """Whether the problem has had ``visits`` visits and its average has reached ``threshold``."""
        return self.visits.get(problem, 0) >= visits and self.rates[problem] >= threshold

    def state_dict(self) -> dict[str, Tensor]:
        return {
            "problems": torch.tensor(list(self.rates), dtype=torch.int64),
            "rates": torch.tensor(list(self.rates.values()), dtype=torch.float64),
            "visits": torch.tensor([self.visits[problem] for problem in self.rates], dtype=torch.int64),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        problems = state["problems"].tolist()
        self.rates = dict(zip(problems, state["rates"].tolist(), strict=True))
        self.visits = dict(zip(problems, state["visits"].tolist(), strict=True))


class Phases:
    """Exploration, then convergence. Convergence begins at a step or after a step of less entropy, and never ends."""

    def __init__(self, step: int | None = None, entropy: float | None = None) -> None:
        self.step, self.entropy = step, entropy
        self.converging = step is not None and step <= 1

    def after(self, step: int, entropy: float | None) -> None:
        """Update the phase after a step, with its policy's entropy where that is known."""
        due = self.step is not None and step + 1 >= self.step
        low = self.entropy is not None and entropy is not None and entropy < self.entropy
        self.converging = self.converging or due or low

    def state_dict(self) -> dict[str, bool]:
        return {"converging": self.converging}

    def load_state_dict(self, state: Mapping[str, bool]) -> None:
        self.converging = state["converging"] and (self.step is not None or self.entropy is not None)


class Curriculum:
    """A sampler without end over the rows of the training set, in an order that follows the pass rates it observes.

    The next rows depend on its state and on later calls of ``observe`` alone. An order over all problems is called
    again after each pass; an order that draws one step's problems is called at every step.
    """

    def __init__(self, settings: CurriculumSettings, rows: int, batch: int, seed: int = 0) -> None:
        self.settings, self.rows, self.batch = settings, rows, batch
        self.difficulty = Difficulty(settings.decay, settings.unseen)
        self.phases = Phases(settings.convergence_step, settings.convergence_entropy)
        self.generator = Generator().manual_seed(seed)
        self.waiting: deque[int] = deque()  # rows that are drawn and not yet yielded

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        while True:
            if not self.waiting:
                self.waiting.extend(self._drawn())
            yield self.waiting.popleft()

    def observe(self, passed: Mapping[int, float], step: int, entropy: float | None = None) -> None:
        """Note a step: by row, the share of its rollouts that passed; and the policy's entropy."""
        for row, share in passed.items():
            self.difficulty.update(row, share)
        before = self.phases.converging
        self.phases.after(step, entropy)
        if self.phases.converging != before:
            self.waiting.clear()
        self.waiting = deque(row for row in self.waiting if not self._solved(row))

    def metrics(self) -> dict[str, float]:
        rates, settings = self.difficulty.rates, self.settings
        metrics = {
            "segrl/seen_share": len(rates) / self.rows,
            "segrl/phase": float(self.phases.converging),
        }
        metrics |= {"segrl/pass_rate_mean": fmean(rates.values())} if rates else {}
        if settings.drop_solved is not None:
            metrics["segrl/solved_share"] = sum(map(self._solved, rates)) / self.rows
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "difficulty": self.difficulty.state_dict(),
            "phases": self.phases.state_dict(),
            "generator": self.generator.get_state(),
            "waiting": torch.tensor(list(self.waiting), dtype=torch.int64),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["rows"] != self.rows:
            raise ValueError(
                f"the checkpoint's curriculum is of {state['rows']} rows, the training set has {self.rows}; go on with "
                "the data that the run began with, or choose another out="
            )
        self.difficulty.load_state_dict(state["difficulty"])
        self.phases.load_state_dict(state["phases"])
        self.generator.set_state(state["generator"])
        self.waiting = deque(state["waiting"].tolist())

    def _drawn(self) -> list[int]:
        settings = self.settings
        name, options = settings.order, settings.options
        if self.phases.converging:
            name, options = settings.convergence, settings.convergence_options
        rows = self._unsolved()
        rates_Q = torch.tensor([self.difficulty.rate(row) for row in rows], dtype=torch.float64)
        order = resolve(name or "", ORDERS, "order of problems")
        drawn = order(rates_Q, self.batch, self.generator, **options)
        if not drawn:
            raise ValueError(f"the order of problems {name} gave none of {len(rows)}; expected one position at least")
        return [rows[position] for position in drawn]

    def _unsolved(self) -> Sequence[int]:
        """The rows to draw from; all of them where all are solved, since a step needs some."""
        return [row for row in range(self.rows) if not self._solved(row)] or range(self.rows)

    def _solved(self, row: int) -> bool:
        threshold = self.settings.drop_solved
        return threshold is not None and self.difficulty.solved(row, threshold, self.settings.drop_visits)


def pass_rates(
    problems: Sequence[int], sessions: Sequence[str], rewards: Sequence[float], passed_from: float
) -> dict[int, float]:
    """By problem, the share of its sessions that passed. The rows of one session, its turns, have the same reward."""
    passed: dict[int, dict[str, bool]] = defaultdict(dict)
    for problem, session, reward in zip(problems, sessions, rewards, strict=True):
        passed[problem][session] = reward >= passed_from
    return {problem: fmean(of_sessions.values()) for problem, of_sessions in passed.items()}
