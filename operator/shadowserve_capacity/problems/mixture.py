"""Mixture of eight spherical Gaussians in eight dimensions: the paper's first problem.

Angelino et al. 2014: unit variances, equal weights, flat prior on the 64 coordinates of the means, N = 1e6 data,
means and start uniform in [-2, 2]^8, labels permuted before every jump.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shadowserve_capacity.prefetch.problem import Adaptation, Problem, Proposed, State

COMPONENTS = 8
DIMENSIONS = 8
_LEAST_DISTANCE = 3.0


@dataclass(frozen=True, slots=True)
class Mixture:
    """`data` has shape (batches, 8, items a batch), float64; `chunk` items are evaluated at a time.

    A chunk and its scores should fit the second-level cache, or what is a core's share of it.
    """

    data: NDArray[np.float64]
    chunk: int = 8192

    @property
    def batches(self) -> int:
        """Return the number of batches."""
        return len(self.data)

    def log_prior(self, theta: State) -> float:
        """Return 0: the prior is flat."""
        return 0.0

    def log_likelihood(self, theta: State, batch: int) -> float:
        """Return the sum of log p(x) over a batch, without the terms that do not depend on the means."""
        means = theta.reshape(COMPONENTS, DIMENSIONS)
        offsets = 0.5 * (means * means).sum(axis=1)[:, None]
        data, total = self.data[batch], 0.0
        for start in range(0, data.shape[1], self.chunk):
            chunk = data[:, start : start + self.chunk]
            scores = means @ chunk
            scores -= offsets
            mixed = np.exp(scores, out=scores).sum(axis=0)
            if 0.0 < mixed.min() <= mixed.max() < math.inf:
                total += float(np.log(mixed, out=mixed).sum())
            else:
                total += _far_away(means @ chunk - offsets)
        return total

    def aligned(self, theta: State, like: State) -> State:
        """Return the state of equal density whose means are in the order of those of `like`, a state not far away."""
        means, others = theta.reshape(COMPONENTS, DIMENSIONS), like.reshape(COMPONENTS, DIMENSIONS)
        distances = (means * means).sum(axis=1) - 2.0 * (others @ means.T)
        order = distances.argmin(axis=1)
        if len(set(order.tolist())) < COMPONENTS:  # too far away for every mean to be nearest to its own
            order = _in_turn(distances)
        return np.asarray(means[order].reshape(-1), dtype=np.float64)


def _in_turn(distances: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return for each row a column of its own: the nearest that no row before has taken."""
    left, order = distances.copy(), np.empty(len(distances), dtype=np.intp)
    for row in range(len(left)):
        order[row] = left[row].argmin()
        left[:, order[row]] = np.inf
    return order


def _far_away(scores: NDArray[np.float64]) -> float:
    """Return the sum over columns of log sum exp of the rows, for scores whose exponentials are out of range."""
    highest = scores.max(axis=0)
    return float((np.log(np.exp(scores - highest).sum(axis=0)) + highest).sum())


@dataclass(frozen=True, slots=True)
class PermutedWalk:
    """Permutes the means, then takes a spherical Gaussian step."""

    def propose(self, theta: State, log_scale: float, rng: np.random.Generator) -> Proposed:
        """Return the candidate; the kernel is symmetric."""
        means = theta.reshape(COMPONENTS, DIMENSIONS)[rng.permutation(COMPONENTS)].reshape(-1)
        return Proposed(means + math.exp(log_scale / 2) * rng.standard_normal(means.shape[0]))


def true_means(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return eight means uniform in [-2, 2]^8 that keep a distance of 3, shape (8, 8)."""
    means: list[NDArray[np.float64]] = []
    while len(means) < COMPONENTS:
        candidate = rng.uniform(-2.0, 2.0, DIMENSIONS)
        if all(np.linalg.norm(candidate - mean) > _LEAST_DISTANCE for mean in means):
            means.append(candidate)
    return np.array(means)


def mixture(size: int, batches: int, seed: int, iterations: int) -> Problem:
    """Return the problem with `size` synthetic data, rounded down to whole batches."""
    rng = np.random.default_rng([seed, 1])
    means = true_means(rng)
    each = size // batches
    labels = rng.integers(0, COMPONENTS, (batches, each))
    data = rng.standard_normal((batches, DIMENSIONS, each))
    data += means[labels].transpose(0, 2, 1)
    dimension = COMPONENTS * DIMENSIONS
    return Problem(
        target=Mixture(data),
        start=rng.uniform(-2.0, 2.0, dimension),
        seed=seed,
        iterations=iterations,
        adaptation=Adaptation(math.log(2.38**2 / dimension)),
        proposal=PermutedWalk(),
    )
