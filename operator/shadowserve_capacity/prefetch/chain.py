"""A chain as it comes out, and the serial run that every other run must equal."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shadowserve_capacity.errors import TargetFault
from shadowserve_capacity.prefetch.problem import Problem, State, accepts, added


@dataclass(frozen=True, slots=True)
class Step:
    """One iteration: whether the candidate was accepted, and the state it left."""

    accepted: bool
    theta: State
    log_density: float


@dataclass(frozen=True, slots=True)
class Chain:
    """States (iterations, dimension) float64, accept bits (iterations,), log densities (iterations,) float64."""

    states: NDArray[np.float64]
    accepted: NDArray[np.bool_]
    log_densities: NDArray[np.float64]

    @staticmethod
    def of(steps: Sequence[Step], dimension: int) -> "Chain":
        """Return the chain of `steps`, in order."""
        states = np.array([step.theta for step in steps], dtype=np.float64).reshape(len(steps), dimension)
        return Chain(
            states,
            np.array([step.accepted for step in steps], dtype=np.bool_),
            np.array([step.log_density for step in steps], dtype=np.float64),
        )

    def followed_by(self, later: "Chain") -> "Chain":
        """Return this chain and then `later`."""
        return Chain(
            np.concatenate([self.states, later.states]),
            np.concatenate([self.accepted, later.accepted]),
            np.concatenate([self.log_densities, later.log_densities]),
        )

    @property
    def acceptance(self) -> float:
        """Return the share of accepted candidates."""
        return float(self.accepted.mean()) if len(self.accepted) else 0.0

    @property
    def sha256(self) -> str:
        """Return the digest of states, accept bits and log densities, in hexadecimal."""
        digest = hashlib.sha256()
        for values in (self.states, self.accepted, self.log_densities):
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Position:
    """Where a chain stands before an iteration: all that its future depends on, beside the problem."""

    iteration: int
    theta: State
    log_scale: float

    @staticmethod
    def first(problem: Problem) -> "Position":
        """Return where the chain of `problem` begins."""
        return Position(0, problem.start, problem.adaptation.log_scale)


def run_serial(problem: Problem) -> Chain:
    """Return the chain of `problem`, one evaluation after the other: the reference."""
    return serial_run(problem)[0]


def serial_run(problem: Problem, at: Position | None = None) -> tuple[Chain, Position]:
    """Return the chain of `problem` from `at` (its beginning) on, and where it stands at its end."""
    at = at or Position.first(problem)
    theta, scale = at.theta, at.log_scale
    density = log_density(problem, theta)
    if density == -np.inf:
        raise TargetFault("the start lies outside the prior's support")
    steps: list[Step] = []
    for iteration in range(at.iteration, problem.iterations):
        proposed = problem.propose(theta, scale, iteration)
        candidate = log_density(problem, proposed.theta)
        accepted = accepts(problem.log_uniform(iteration), proposed.log_ratio, candidate, density)
        if accepted:
            theta, density = proposed.theta, candidate
        steps.append(Step(accepted, theta, density))
        scale = problem.adaptation.next(scale, iteration, accepted)
    return Chain.of(steps, problem.start.shape[0]), Position(problem.iterations, theta, scale)


def log_density(problem: Problem, theta: State) -> float:
    """Return prior plus terms, added left to right; -inf outside the support, without a look at the data."""
    prior = problem.log_prior(theta)
    if prior == -np.inf:
        return prior
    return prior + added([problem.evaluate(theta, batch) for batch in range(problem.target.batches)])
