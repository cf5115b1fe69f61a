"""The problem a chain solves: target, proposal, start; and the two random streams."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shadowserve_capacity.errors import CalledOff, ProblemError, ProposalFault, TargetFault

State = NDArray[np.float64]

_ACCEPT_STREAM = 1
_PROPOSAL_STREAM = 2


class Target(Protocol):
    """A log density: a prior plus a sum over batches. Both functions must be pure."""

    @property
    def batches(self) -> int:
        """Return how many terms the sum has (at least 1)."""

    def log_prior(self, theta: State) -> float:
        """Return the log prior density; -inf means outside the support, where no batch is asked for."""

    def log_likelihood(self, theta: State, batch: int) -> float:
        """Return the finite term of one batch, 0 <= batch < batches."""


class Interruptible(Target, Protocol):
    """A target whose batches take so long that one which has become useless is better stopped in the middle."""

    def log_likelihood_unless(self, theta: State, batch: int, called_off: Callable[[], bool]) -> float:
        """Return the same as `log_likelihood`; raises CalledOff soon after `called_off` has begun to return true."""


@dataclass(frozen=True, slots=True)
class Proposed:
    """A proposed state; `log_ratio` is log q(new|old) - log q(old|new), 0 for symmetric proposals."""

    theta: State
    log_ratio: float = 0.0


class Proposal(Protocol):
    """Draws the next candidate from the iteration's own generator, however many numbers that takes."""

    def propose(self, theta: State, log_scale: float, rng: np.random.Generator) -> Proposed:
        """Return a candidate near `theta`; `log_scale` is the log variance of the jump."""


@dataclass(frozen=True, slots=True)
class RandomWalk:
    """theta + exp(log_scale / 2) * N(0, I)."""

    def propose(self, theta: State, log_scale: float, rng: np.random.Generator) -> Proposed:
        """Return a spherical Gaussian step."""
        return Proposed(theta + math.exp(log_scale / 2) * rng.standard_normal(theta.shape[0]))


@dataclass(frozen=True, slots=True)
class Adaptation:
    """Scale of the proposal: l += (accepted - rate) / sqrt(iteration + 1), and never when `rate` is None."""

    log_scale: float
    rate: float | None = 0.234

    def next(self, log_scale: float, iteration: int, accepted: bool) -> float:
        """Return the scale of the iteration after `iteration`."""
        if self.rate is None:
            return log_scale
        return log_scale + (float(accepted) - self.rate) / math.sqrt(iteration + 1)


@dataclass(frozen=True, slots=True)
class Problem:
    """Everything that determines a chain: equal problems give equal bytes, however they are run."""

    target: Target
    start: State
    seed: int
    iterations: int
    adaptation: Adaptation
    proposal: Proposal = RandomWalk()

    def __post_init__(self) -> None:
        """Refuse what has no chain; raises ProblemError naming the field."""
        if self.target.batches < 1:
            raise ProblemError(f"target.batches: {self.target.batches} is less than 1")
        if self.iterations < 0:
            raise ProblemError(f"iterations: {self.iterations} is less than 0")
        if not 0 <= self.seed < 2**64:
            raise ProblemError(f"seed: {self.seed} is not in 0 .. 2^64 - 1")

    def log_uniform(self, iteration: int) -> float:
        """Return log u of one iteration, in (-inf, 0]."""
        return math.log1p(-self._generator(_ACCEPT_STREAM, iteration).random())

    def propose(self, theta: State, log_scale: float, iteration: int) -> Proposed:
        """Return the candidate of one iteration; raises ProposalFault when it is no state."""
        rng = self._generator(_PROPOSAL_STREAM, iteration)
        try:
            proposed = self.proposal.propose(theta, log_scale, rng)
        except Exception as error:  # whatever the user's code raises, named by where
            raise ProposalFault(f"iteration {iteration}: the proposal raised {error!r}") from error
        if not (isinstance(proposed, Proposed) and isinstance(proposed.theta, np.ndarray)):
            raise ProposalFault(f"iteration {iteration}: the proposal is {proposed!r}, not a Proposed with an array")
        if proposed.theta.shape != theta.shape or proposed.theta.dtype != theta.dtype:
            raise ProposalFault(
                f"iteration {iteration}: proposal has shape {proposed.theta.shape} and type {proposed.theta.dtype}, "
                f"the state {theta.shape} and {theta.dtype}"
            )
        if not (math.isfinite(proposed.log_ratio) and np.isfinite(proposed.theta).all()):
            raise ProposalFault(f"iteration {iteration}: proposal is not finite")
        return proposed

    def log_prior(self, theta: State) -> float:
        """Return the log prior, finite or -inf; raises TargetFault otherwise."""
        try:
            value = float(self.target.log_prior(theta))
        except Exception as error:  # whatever the user's code raises, named by where
            raise TargetFault(f"log prior raised {error!r}") from error
        if math.isnan(value) or value == math.inf:
            raise TargetFault(f"log prior is {value}")
        return value

    def aligned(self, theta: State, like: State) -> State:
        """Return the state of equal density that is nearest to `like`, if the target has an `aligned` to say so."""
        known: Callable[[State, State], State] | None = getattr(self.target, "aligned", None)
        return theta if known is None else known(theta, like)

    def evaluate(self, theta: State, batch: int) -> float:
        """Return the finite term of one batch; raises TargetFault otherwise."""
        return evaluated(self.target, theta, batch)

    def _generator(self, stream: int, iteration: int) -> np.random.Generator:
        key = np.array([self.seed, stream], dtype=np.uint64)
        counter = np.array([0, iteration, 0, 0], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=counter))


def added(terms: Sequence[float]) -> float:
    """Return the sum, added left to right in double precision (the built-in `sum` compensates from Python 3.12 on)."""
    total = 0.0
    for term in terms:
        total += term
    return total


def evaluated(
    target: Target | Interruptible, theta: State, batch: int, called_off: Callable[[], bool] | None = None
) -> float:
    """Return the finite term of one batch; raises TargetFault, and CalledOff where the target can be stopped."""
    try:
        if called_off is not None and hasattr(target, "log_likelihood_unless"):
            term = float(target.log_likelihood_unless(theta, batch, called_off))
        else:
            term = float(target.log_likelihood(theta, batch))
    except CalledOff:
        raise
    except Exception as error:  # whatever the user's code raises, named by where
        raise TargetFault(f"log likelihood of batch {batch} raised {error!r}") from error
    return checked_term(term, batch)


def checked_term(value: float, batch: int) -> float:
    """Return `value`; raises TargetFault naming the batch when it is NaN or infinite."""
    if not math.isfinite(value):
        raise TargetFault(f"log likelihood of batch {batch} is {value}")
    return value


def accepts(log_uniform: float, log_ratio: float, new: float, old: float) -> bool:
    """Return the decision of Metropolis and Hastings: log u + log ratio < L(new) - L(old), strictly."""
    return log_uniform + log_ratio < new - old
