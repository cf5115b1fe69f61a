"""Draws of a pool's parameters, and the questions that they answer."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shadowserve_capacity.diagnostics import Diagnosis
from shadowserve_capacity.model.closed_form import latencies
from shadowserve_capacity.model.hardware import NAMES, Parameters
from shadowserve_capacity.model.latencies import Latencies
from shadowserve_capacity.model.observations import Pool
from shadowserve_capacity.model.planning import Objective, Plan, Quantity, plan_replicas
from shadowserve_capacity.model.quantiles import mixture_quantile, window_quantiles
from shadowserve_capacity.model.work import Load, work_of

Values = NDArray[np.float64]

_NOISE_SEED = 20_14
"""Predictions are functions of the posterior: the same question has the same answer."""
_FAR_BEYOND = 1.5
"""Times the busiest window's rate a replica: above it an answer rests on the model more than on measurements."""
_MANY_TIMES = 5.0
"""Times the highest rate of all replicas together: above it that many more replicas would share the load as evenly."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the observations covered: at most `busiest` arrivals per second and replica, `highest` per second in all."""

    windows: int
    requests: int
    busiest: float
    highest: float
    bytes_per_hit_token: float


@dataclass(frozen=True, slots=True)
class Interval:
    """Median and central interval of a prediction, seconds (or share, for utilisation)."""

    low: float
    median: float
    high: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a load does to a number of replicas: intervals of probability `level` over parameters and noise."""

    replicas: int
    level: float
    ttft: dict[str, Interval]
    tpot: dict[str, Interval]
    utilisation: Interval
    saturated: float
    """Probability that more arrives than can be served."""


@dataclass(frozen=True, slots=True)
class Posterior:
    """`logs`: logarithms of the parameters, shape (chains, draws, 13), in the order of `hardware.NAMES`."""

    pool: Pool
    logs: Values
    diagnoses: dict[str, Diagnosis]
    seen: Seen
    warnings: tuple[str, ...] = field(default=())

    @property
    def parameters(self) -> Parameters:
        """Return all draws, each parameter of shape (chains * draws, 1)."""
        return Parameters.of_logs(self.logs.reshape(-1, 1, len(NAMES)))

    def predict(self, load: Load, replicas: int, level: float = 0.8, requests: int | None = None) -> Prediction:
        """Return intervals of the latencies of one window under `load`.

        `requests`: how many the window has, which scatters its quantiles; None for as many as one likes.
        """
        seen = self._latencies(load, replicas)
        rng = np.random.default_rng(_NOISE_SEED)
        saturated = seen.utilisation[:, 0] >= 1.0
        ttft, tpot = window_quantiles(seen, self._shares(load), requests, rng)
        return Prediction(
            replicas,
            level,
            {name: _interval(values, level) for name, values in ttft.items()},
            {name: _interval(values, level) for name, values in tpot.items()},
            _interval(seen.utilisation[:, 0], level),
            float(saturated.mean()),
        )

    def replicas_for(self, load: Load, objectives: tuple[Objective, ...], confidence: float = 0.9) -> Plan:
        """Return the fewest replicas that hold every objective with probability `confidence`, and why."""
        return plan_replicas(
            lambda replicas: self.risks(load, replicas, objectives),
            objectives,
            confidence,
            lambda replicas: self.doubts(load, replicas),
        )

    def risks(self, load: Load, replicas: int, objectives: tuple[Objective, ...]) -> tuple[float, ...]:
        """Return for each objective the probability that a window misses it."""
        seen = self._latencies(load, replicas)
        rng = np.random.default_rng(_NOISE_SEED)
        effects = rng.standard_normal((2, seen.tpot.shape[0]))
        found = []
        for each in objectives:
            if each.quantity is Quantity.TTFT:
                logs = mixture_quantile(seen.ttft[:, 0], self._shares(load), seen.ttft_spread[:, 0], each.share)
                logs = logs + effects[0] * seen.ttft_deviation[:, 0]
            else:
                logs = mixture_quantile(seen.tpot, np.ones(1), seen.tpot_spread[:, 0], each.share)
                logs = logs + effects[1] * seen.tpot_deviation[:, 0]
            found.append(float((np.exp(logs) > each.seconds).mean()))
        return tuple(found)

    def doubts(self, load: Load, replicas: int) -> tuple[str, ...]:
        """Return why an answer about `load` on `replicas` deserves less trust than its numbers say."""
        found = list(self.warnings)
        if load.fetched_bytes and not self.seen.bytes_per_hit_token:
            found.append("no fetch was observed: its speed is known from the hardware class only")
        each = load.arrival_rate / replicas
        if each > _FAR_BEYOND * self.seen.busiest:
            found.append(
                f"far beyond what was measured: {each:.3g} requests/s a replica, {each / self.seen.busiest:.3g} times "
                f"the most observed ({self.seen.busiest:.3g}); what engines do there is known from the model only"
            )
        if load.arrival_rate > _MANY_TIMES * self.seen.highest:
            found.append(
                f"far beyond what was measured: {load.arrival_rate:.3g} requests/s in all, "
                f"{load.arrival_rate / self.seen.highest:.3g} times the most observed ({self.seen.highest:.3g}); "
                f"that so many replicas share them evenly is assumed"
            )
        return tuple(found)

    def explain(self) -> str:
        """Return the parameters in words, one line each, and every warning."""
        lines = [f"from {self.seen.windows} windows with {self.seen.requests} requests:"]
        draws = np.exp(self.logs.reshape(-1, len(NAMES)))
        for index, name in enumerate(NAMES):
            low, median, high = np.quantile(draws[:, index], (0.1, 0.5, 0.9))
            lines.append(f"  {name.replace('_', ' ')}: {median:.4g} ({low:.4g} to {high:.4g} with probability 0.8)")
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])

    def _latencies(self, load: Load, replicas: int) -> Latencies:
        return latencies(self.parameters, work_of(self.pool, [(load, replicas)]))

    def _shares(self, load: Load) -> Values:
        shares: Values = work_of(self.pool, [(load, 1)]).shares[0]
        return shares


def _interval(values: Values, level: float) -> Interval:
    low, median, high = np.quantile(values, ((1.0 - level) / 2.0, 0.5, (1.0 + level) / 2.0))
    return Interval(float(low), float(median), float(high))
