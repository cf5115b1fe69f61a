"""Problems by name, so that processes on other machines can make the same one for themselves."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from shadowserve_capacity.errors import ProblemError
from shadowserve_capacity.prefetch.chain import serial_run
from shadowserve_capacity.prefetch.problem import Adaptation, Problem
from shadowserve_capacity.problems.mixture import mixture
from shadowserve_capacity.problems.regression import lasso, logistic

_MAKERS: dict[str, Callable[[int, int, int, int], Problem]] = {
    "mixture": mixture,
    "lasso": lasso,
    "logistic": logistic,
}
PAPER_SIZES = {"mixture": 1_000_000, "lasso": 1_800_000, "logistic": 100_000}
"""The paper's sizes; it has no logistic regression."""


@dataclass(frozen=True, slots=True)
class Named:
    """What determines a problem's target, start and proposal."""

    name: str
    size: int
    seed: int
    batches: int = 100

    def problem(self, iterations: int) -> Problem:
        """Make the problem; raises ProblemError naming the field that makes no sense."""
        if self.name not in _MAKERS:
            raise ProblemError(f"problem: {self.name!r} is none of {', '.join(_MAKERS)}")
        for field, value in (("iterations", iterations), ("batches", self.batches)):
            if value < 1:
                raise ProblemError(f"{field}: {value} is less than 1")
        if self.size < self.batches:
            raise ProblemError(f"size: {self.size} data do not fill {self.batches} batches")
        if not 0 <= self.seed < 2**64:
            raise ProblemError(f"seed: {self.seed} is not in 0 .. 2^64 - 1")
        return _MAKERS[self.name](self.size, self.batches, self.seed, iterations)


def settled(problem: Problem, after: int) -> Problem:
    """Return `problem` started where its own chain is after `after` iterations, with the scale it has found, fixed."""
    _, end = serial_run(replace(problem, iterations=after))
    return replace(problem, start=end.theta, adaptation=Adaptation(end.log_scale, None))
