"""One measured figure as one JSON line, the same shape from every bench script."""

import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TextIO


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
    def holds(self) -> bool | None:
        """Whether the goal is kept; None without a goal."""
        return None if self.goal is None else self.goal.holds(self.value)

    def line(self) -> str:
        """Return the figure as one line of JSON."""
        fields = asdict(self)
        fields.update(
            value=self.value,
            samples=[round(sample, 6) for sample in self.samples],
            spread=round(self.spread, 4),
            goal=None if self.goal is None else str(self.goal),
            holds=self.holds,
            load=round(os.getloadavg()[0], 2),
        )
        return json.dumps(fields, sort_keys=True)


def emit(result: Result, stream: TextIO = sys.stdout) -> None:
    """Print one result as a JSON line, and say in red on stderr when its goal is missed."""
    print(result.line(), file=stream, flush=True)
    if result.holds is False:
        colour, reset = ("\033[31m", "\033[0m") if sys.stderr.isatty() else ("", "")
        message = f"goal missed: {result.bench} {result.case} {result.metric} = {result.value:.4g} {result.unit}"
        print(f"{colour}{message}, wanted {result.goal}{reset}", file=sys.stderr, flush=True)
