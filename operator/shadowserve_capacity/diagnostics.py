"""Whether several chains agree, and how many independent draws they are worth.

Vehtari, Gelman, Simpson, Carpenter and Bürkner, "Rank-normalization, folding, and localization: an improved R-hat for
assessing convergence of MCMC", Bayesian Analysis 2021. Every function takes draws of one quantity, shape
(chains, draws) float64 with at least 4 draws a chain, and raises `ValueError` for any other shape.
"""

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Draws = NDArray[np.float64]

RHAT_LIMIT = 1.01
ESS_PER_CHAIN = 100
_TAILS = (0.05, 0.95)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Of one quantity: rank-normalised split R-hat, effective sample sizes, error of the mean (same unit)."""

    rhat: float
    ess_bulk: float
    ess_tail: float
    mcse_mean: float

    def complaint(self, chains: int) -> str:
        """Return what is wrong in words, nothing if the limits of the paper are kept."""
        if not self.rhat <= RHAT_LIMIT:
            return f"R-hat {self.rhat:.3f} is above {RHAT_LIMIT}: the chains disagree"
        least = min(self.ess_bulk, self.ess_tail)
        if least < ESS_PER_CHAIN * chains:
            return f"the chains are worth only {least:.0f} independent draws, fewer than {ESS_PER_CHAIN} each"
        return ""


def diagnose(draws: Draws) -> Diagnosis:
    """Return all diagnostics of `draws`, shape (chains, draws)."""
    return Diagnosis(rhat(draws), ess_bulk(draws), ess_tail(draws), mcse_mean(draws))


def rhat(draws: Draws) -> float:
    """Return the larger of R-hat of ranks and of folded ranks; NaN for values that never change or are not finite."""
    halves = _split(draws)
    folded = np.abs(halves - np.median(halves))
    return max(_rhat(_normal_scores(halves)), _rhat(_normal_scores(folded)))


def ess_bulk(draws: Draws) -> float:
    """Return the effective sample size of the centre of the distribution."""
    return _ess(_normal_scores(_split(draws)))


def ess_tail(draws: Draws) -> float:
    """Return the smaller effective sample size of the 5 % and the 95 % quantile."""
    halves = _split(draws)
    return min(_ess((halves <= np.quantile(draws, tail)).astype(np.float64)) for tail in _TAILS)


def mcse_mean(draws: Draws) -> float:
    """Return the standard error of the mean of all draws."""
    return float(np.std(draws, ddof=1) / np.sqrt(_ess(_split(draws))))


def to_arviz(draws: dict[str, Draws]) -> Any:
    """Return an `arviz.InferenceData` of quantities by name; raises `ModuleNotFoundError` without ArviZ."""
    import arviz

    return arviz.from_dict(posterior=draws)


def _split(draws: Draws) -> Draws:
    """Return two chains for each, without the middle draw of an odd number."""
    if draws.ndim != 2 or draws.shape[1] < 4:
        raise ValueError(f"draws have shape {draws.shape}, wanted (chains, draws) with at least 4 draws")
    half = draws.shape[1] // 2
    return np.concatenate([draws[:, :half], draws[:, -half:]])


def _normal_scores(draws: Draws) -> Draws:
    """Return normal quantiles of the fractional ranks over all chains; ties share their mean rank."""
    values, places, counts = np.unique(draws, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (2 * last - counts + 1) / 2
    normal = NormalDist()
    scores = [normal.inv_cdf((rank - 0.375) / (draws.size + 0.25)) for rank in ranks.tolist()]
    return np.asarray(scores)[places.reshape(draws.shape)] if len(values) > 1 else np.zeros_like(draws)


def _rhat(draws: Draws) -> float:
    length = draws.shape[1]
    within = draws.var(axis=1, ddof=1).mean()
    between = draws.mean(axis=1).var(ddof=1)
    if not within > 0.0:
        return float("nan")
    return float(np.sqrt((length - 1) / length + between / within))


def _ess(draws: Draws) -> float:
    """Return the effective sample size by Geyer's initial monotone sequence over all chains."""
    chains, length = draws.shape
    covariances = _autocovariances(draws).mean(axis=0)
    within = covariances[0] * length / (length - 1)
    variance = covariances[0] + (draws.mean(axis=1).var(ddof=1) if chains > 1 else 0.0)
    if not within > 0.0:
        return float(chains * length)
    correlations = 1.0 - (within - covariances) / variance
    correlations[0] = 1.0
    pairs = correlations[: length // 2 * 2].reshape(-1, 2).sum(axis=1)
    negative = np.flatnonzero(pairs[: (length - 3) // 2] < 0.0)
    end = int(negative[0]) if len(negative) else (length - 3) // 2
    pairs = np.minimum.accumulate(pairs[:end])
    time = -1.0 + 2.0 * float(pairs.sum()) + max(float(correlations[2 * end]), 0.0)
    total = chains * length
    return float(total / max(time, 1.0 / np.log10(total)))


def _autocovariances(draws: Draws) -> Draws:
    """Return the biased autocovariances of every chain, shape (chains, length), by FFT."""
    length = draws.shape[1]
    centred = draws - draws.mean(axis=1, keepdims=True)
    spectrum = np.fft.rfft(centred, 2 * length, axis=1)
    products = np.fft.irfft(spectrum * np.conj(spectrum), 2 * length, axis=1)
    lagged: Draws = products[:, :length] / length
    return lagged
