"""The likelihood of windows: how probable the histograms are, given where a form of the model puts the latencies.

A count in bucket (l, u] (log seconds) of a window has probability sum over classes of share * (G((u - x - e) / s) -
G((l - x - e) / s)), G the logistic function; the window's own e ~ N(0, deviation^2) is integrated over a grid around
the data, by the rectangle rule. Seconds of fetches are log-normal around count * overhead + bytes / rate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shadowserve_capacity.model.hardware import Parameters
from shadowserve_capacity.model.latencies import Latencies
from shadowserve_capacity.model.observations import Fetches, Histogram
from shadowserve_capacity.model.work import Work

Values = NDArray[np.float64]
Form = Callable[[Parameters, Work], Latencies]

_GRID = np.linspace(-1.0, 1.0, 21)
_LEAST_HALF_WIDTH = 0.6


@dataclass(frozen=True, slots=True)
class Table:
    """Histograms of one quantity in arrays: only buckets that were hit, padded with count 0.

    `lower`, `upper` (log seconds) and `counts` have shape (windows, buckets); `places` (log seconds, where the integral
    looks) has shape (windows, 21); `spacing` (windows,).
    """

    lower: Values
    upper: Values
    counts: Values
    places: Values
    spacing: Values

    @staticmethod
    def of(histograms: Sequence[Histogram]) -> "Table":
        """Return the table of histograms; an empty one counts nothing."""
        buckets = [_hit_buckets(histogram) for histogram in histograms]
        width = max(1, *(len(rows) for rows in buckets))
        padded = np.array([rows + [(0.0, 1.0, 0.0)] * (width - len(rows)) for rows in buckets])
        lower, upper, counts = np.moveaxis(padded, -1, 0)
        centres, halves = np.array([_surroundings(rows) for rows in buckets]).T
        return Table(lower, upper, counts, centres[:, None] + halves[:, None] * _GRID, halves * (_GRID[1] - _GRID[0]))


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything the likelihood reads, made once."""

    work: Work
    ttft: Table
    tpot: Table
    fetch_counts: Values
    fetch_seconds: Values
    fetch_bytes: Values

    @staticmethod
    def of(work: Work, histograms: Sequence[tuple[Histogram, Histogram]], fetches: Sequence[Fetches]) -> "Evidence":
        """Return the evidence of windows: TTFT and TPOT histogram of each, and its fetches."""
        return Evidence(
            work,
            Table.of([ttft for ttft, _ in histograms]),
            Table.of([tpot for _, tpot in histograms]),
            *(np.array([float(getattr(each, name)) for each in fetches]) for name in ("count", "seconds", "bytes")),
        )


def log_likelihood(evidence: Evidence, parameters: Parameters, form: Form) -> float:
    """Return the log likelihood of all windows; parameters have shape ()."""
    seen = form(parameters, evidence.work)
    shares = evidence.work.shares
    total = _histograms(evidence.ttft, seen.ttft, shares, seen.ttft_deviation, seen.ttft_spread)
    total += _histograms(evidence.tpot, seen.tpot[:, None], np.ones((1, 1)), seen.tpot_deviation, seen.tpot_spread)
    return total + _fetches(evidence, parameters)


def _histograms(table: Table, places: Values, shares: Values, deviation: Values, spread: Values) -> float:
    """Return the log probability of a table's counts; `places` and `shares` have shape (windows, classes)."""
    middle = np.log((shares * np.exp(places)).sum(axis=-1))
    effects = table.places - middle[:, None]
    scale = 1.0 / spread
    moved = _exp(effects * scale[:, None])
    chosen = np.argmax(shares, axis=-1) if places.shape[1] > 1 else np.zeros(len(places), dtype=np.intp)
    rows = np.arange(len(places))
    logs = _log_probability(table, rows, places[rows, chosen], moved, scale)
    mixed = np.flatnonzero(shares.min(axis=-1) > 0.0) if places.shape[1] > 1 else rows[:0]
    if len(mixed):
        other = _log_probability(table, mixed, places[mixed, 1 - chosen[mixed]], moved, scale)
        most, least = shares[mixed, chosen[mixed], None, None], shares[mixed, 1 - chosen[mixed], None, None]
        logs[mixed] = np.logaddexp(np.log(most) + logs[mixed], np.log(least) + other)
    totals = np.matmul(logs, table.counts[:, :, None])[:, :, 0]
    totals -= 0.5 * (effects / deviation[:, None]) ** 2
    highest = totals.max(axis=-1)
    sums = np.log(np.exp(totals - highest[:, None]).sum(axis=-1)) + highest
    weights = np.log(table.spacing / (deviation * np.sqrt(2.0 * np.pi)))
    return float((np.where(table.counts.any(axis=-1), sums + weights, 0.0)).sum())


def _log_probability(table: Table, rows: NDArray[np.intp], centres: Values, moved: Values, scale: Values) -> Values:
    """Return the log probability of each bucket for each effect, shape (rows, effects, buckets).

    G(u) - G(l) = (1 - e^(l - u)) / (1 + e^(l - u) + e^(x + e - u) + e^(l - x - e)), all over the scale.
    """
    lower, upper = table.lower[rows], table.upper[rows]
    scale, moved = scale[rows, None], moved[rows, :, None]
    width = np.exp((lower - upper) * scale)
    sums = _exp((centres[:, None] - upper) * scale)[:, None, :] * moved
    sums += _exp((lower - centres[:, None]) * scale)[:, None, :] / moved
    sums += 1.0 + width[:, None, :]
    np.log(sums, out=sums)
    return np.asarray(np.log1p(-width)[:, None, :] - sums, dtype=np.float64)


def _exp(exponents: Values) -> Values:
    """Return the exponential, far from overflow: products of two of these are finite."""
    return np.exp(np.clip(exponents, -300.0, 300.0))


def _fetches(evidence: Evidence, parameters: Parameters) -> float:
    some = evidence.fetch_counts > 0
    if not some.any():
        return 0.0
    expected = evidence.fetch_counts * parameters.fetch_overhead + evidence.fetch_bytes / parameters.fetch_rate
    errors = (np.log(evidence.fetch_seconds[some]) - np.log(expected[some])) / parameters.fetch_noise
    return float(-0.5 * (errors**2).sum() - some.sum() * np.log(parameters.fetch_noise))


def _hit_buckets(histogram: Histogram) -> list[tuple[float, float, float]]:
    edges = [-np.inf, *np.log(histogram.bounds), np.inf] if histogram.bounds else [-np.inf, np.inf]
    rows = zip(edges, edges[1:], histogram.counts, strict=False)
    return [(float(lower), float(upper), float(count)) for lower, upper, count in rows if count]


def _surroundings(rows: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Return where the counts lie (log seconds) and how far around that the window's effect may be."""
    if not rows:
        return 0.0, 1.0
    counts = np.array([count for _, _, count in rows])
    middles = np.array([_middle(lower, upper) for lower, upper, _ in rows])
    centre = float((counts * middles).sum() / counts.sum())
    deviation = float(np.sqrt((counts * (middles - centre) ** 2).sum() / counts.sum()))
    bucket = max(min(upper - lower, 2.0) for lower, upper, _ in rows)
    half = 4.0 * max(deviation, 0.2) / np.sqrt(counts.sum()) + 0.6 * bucket
    return centre, max(half, _LEAST_HALF_WIDTH)


def _middle(lower: float, upper: float) -> float:
    if np.isinf(lower):
        return upper - 0.7
    return lower + 0.35 if np.isinf(upper) else 0.5 * (lower + upper)
