"""Observations of a pool with known parameters, as the model itself says they come about: for checking the fit."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shadowserve_capacity.model.closed_form import latencies
from shadowserve_capacity.model.hardware import Parameters
from shadowserve_capacity.model.likelihood import Form
from shadowserve_capacity.model.observations import Fetches, Histogram, Observations, Pool, Window
from shadowserve_capacity.model.work import Load, Work, work_of

Values = NDArray[np.float64]

TTFT_BOUNDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0,
)  # fmt: skip
"""Buckets of vLLM's time to first token, seconds."""
TPOT_BOUNDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
"""Buckets of vLLM's time per output token, seconds."""


def random_loads(number: int, rng: np.random.Generator) -> list[tuple[Load, int]]:
    """Return loads and replicas of all kinds: calm and crowded, short and long, with and without hits."""
    found = []
    for _ in range(number):
        replicas = int(rng.integers(1, 4))
        prompt = float(rng.integers(100, 1500))
        hit_share = float(rng.choice([0.0, 0.5, 1.0]))
        hit = 0.8 * prompt * hit_share
        rate = replicas * float(np.exp(rng.uniform(np.log(0.05), np.log(0.8))))
        fetched = 2_000.0 * 0.8 * prompt if hit_share else 0.0
        found.append((Load(rate, prompt, hit, float(rng.integers(8, 64)), hit_share or 1.0, fetched, 60.0), replicas))
    return found


def synthetic(
    pool: Pool, logs: Values, loads: Sequence[tuple[Load, int]], rng: np.random.Generator, form: Form = latencies
) -> Observations:
    """Return one window for each load, of a pool whose parameters have the logarithms `logs`, shape (13,)."""
    parameters, work = Parameters.of_logs(logs), work_of(pool, loads)
    seen = form(parameters, work)
    ttft_effects = rng.standard_normal(len(loads)) * seen.ttft_deviation
    tpot_effects = rng.standard_normal(len(loads)) * seen.tpot_deviation
    fetch_effects = rng.standard_normal(len(loads)) * float(parameters.fetch_noise)
    windows = []
    for index, (load, replicas) in enumerate(loads):
        arrivals = max(round(load.arrival_rate * load.seconds), 1)
        classes = rng.choice(2, size=arrivals, p=work.shares[index])
        ttft = seen.ttft[index, classes] + ttft_effects[index] + _scatter(seen.ttft_spread[index], arrivals, rng)
        tpot = seen.tpot[index] + tpot_effects[index] + _scatter(seen.tpot_spread[index], arrivals, rng)
        windows.append(
            Window(
                seconds=load.seconds,
                replicas=replicas,
                arrivals=arrivals,
                prompt_tokens=int(load.prompt_tokens * arrivals),
                hit_tokens=int(load.hit_tokens * arrivals),
                output_tokens=int(load.output_tokens * arrivals),
                ttft=_histogram(np.exp(ttft), TTFT_BOUNDS),
                tpot=_histogram(np.exp(tpot), TPOT_BOUNDS),
                hit_requests=max(round(load.hit_share * arrivals), 1) if load.hit_tokens else 0,
                fetches=_fetches(parameters, work, index, arrivals, float(np.exp(fetch_effects[index]))),
                ttft_p90=float(np.quantile(np.exp(ttft), 0.9)),
            )
        )
    return Observations(pool, tuple(windows))


def _scatter(spread: Values, number: int, rng: np.random.Generator) -> Values:
    return spread * rng.logistic(size=number)


def _histogram(seconds: Values, bounds: tuple[float, ...]) -> Histogram:
    counts = np.bincount(np.searchsorted(bounds, seconds), minlength=len(bounds) + 1)
    return Histogram(bounds, tuple(int(count) for count in counts))


def _fetches(parameters: Parameters, work: Work, index: int, arrivals: int, effect: float) -> Fetches:
    count = max(round(arrivals * work.shares[index, 1]), 1) if work.fetch_count[index, 1] else 0
    size = count * work.fetch_bytes[index, 1]
    seconds = (count * float(parameters.fetch_overhead) + size / float(parameters.fetch_rate)) * effect
    return Fetches(count, seconds, float(size)) if count else Fetches()
