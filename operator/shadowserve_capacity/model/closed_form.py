"""The fast form: latencies of a continuously batching engine by formulas of queueing theory.

With lambda arrivals a second at one replica, p prompt tokens to compute, o output tokens, c tokens of context:
    step(b)  = step_base + b step_per_sequence (1 + k c / 1000) / (1 + k)   a decode step of b sequences, k context_odds
    1 / mu   = p / r + o step(B) / B                                        seconds of work a request, at a full batch B
    rho      = lambda / mu                                                  utilisation
    b        = l o TPOT, at most B;  l = min(lambda, 0.98 mu)               sequences that decode: Little's law
    TPOT     = step(b + 1) / (1 - l p / r)                                  who decodes sees b others
    TTFT     = overhead + fetch + p / r + step(b + 1) (1 + min(b, 1) / 2) + W
    W        = D(rho, mu, k rho^(sqrt(2 (B + 1)) - 2)) + k l s^2 (1 + v) / (2 (1 - l s)),  s = p / r
    D(rho, mu, k) = T / 4 (rho - 1 + sqrt((rho - 1)^2 + 8 k rho / (mu T)))
D is the wait of a queue observed for T seconds, also above rho = 1 (Kimber and Hollis 1979; stationary:
k rho / (mu (1 - rho))), its exponent Sakasegawa's (1977) for B servers; the second term is the wait behind other
prefills (Pollaczek and Khinchine; v: squared coefficient of variation of p), k is `queueing`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shadowserve_capacity.model.hardware import Parameters
from shadowserve_capacity.model.latencies import Latencies
from shadowserve_capacity.model.work import Work

Values = NDArray[np.float64]

LOGISTIC = np.sqrt(3.0) / np.pi
"""Scale of a logistic distribution of deviation 1."""
_BUSIEST = 0.98


@dataclass(frozen=True, slots=True)
class Flow:
    """The engine in balance: utilisation, decoding sequences, seconds of a step and of a token, share of prefills."""

    utilisation: Values
    request_seconds: Values
    served_rate: Values
    batch: Values
    step: Values
    tpot: Values
    prefilling: Values


def seconds_per_sequence(parameters: Parameters, work: Work) -> Values:
    """Return what each running sequence adds to a step, at the mean context of each window."""
    context = (work.prompt + 0.5 * work.output) / 1000.0
    growth = (1.0 + parameters.context_odds * context) / (1.0 + parameters.context_odds)
    return np.asarray(parameters.step_per_sequence * growth, dtype=np.float64)


def flow(parameters: Parameters, work: Work) -> Flow:
    """Return the balance of each window, shape (..., windows); parameters have shape (..., 1) or ()."""
    per_sequence = seconds_per_sequence(parameters, work)
    prefill = work.mean_computed / parameters.prefill_rate
    full = parameters.step_base / work.max_sequences + per_sequence
    request_seconds = prefill + work.output * full
    utilisation = work.arrival_rate * request_seconds
    served = np.minimum(work.arrival_rate, _BUSIEST / request_seconds)
    prefilling = served * prefill
    alone = served * work.output * (parameters.step_base + per_sequence)
    batch = alone / (1.0 - prefilling - served * work.output * per_sequence)
    batch = np.minimum(batch, work.max_sequences)
    step = parameters.step_base + np.minimum(batch + 1.0, work.max_sequences) * per_sequence
    return Flow(utilisation, request_seconds, served, batch, step, step / (1.0 - prefilling), prefilling)


def latencies(parameters: Parameters, work: Work) -> Latencies:
    """Return what a window shows, by the formulas above."""
    balance = flow(parameters, work)
    prefill = work.mean_computed / parameters.prefill_rate
    slot = slot_delay(parameters, work, balance, work.seconds)
    behind = parameters.queueing * balance.prefilling * prefill * (1.0 + work.variation)
    waiting = slot + behind / (2.0 * (1.0 - balance.prefilling))
    own = parameters.request_overhead + balance.step * (1.0 + 0.5 * np.minimum(balance.batch, 1.0)) + waiting
    fetch = _per_class(parameters.fetch_overhead) * work.fetch_count
    fetch = fetch + work.fetch_bytes / _per_class(parameters.fetch_rate)
    ttft = own[..., None] + work.computed / _per_class(parameters.prefill_rate) + fetch
    share = waiting / (own + prefill)
    deviation = np.hypot(parameters.ttft_noise, by_chance(share, balance.utilisation, work))
    spread = np.hypot(parameters.ttft_spread, LOGISTIC * _scatter(share, balance.utilisation))
    shape = balance.tpot.shape
    return Latencies(
        ttft=np.log(ttft),
        ttft_deviation=deviation,
        ttft_spread=spread,
        tpot=np.log(balance.tpot),
        tpot_deviation=np.broadcast_to(parameters.tpot_noise, shape),
        tpot_spread=np.broadcast_to(parameters.tpot_spread, shape),
        fetch=fetch.sum(axis=-1),
        utilisation=balance.utilisation,
        batch=balance.batch,
    )


def _per_class(values: Values) -> Values:
    """Give values of shape (...) or (..., 1) an axis for the two classes."""
    return np.asarray(values)[..., None]


def slot_delay(parameters: Parameters, work: Work, balance: Flow, seconds: Values) -> Values:
    """Return the mean wait for a place in the batch, of those who come within `seconds`: D above."""
    exponent = np.sqrt(2.0 * (work.max_sequences + 1.0)) - 2.0
    factor = parameters.queueing * np.minimum(balance.utilisation, 1.0) ** exponent
    over = balance.utilisation - 1.0
    root = np.sqrt(over**2 + 8.0 * factor * balance.utilisation * balance.request_seconds / seconds)
    return np.asarray(0.25 * seconds * (over + root), dtype=np.float64)


def _scatter(share: Values, utilisation: Values) -> Values:
    """Return the deviation of log TTFT inside a window because some wait and others do not.

    A wait of mean W is 0 with probability 1 - rho, else exponential: its variance is W^2 (2 / rho - 1).
    """
    variation = share**2 * (2.0 / np.clip(utilisation, 0.05, 1.0) - 1.0)
    return np.asarray(np.sqrt(np.log1p(np.minimum(variation, 2.0))), dtype=np.float64)


def by_chance(share: Values, utilisation: Values, work: Work) -> Values:
    """Return the deviation of a window's log TTFT because its queue was long or short by chance.

    The mean wait of n requests deviates by about sqrt(2 / (n (1 - rho)^2)) of itself in a queue with random arrivals,
    at most by all of it; `share` is the part of the wait in the TTFT.
    """
    requests = np.maximum(work.arrival_rate * work.seconds, 1.0)
    relative = np.sqrt(2.0 / requests) / np.maximum(np.abs(1.0 - utilisation), 0.05)
    return np.asarray(share * np.minimum(relative, 1.0), dtype=np.float64)
