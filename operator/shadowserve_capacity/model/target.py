"""The posterior as a target for chains, in coordinates in which it is about a standard normal distribution."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shadowserve_capacity.model.hardware import DIMENSION, Parameters, Prior
from shadowserve_capacity.model.likelihood import Evidence, Form, log_likelihood
from shadowserve_capacity.model.simulation import Simulation

Values = NDArray[np.float64]

_FARTHEST = 6.0
"""Standard deviations of the prior beyond which nothing is believed."""
_TRUSTED = 30.0
_STEP = 1e-3
_NEWTON_STEPS = 40


@dataclass(frozen=True, slots=True)
class Whitening:
    """Standardised prior coordinates z = centre + factor @ theta; shapes (13,) and (13, 13)."""

    centre: Values
    factor: Values

    @staticmethod
    def none() -> "Whitening":
        """Return the one that changes nothing."""
        return Whitening(np.zeros(DIMENSION), np.eye(DIMENSION))

    def improved(self, states: Values) -> "Whitening":
        """Return the whitening by mean and covariance of states, shape (draws, 13), in this one's coordinates.

        The covariance is shrunk towards this whitening's, as if it were known from 30 draws.
        """
        count = len(states)
        covariance = np.asarray(np.cov(states.T), dtype=np.float64)
        shrunk = (count * covariance + _TRUSTED * np.eye(DIMENSION)) / (count + _TRUSTED)
        return Whitening(self.coordinates(states.mean(axis=0)), self.factor @ _factor(shrunk))

    def coordinates(self, theta: Values) -> Values:
        """Return z for states of shape (..., 13)."""
        return np.asarray(self.centre + theta @ self.factor.T, dtype=np.float64)

    def states(self, z: Values) -> Values:
        """Return the states, shape (..., 13), whose coordinates are z."""
        return np.asarray(np.linalg.solve(self.factor, (z - self.centre).T).T, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class PosteriorTarget:
    """Prior and likelihood of a pool's parameters; one batch, since no part of a simulation is of use alone."""

    evidence: Evidence
    prior: Prior
    form: Form
    whitening: Whitening

    @property
    def batches(self) -> int:
        """Return 1."""
        return 1

    def log_prior(self, theta: Values) -> float:
        """Return the log density of the standard normal prior, -inf beyond six deviations."""
        return standard_log_prior(self.whitening.coordinates(theta))

    def log_likelihood(self, theta: Values, batch: int) -> float:
        """Return the log likelihood of all windows."""
        return standard_log_likelihood(self.evidence, self.prior, self.form, self.whitening.coordinates(theta))

    def log_likelihood_unless(self, theta: Values, batch: int, called_off: Callable[[], bool]) -> float:
        """Return the same; raises CalledOff soon after `called_off` says so, where windows are simulated."""
        form = partial(self.form, called_off=called_off) if isinstance(self.form, Simulation) else self.form
        return standard_log_likelihood(self.evidence, self.prior, form, self.whitening.coordinates(theta))


def standard_log_prior(z: Values) -> float:
    """Return the log density of prior coordinates, up to a constant."""
    return -0.5 * float(z @ z) if float(np.abs(z).max()) < _FARTHEST else -math.inf


def standard_log_likelihood(evidence: Evidence, prior: Prior, form: Form, z: Values) -> float:
    """Return the log likelihood at prior coordinates, shape (13,)."""
    return log_likelihood(evidence, Parameters.of_logs(prior.logs(z)), form)


def whiten(evidence: Evidence, prior: Prior, form: Form) -> Whitening:
    """Return the Laplace approximation of the posterior: its mode, and a factor of its covariance.

    Damped Newton steps on the prior's coordinates, derivatives by finite differences. It only makes chains mix well: a
    poor one costs draws, never their distribution.
    """

    def loss(z: Values) -> float:
        prior_term = standard_log_prior(z)
        return -prior_term - (standard_log_likelihood(evidence, prior, form, z) if prior_term > -math.inf else 0.0)

    z = np.zeros(DIMENSION)
    value, damping = loss(z), 1.0
    curvature = np.eye(DIMENSION)
    for _ in range(_NEWTON_STEPS):
        gradient, curvature = _derivatives(loss, z)
        change = np.linalg.solve(_positive(curvature, damping), -gradient)
        change *= min(1.0, 1.5 / float(np.abs(change).max()))
        fresh = loss(z + change)
        if fresh < value:
            gain, value, z, damping = value - fresh, fresh, z + change, max(damping / 4.0, 1e-3)
            if gain < 0.05:
                break
        else:
            damping *= 8.0
            if damping > 1e8:
                break
    covariance = np.linalg.inv(_positive(curvature, 0.0))
    return Whitening(z, _factor(covariance))


def _factor(covariance: NDArray[np.floating[Any]]) -> Values:
    return np.asarray(np.linalg.cholesky(covariance), dtype=np.float64)


def _positive(curvature: Values, damping: float) -> Values:
    """Return the curvature with eigenvalues of at least 1, the prior's own, plus damping."""
    values, vectors = np.linalg.eigh(curvature)
    return np.asarray((vectors * (np.maximum(values, 1.0) + damping)) @ vectors.T, dtype=np.float64)


def _derivatives(loss: Callable[[Values], float], z: Values) -> tuple[Values, Values]:
    """Return gradient and curvature of `loss` by finite differences: 1 + 2 d + d (d - 1) / 2 evaluations."""
    steps = np.eye(len(z)) * _STEP
    middle = loss(z)
    plus = np.array([loss(z + step) for step in steps])
    minus = np.array([loss(z - step) for step in steps])
    gradient = (plus - minus) / (2.0 * _STEP)
    curvature = np.diag((plus - 2.0 * middle + minus) / _STEP**2)
    for row in range(len(z)):
        for column in range(row):
            both = loss(z + steps[row] + steps[column])
            mixed = (both - plus[row] - plus[column] + middle) / _STEP**2
            curvature[row, column] = curvature[column, row] = mixed
    return gradient, curvature
