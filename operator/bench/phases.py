"""Where the phases of a chain begin and end, and what a predictor has learnt by then."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shadowserve_capacity.prefetch.chain import Position, serial_run
from shadowserve_capacity.prefetch.evidence import Decision, Pairs
from shadowserve_capacity.prefetch.predictors import Predictor
from shadowserve_capacity.prefetch.problem import Adaptation, Problem, State, accepts, added
from shadowserve_capacity.problems.mixture import true_means
from shadowserve_capacity.problems.named import Named
from shadowserve_capacity.problems.regression import Lasso, Logistic


@dataclass(frozen=True)
class Lesson:
    """What the chain has taught by some iteration: its latest decisions."""

    decisions: Sequence[Decision]

    def teach(self, predictor: Predictor) -> Predictor:
        """Have `predictor` learn all of it; return it."""
        for decision in self.decisions:
            predictor.learn(decision)
        return predictor


@dataclass(frozen=True)
class Walk:
    """A serial run in detail: where it stood before each iteration and at its end, and every decision.

    A decision is None where the candidate was outside the prior's support.
    """

    positions: Sequence[Position]
    decisions: Sequence[Decision | None]

    def lesson(self, until: int, latest: int) -> Lesson:
        """Return the `latest` decisions before iteration `until`."""
        return Lesson([each for each in self.decisions[max(0, until - latest) : until] if each is not None])

    @property
    def log_densities(self) -> NDArray[np.float64]:
        """Return the log densities after each decision."""
        decided = [each for each in self.decisions if each is not None]
        return np.array([each.new_density if each.accepted else each.old_density for each in decided])


def walk(problem: Problem, at: Position | None = None) -> Walk:
    """Run `problem` from `at` (its beginning) to its end, as the serial loop does."""
    here = at or Position.first(problem)
    terms, positions = _terms(problem, here.theta), [here]
    decisions: list[Decision | None] = []
    for iteration in range(here.iteration, problem.iterations):
        theta = here.theta
        proposed = problem.propose(theta, here.log_scale, iteration)
        prior, old_prior = problem.log_prior(proposed.theta), problem.log_prior(theta)
        accepted, decision = False, None
        if prior > -math.inf:
            new = _terms(problem, proposed.theta)
            pairs = Pairs()
            for one, other in zip(new, terms, strict=True):
                pairs.add(one, other)
            density, old = prior + added(new), old_prior + added(terms)
            accepted = accepts(problem.log_uniform(iteration), proposed.log_ratio, density, old)
            decision = Decision(accepted, proposed.theta, theta, density, old, pairs)
            if accepted:
                theta, terms = proposed.theta, new
        here = Position(iteration + 1, theta, problem.adaptation.next(here.log_scale, iteration, accepted))
        positions.append(here)
        decisions.append(decision)
    return Walk(positions, decisions)


def stationary(named: Named, settle: int) -> Problem:
    """Return the problem started near its mode and run for `settle` iterations, with the scale found, fixed."""
    problem = named.problem(settle)
    mode, variance = _mode(named, problem)
    scale = math.log(2.38**2 / len(mode) * variance)
    _, end = serial_run(replace(problem, start=mode, adaptation=Adaptation(scale)))
    return replace(problem, start=end.theta, adaptation=Adaptation(end.log_scale, None))


def transient(chain: Walk, level: Walk) -> int:
    """Return after how many iterations `chain` first reaches the log densities of the stationary chain `level`."""
    band = float(level.log_densities.mean() - 3.0 * level.log_densities.std())
    above = np.nonzero(chain.log_densities >= band)[0]
    return int(above[0]) if len(above) else len(chain.log_densities)


def _mode(named: Named, problem: Problem) -> tuple[State, float]:
    """Return a point near the mode and a typical posterior variance of a coordinate there."""
    target = problem.target
    if isinstance(target, Lasso):
        features = target.features.reshape(-1, target.features.shape[-1])
        responses = target.responses.reshape(-1)
        beta = np.linalg.lstsq(features, responses, rcond=None)[0]
        return np.append(beta, float(np.std(responses - features @ beta))), 1.0 / named.size
    if isinstance(target, Logistic):
        signed = target.signed.reshape(-1, target.signed.shape[-1])
        beta = np.zeros(signed.shape[1])
        for _ in range(12):
            chance = 1.0 / (1.0 + np.exp(signed @ beta))
            hessian = (signed * (chance * (1.0 - chance))[:, None]).T @ signed
            beta = beta + np.linalg.solve(hessian, signed.T @ chance)
        return beta, float(1.0 / np.diag(hessian).mean())
    return true_means(np.random.default_rng([named.seed, 1])).reshape(-1), 8.0 / named.size


def _terms(problem: Problem, theta: State) -> list[float]:
    return [problem.evaluate(theta, batch) for batch in range(problem.target.batches)]
