"""A quadratic fitted to the chain so far tells differences before any data is seen, as long as it is right."""

from collections import deque
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shadowserve_capacity.prefetch.evidence import Comparison, Decision, Normal
from shadowserve_capacity.prefetch.predictors import PartialData
from shadowserve_capacity.prefetch.problem import Problem, State

_WINDOW = 2600
_SMALLEST_WINDOW = 600
_FIRST_FIT = 40
_ACCURATE = 0.01
_CHECKED = 40
_LEAST_CHECKED = 10
_CROSS_TERMS = 0.002
_NUGGET = 1e-7
_CAUTION = 1.2
_TRUSTED = 0.5
Rows = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Quadratic:
    """offset + z . linear + z . curvature . z, for z = (theta - centre) / spread."""

    centre: State
    spread: State
    offset: float
    linear: NDArray[np.float64]
    curvature: Rows

    @staticmethod
    def fit(states: Rows, values: NDArray[np.float64]) -> "Quadratic":
        """Return the fit to `values` (n,) at `states` (n, dimension); raises LinAlgError when they are degenerate.

        Ridge regression on all monomials up to degree 2, in its dual form: one weight a sample. Coordinates are centred
        and scaled by the samples' own spread. Cross terms are held back more than squares (prior variance 0.004 against
        1), so that a few hundred samples do for 64 dimensions if the target is nearly diagonal; more learn the rest.
        """
        centre, spread = states.mean(axis=0), states.std(axis=0) + 1e-300
        samples = (states - centre) / spread
        kernel = _kernel(samples)
        kernel[np.diag_indices_from(kernel)] += _NUGGET * float(np.trace(kernel)) / len(values)
        middle = float(values.mean())
        weights = np.asarray(np.linalg.solve(kernel, values - middle), dtype=np.float64)
        curvature = _CROSS_TERMS * (samples.T * weights) @ samples
        curvature[np.diag_indices_from(curvature)] += (samples * samples).T @ weights
        return Quadratic(centre, spread, middle + 100.0 * float(weights.sum()), samples.T @ weights, curvature)

    def at(self, state: State) -> float:
        """Return the value at a state."""
        z = (state - self.centre) / self.spread
        return self.offset + float(z @ (self.linear + self.curvature @ z))


def _kernel(samples: Rows) -> Rows:
    squares = samples * samples
    linear, squares = samples @ samples.T, squares @ squares.T
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
    like: State | None = None
    """The chain's state; all others are aligned with it before they are compared."""

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
        self.like = decision.old if self.like is None else self.like
        new = self.problem.aligned(decision.new, self.like)
        self.states.append(new)
        self.values.append(decision.new_density)
        if decision.accepted:
            self.like = new
        self.due -= 1
        if self.fitting is not None and self.fitting.done():
            self._take(self.fitting)
        elif self.due <= 0 and self.fitting is None:
            self._fit(decision.new_density if decision.accepted else decision.old_density)

    def _fit(self, level: float) -> None:
        """Fit to the latest candidates, as many as there are coefficients and some, that are not far below `level`.

        A chain that still climbs has few of those, and no quadratic would be of use to it.
        """
        dimension = len(self.states[-1])
        coefficients = (dimension + 1) * (dimension + 2) // 2
        most = min(_WINDOW, max(_SMALLEST_WINDOW, 5 * coefficients // 4))
        states, values = np.array(self.states)[-most:], np.array(self.values)[-most:]
        near = values > level - 20.0 - 2.0 * dimension
        if near.sum() < _FIRST_FIT:
            self.due, self.fitted = 16, None
            return
        data = states[near], values[near]
        variance, usual = self._error(), self.partial.usual
        accurate = variance is not None and usual is not None and variance < _ACCURATE * usual.variance
        self.due = max(16, len(data[1]) // (2 if accurate else 8))
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
        if self.like is not None:
            new, old = self.problem.aligned(new, self.like), self.problem.aligned(old, self.like)
        return fitted.at(new) - fitted.at(old)
