"""One measured figure as one JSON line, the same shape from every bench script, and when not to print one."""

import json
import os
import signal
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum

BUSY = 3
"""Exit code of a script that refused to report a figure."""


class Wanted(StrEnum):
    """On which side of its goal a figure holds."""

    AT_LEAST = ">="
    AT_MOST = "<="


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound that a figure should keep, for example `<= 1.25`."""

    wanted: Wanted
    bound: float

    def holds(self, value: float) -> bool:
        """Return whether `value` keeps the bound."""
        return value >= self.bound if self.wanted is Wanted.AT_LEAST else value <= self.bound

    def __str__(self) -> str:
        return f"{self.wanted} {self.bound:g}"


@dataclass(frozen=True, slots=True)
class Result:
    """One figure: the median of `samples`, what it is compared with in the same run, and every parameter."""

    bench: str
    case: str
    metric: str
    samples: Sequence[float]
    unit: str
    goal: Goal | None = None
    rival: str | None = None
    parameters: Mapping[str, object] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """Median of the samples."""
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """Distance of the extreme samples, relative to the median; 0 for a single sample."""
        return (max(self.samples) - min(self.samples)) / abs(self.value) if self.value else 0.0

    @property
    def noise(self) -> float:
        """Distance of the quartiles, relative to the median: what a few disturbed samples do not move."""
        if len(self.samples) < 4 or not self.value:
            return 0.0
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return (high - low) / abs(self.value)

    @property
    def holds(self) -> bool | None:
        """Whether the goal is kept; None without a goal."""
        return None if self.goal is None else self.goal.holds(self.value)

    def line(self) -> str:
        """Return the figure as one line of JSON."""
        fields = asdict(self)
        fields.update(
            value=self.value,
            samples=[float(f"{sample:.6g}") for sample in self.samples],
            spread=round(self.spread, 4),
            goal=None if self.goal is None else str(self.goal),
            holds=self.holds,
            load=round(os.getloadavg()[0], 2),
        )
        return json.dumps(fields, sort_keys=True)


def emit(result: Result) -> None:
    """Print one result as a JSON line, and say in red on stderr when its goal is missed."""
    print(result.line(), flush=True)
    if result.holds is False:
        colour, reset = ("\033[31m", "\033[0m") if sys.stderr.isatty() else ("", "")
        message = f"goal missed: {result.bench} {result.case} {result.metric} = {result.value:.4g} {result.unit}"
        print(f"{colour}{message}, wanted {result.goal}{reset}", file=sys.stderr, flush=True)


class Report:
    """The figures of one script: prints those that are steady enough to mean something, refuses the others.

    `noise_bound` is the largest distance of the quartiles, in medians, of a figure that is reported.
    """

    def __init__(self, bench: str, parameters: Mapping[str, object], noise_bound: float = 0.25) -> None:
        self._bench = bench
        self._parameters = {**parameters, "cores": os.cpu_count(), "noise_bound": noise_bound}
        self._noise_bound = noise_bound
        self.refused = 0

    def figure(
        self, case: str, metric: str, samples: Sequence[float], unit: str, goal: Goal | None = None, **more: object
    ) -> None:
        """Show a figure. `more`: `rival`, what it is compared with, and further parameters."""
        rival = more.pop("rival", None)
        parameters = {**self._parameters, **more}
        self.show(
            Result(self._bench, case, metric, samples, unit, goal, None if rival is None else str(rival), parameters)
        )

    def show(self, result: Result) -> bool:
        """Print a figure, or say why not; returns whether it was printed."""
        if result.noise <= self._noise_bound:
            emit(result)
            return True
        self.refused += 1
        name = f"{result.bench} {result.case} {result.metric}"
        spread = f"its quartiles are {result.noise:.0%} of the median apart, more than {self._noise_bound:.0%}"
        print(f"not reported: {name}: {spread}: too busy a machine to tell", file=sys.stderr)
        return False

    @property
    def exit_code(self) -> int:
        """0, or `BUSY` when a figure was refused."""
        return BUSY if self.refused else 0


def unwind_on_sigterm() -> None:
    """Have SIGTERM end this process as an exception does, so that servers, links and namespaces go with it."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def at_least(bound: float) -> Goal:
    """Return the goal `>= bound`."""
    return Goal(Wanted.AT_LEAST, bound)


def at_most(bound: float) -> Goal:
    """Return the goal `<= bound`."""
    return Goal(Wanted.AT_MOST, bound)
