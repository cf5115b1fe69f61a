"""A quadratic fitted to the chain so far tells differences before any data is seen, as long as it is right."""

from collections import deque
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shadowserve_capacity.prefetch.evidence import Comparison, Decision, Normal
from shadowserve_capacity.prefetch.predictors import PartialData
from shadowserve_capacity.prefetch.problem import Problem, State

_WINDOW = 1200
_FIRST_FIT = 40
_CHECKED = 40
_LEAST_CHECKED = 10
_CROSS_TERMS = 0.02
_NUGGET = 1e-7
_CAUTION = 1.2
_TRUSTED = 0.5
Rows = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Quadratic:
    """Ridge regression on all monomials up to degree 2, in its dual form: one weight a sample.

    Coordinates are centred and scaled by the samples' own spread. Cross terms are held back more than squares
    (prior variance 0.02 against 1), so that a few hundred samples do for 64 dimensions if the target is nearly
    diagonal, and more samples learn the rest.
    """

    centre: State
    spread: State
    samples: Rows
    weights: NDArray[np.float64]
    offset: float

    @staticmethod
    def fit(states: Rows, values: NDArray[np.float64]) -> "Quadratic":
        """Return the fit to `values` (n,) at `states` (n, dimension); raises LinAlgError when they are degenerate."""
        centre, spread = states.mean(axis=0), states.std(axis=0) + 1e-300
        samples = (states - centre) / spread
        kernel = _kernel(samples, samples)
        kernel[np.diag_indices_from(kernel)] += _NUGGET * float(np.trace(kernel)) / len(values)
        offset = float(values.mean())
        weights = np.asarray(np.linalg.solve(kernel, values - offset), dtype=np.float64)
        return Quadratic(centre, spread, samples, weights, offset)

    def at(self, states: Rows) -> NDArray[np.float64]:
        """Return the values at `states` (k, dimension), (k,)."""
        return _kernel((states - self.centre) / self.spread, self.samples) @ self.weights + self.offset


def _kernel(left: Rows, right: Rows) -> Rows:
    linear = left @ right.T
    squares = (left * left) @ (right * right).T
    return np.asarray(100.0 + linear + squares + _CROSS_TERMS * linear * linear, dtype=np.float64)


@dataclass(slots=True)
class Surrogate:
    """PartialData that starts from a quadratic fit instead of what was usual.

    The fit is checked against every decision on the chain. Its recent squared errors are the variance of its
    expectations; when they are not clearly below the variance of the log ratios themselves it is not used.
    Fits run in `executor`, so that nobody waits for them; without one they are made at once.
    """

    problem: Problem
    executor: Executor | None = None
    partial: PartialData = field(default_factory=PartialData)
    states: deque[State] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    values: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    errors: deque[float] = field(default_factory=lambda: deque(maxlen=_CHECKED))
    fitted: Quadratic | None = None
    due: int = _FIRST_FIT
    fitting: "Future[Quadratic] | None" = None

    def expect(self, new: State, old: State) -> Normal | None:
        """Return the fit's difference with its recent error; None while the fit is not to be trusted."""
        variance = self._error()
        usual = self.partial.usual
        if self.fitted is None or variance is None or usual is None or variance > _TRUSTED * usual.variance:
            return None
        return Normal(self._difference(self.fitted, new, old), _CAUTION * variance + 1e-12)

    def probability(self, comparison: Comparison) -> float:
        """Return the probability that the finished difference exceeds the threshold."""
        return self.partial.probability(comparison)

    def learn(self, decision: Decision) -> None:
        """Check the fit against what came out, and fit anew when there is enough that is new."""
        self.partial.learn(decision)
        if not np.isfinite(decision.new_density):
            return
        if self.fitted is not None:
            self.errors.append(decision.difference - self._difference(self.fitted, decision.new, decision.old))
        self.states.append(self.problem.canonical(decision.new))
        self.values.append(decision.new_density)
        self.due -= 1
        if self.fitting is not None and self.fitting.done():
            self._take(self.fitting)
        elif self.due <= 0 and self.fitting is None:
            self._fit()

    def _fit(self) -> None:
        self.due = max(16, len(self.values) // 8)
        data = np.array(self.states), np.array(self.values)
        if self.executor is not None:
            self.fitting = self.executor.submit(Quadratic.fit, *data)
            return
        made: Future[Quadratic] = Future()
        try:
            made.set_result(Quadratic.fit(*data))
        except np.linalg.LinAlgError as error:
            made.set_exception(error)
        self._take(made)

    def _take(self, made: "Future[Quadratic]") -> None:
        self.fitting = None
        self.fitted = made.result() if made.exception() is None else None

    def _error(self) -> float | None:
        if len(self.errors) < _LEAST_CHECKED:
            return None
        return float(np.mean(np.square(self.errors)))

    def _difference(self, fitted: Quadratic, new: State, old: State) -> float:
        both = fitted.at(np.array([self.problem.canonical(new), self.problem.canonical(old)]))
        return float(both[0] - both[1])
