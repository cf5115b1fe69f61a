"""Bayesian Lasso (the paper's second problem, on synthetic data of its shape) and logistic regression."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shadowserve_capacity.prefetch.problem import Adaptation, Problem, Proposed, State

_PENALTY = 5.0
_LASSO_FEATURES = 56
_LOGISTIC_FEATURES = 20
_LOGISTIC_PRIOR = 10.0


@dataclass(frozen=True, slots=True)
class Lasso:
    """Linear regression: theta is (beta, sigma); prior 1 / sigma^2 times Laplace(beta; scale sigma / lambda).

    `features` has shape (batches, items a batch, features), `responses` (batches, items a batch), float64.
    """

    features: NDArray[np.float64]
    responses: NDArray[np.float64]

    @property
    def batches(self) -> int:
        """Return the number of batches."""
        return len(self.features)

    def log_prior(self, theta: State) -> float:
        """Return the log prior, -inf unless sigma > 0."""
        sigma = float(theta[-1])
        if sigma <= 0.0:
            return -math.inf
        beta = theta[:-1]
        return -2.0 * math.log(sigma) - len(beta) * math.log(sigma) - _PENALTY * float(np.abs(beta).sum()) / sigma

    def log_likelihood(self, theta: State, batch: int) -> float:
        """Return the Gaussian log likelihood of a batch, without constants."""
        sigma = float(theta[-1])
        left = self.features[batch] @ theta[:-1]
        left -= self.responses[batch]
        return -len(left) * math.log(sigma) - float((left * left).sum()) / (2.0 * sigma * sigma)


@dataclass(frozen=True, slots=True)
class PositiveWalk:
    """A spherical Gaussian step, drawn again until the last coordinate is positive."""

    def propose(self, theta: State, log_scale: float, rng: np.random.Generator) -> Proposed:
        """Return the candidate; the kernel is not symmetric: it leaves no mass below zero."""
        scale = math.exp(log_scale / 2)
        while True:
            candidate = theta + scale * rng.standard_normal(theta.shape[0])
            if candidate[-1] > 0.0:
                return Proposed(candidate, _log_mass(candidate[-1] / scale) - _log_mass(theta[-1] / scale))


def _log_mass(z: float) -> float:
    return math.log(0.5 * math.erfc(-float(z) / math.sqrt(2.0)))


@dataclass(frozen=True, slots=True)
class Logistic:
    """Logistic regression with N(0, 10^2) priors.

    `signed` is label (+-1) times features, shape (batches, items a batch, features), float64.
    """

    signed: NDArray[np.float64]

    @property
    def batches(self) -> int:
        """Return the number of batches."""
        return len(self.signed)

    def log_prior(self, theta: State) -> float:
        """Return the log prior without constants."""
        return -0.5 * float((theta * theta).sum()) / _LOGISTIC_PRIOR**2

    def log_likelihood(self, theta: State, batch: int) -> float:
        """Return the log likelihood of a batch."""
        return -float(np.logaddexp(0.0, -(self.signed[batch] @ theta)).sum())


def lasso(size: int, batches: int, seed: int, iterations: int) -> Problem:
    """Return the problem with `size` synthetic data, rounded down to whole batches; one coefficient in four is 0."""
    rng = np.random.default_rng([seed, 2])
    features = _features(rng, batches, size // batches, _LASSO_FEATURES)
    beta = rng.normal(0.0, 1.0, _LASSO_FEATURES) * (rng.random(_LASSO_FEATURES) > 0.25)
    responses = features @ beta + rng.standard_normal(features.shape[:2])
    start = np.append(rng.normal(0.0, 0.5, _LASSO_FEATURES), 2.0)
    return Problem(
        target=Lasso(features, responses),
        start=start,
        seed=seed,
        iterations=iterations,
        adaptation=Adaptation(math.log(2.38**2 / len(start) / 100.0)),
        proposal=PositiveWalk(),
    )


def logistic(size: int, batches: int, seed: int, iterations: int) -> Problem:
    """Return the problem with `size` synthetic data, rounded down to whole batches."""
    rng = np.random.default_rng([seed, 3])
    features = _features(rng, batches, size // batches, _LOGISTIC_FEATURES)
    beta = rng.normal(0.0, 0.7, _LOGISTIC_FEATURES)
    labels = rng.random(features.shape[:2]) < 1.0 / (1.0 + np.exp(-(features @ beta)))
    features *= np.where(labels, 1.0, -1.0)[:, :, None]
    return Problem(
        target=Logistic(features),
        start=rng.normal(0.0, 1.0, _LOGISTIC_FEATURES),
        seed=seed,
        iterations=iterations,
        adaptation=Adaptation(math.log(2.38**2 / _LOGISTIC_FEATURES)),
    )


def _features(rng: np.random.Generator, batches: int, each: int, count: int) -> NDArray[np.float64]:
    """Return mildly correlated standard features, shape (batches, each, count)."""
    features = rng.standard_normal((batches, each, count))
    features[:, :, 1:] += 0.3 * features[:, :, :-1]
    return features
