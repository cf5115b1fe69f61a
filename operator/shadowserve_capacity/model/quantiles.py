"""Quantiles of a window's latencies, exact and as a finite number of requests shows them."""

import math

import numpy as np
from numpy.typing import NDArray

from shadowserve_capacity.model.latencies import Latencies

Values = NDArray[np.float64]

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
_HALVINGS = 45
_MOST_REQUESTS = 2000


def mixture_quantile(centres: Values, shares: Values, spread: Values, share: float) -> Values:
    """Return a quantile of log latency, shape (draws,), of a mixture of logistic distributions.

    `centres` (draws, classes) are their places, `shares` (classes,) their weights, `spread` (draws,) their scale.
    """
    used = shares > 0.0
    far = spread * (math.log(share / (1.0 - share)))
    low, high = centres[:, used].min(axis=1) + far, centres[:, used].max(axis=1) + far
    with np.errstate(over="ignore"):
        for _ in range(_HALVINGS if used.sum() > 1 else 0):
            middle = 0.5 * (low + high)
            below = (shares / (1.0 + np.exp((centres - middle[:, None]) / spread[:, None]))).sum(axis=1)
            low, high = np.where(below < share, middle, low), np.where(below < share, high, middle)
    return np.asarray(0.5 * (low + high), dtype=np.float64)


def window_quantiles(
    seen: Latencies, shares: Values, requests: int | None, rng: np.random.Generator
) -> tuple[dict[str, Values], dict[str, Values]]:
    """Return TTFT and TPOT quantiles (seconds) of one window a draw, each of shape (draws,)."""
    found: list[dict[str, Values]] = []
    for centres, weights, spread, deviation in (
        (seen.ttft[:, 0], shares, seen.ttft_spread[:, 0], seen.ttft_deviation[:, 0]),
        (seen.tpot, np.ones(1), seen.tpot_spread[:, 0], seen.tpot_deviation[:, 0]),
    ):
        effect = rng.standard_normal(len(spread)) * deviation
        if requests is None or requests > _MOST_REQUESTS:
            logs = {name: mixture_quantile(centres, weights, spread, share) for name, share in QUANTILES.items()}
        else:
            logs = _sampled(centres, weights, spread, requests, rng)
        found.append({name: np.exp(values + effect) for name, values in logs.items()})
    return found[0], found[1]


def _sampled(
    centres: Values, shares: Values, spread: Values, requests: int, rng: np.random.Generator
) -> dict[str, Values]:
    chosen = rng.choice(len(shares), size=(len(spread), requests), p=shares)
    logs = np.take_along_axis(centres, chosen, axis=1) + spread[:, None] * rng.logistic(size=chosen.shape)
    return {name: np.quantile(logs, share, axis=1) for name, share in QUANTILES.items()}
