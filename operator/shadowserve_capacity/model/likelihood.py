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
Indices = NDArray[np.intp]
Form = Callable[[Parameters, Work], Latencies]

_GRID = np.linspace(-1.0, 1.0, 21)
_LEAST_HALF_WIDTH = 0.6


@dataclass(frozen=True, slots=True)
class Table:
    """Histograms of one quantity in arrays: the buckets that were hit, of one window after the other.

    `lower`, `upper` (log seconds) and `counts` have shape (buckets,). `windows` (filled,) are the windows that have
    any, `first` (filled,) is where each one's buckets begin, and `owner` (buckets,) whose a bucket is, counted among
    those. `places` (log seconds, where the integral looks) has shape (21, filled); `spacing` (filled,).
    """

    lower: Values
    upper: Values
    counts: Values
    owner: Indices
    windows: Indices
    first: Indices
    places: Values
    spacing: Values

    @staticmethod
    def of(histograms: Sequence[Histogram]) -> "Table":
        """Return the table of histograms; an empty one counts nothing."""
        buckets = [_hit_buckets(histogram) for histogram in histograms]
        windows = np.array([window for window, rows in enumerate(buckets) if rows], dtype=np.intp)
        filled = [buckets[window] for window in windows]
        sizes = np.array([len(rows) for rows in filled], dtype=np.intp)
        lower, upper, counts = np.array([row for rows in filled for row in rows]).reshape(-1, 3).T.copy()
        centres, halves = np.array([_surroundings(rows) for rows in filled]).reshape(-1, 2).T
        return Table(
            lower, upper, counts, np.repeat(np.arange(len(sizes)), sizes), windows, np.cumsum(sizes) - sizes,
            centres + halves * _GRID[:, None], halves * (_GRID[1] - _GRID[0]),
        )  # fmt: skip


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
    if not len(table.windows):
        return 0.0
    places, shares = places[table.windows], np.broadcast_to(shares, places.shape)[table.windows]
    deviation, scale = deviation[table.windows], 1.0 / spread[table.windows]
    effects = table.places - np.log((shares * np.exp(places)).sum(axis=-1))
    logs = _log_probabilities(table, places, shares, scale, _exp(effects * scale))
    logs *= table.counts
    totals = np.add.reduceat(logs, table.first, axis=1)
    totals -= 0.5 * (effects / deviation) ** 2
    highest = totals.max(axis=0)
    sums = np.log(np.exp(totals - highest).sum(axis=0)) + highest
    return float((sums + np.log(table.spacing / (deviation * np.sqrt(2.0 * np.pi)))).sum())


def _log_probabilities(table: Table, places: Values, shares: Values, scale: Values, moved: Values) -> Values:
    """Return the log probability of each bucket for each effect, shape (21, buckets).

    `moved` is e^(e / s), (21, filled); the other arguments have one row a filled window.
    """
    rows = np.arange(len(shares))
    main = np.argmax(shares, axis=-1)
    every = np.arange(len(table.owner))
    sums = _part(table, every, places[rows, main], scale, moved)
    shared = np.flatnonzero(shares.min(axis=-1)[table.owner] > 0.0) if shares.shape[1] > 1 else every[:0]
    if len(shared):
        most, least = (shares[rows, each][table.owner[shared]] for each in (main, 1 - main))
        other = _part(table, shared, places[rows, 1 - main], scale, moved)
        sums[:, shared] = 1.0 / (most / sums[:, shared] + least / other)
    np.log(sums, out=sums)
    width = np.exp((table.lower - table.upper) * scale[table.owner])
    return np.subtract(np.log1p(-width), sums, out=sums)


def _part(table: Table, buckets: Indices, centres: Values, scale: Values, moved: Values) -> Values:
    """Return the denominator of G(u) - G(l) of some buckets for each effect, shape (21, buckets).

    G(u) - G(l) = (1 - e^(l - u)) / (1 + e^(l - u) + e^(x + e - u) + e^(l - x - e)), all over the scale.
    """
    owner, lower, upper = table.owner[buckets], table.lower[buckets], table.upper[buckets]
    scale, centres = scale[owner], centres[owner]
    up = moved[:, owner]
    sums = _exp((lower - centres) * scale) / up
    up *= _exp((centres - upper) * scale)
    sums += up
    sums += 1.0 + np.exp((lower - upper) * scale)
    return np.asarray(sums, dtype=np.float64)


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
