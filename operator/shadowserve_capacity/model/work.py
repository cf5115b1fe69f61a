"""What a replica is asked to do: the side of the model that is known, from windows or from a load to plan for."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shadowserve_capacity.model.observations import Pool, Window

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Load:
    """What is to be served by the whole pool; tokens are means over all requests.

    `hit_share`: share of requests whose prefix is cached. `fetched_bytes`: mean over the requests that hit, 0 when hits
    come from the engine's own cache. `seconds`: how long the load lasts, as in windows.
    """

    arrival_rate: float
    prompt_tokens: float
    hit_tokens: float = 0.0
    output_tokens: float = 1.0
    hit_share: float = 1.0
    fetched_bytes: float = 0.0
    seconds: float = 300.0


@dataclass(frozen=True, slots=True)
class Work:
    """Work of one replica, one entry a window, shape (windows,). Requests are of two classes: missed and hit.

    Shapes (windows, 2) for `shares` (sum 1), `computed` (prompt tokens to compute), `fetch_count` (fetches a request)
    and `fetch_bytes` (bytes a request).
    """

    seconds: Values
    arrival_rate: Values
    prompt: Values
    output: Values
    shares: Values
    computed: Values
    fetch_count: Values
    fetch_bytes: Values
    max_sequences: float

    @property
    def mean_computed(self) -> Values:
        """Return prompt tokens to compute, mean over both classes."""
        return np.asarray((self.shares * self.computed).sum(axis=-1), dtype=np.float64)

    @property
    def variation(self) -> Values:
        """Return the squared coefficient of variation of the prompt tokens to compute."""
        mean = self.mean_computed
        second = (self.shares * self.computed**2).sum(axis=-1)
        return np.asarray(second / mean**2 - 1.0, dtype=np.float64)


def work_of(pool: Pool, loads: Sequence[tuple[Load, int]]) -> Work:
    """Return the work of one replica for each load and number of replicas."""
    rows = [_row(load, replicas) for load, replicas in loads]
    seconds, rate, prompt, output, shares, computed, fetch_count, fetch_bytes = (
        np.array(column, dtype=np.float64) for column in zip(*rows, strict=True)
    )
    most = float(pool.max_sequences)
    return Work(seconds, rate, prompt, output, shares, computed, fetch_count, fetch_bytes, most)


def load_of(window: Window) -> Load:
    """Return the load that a window was."""
    hits = window.hit_requests
    hit_share = (1.0 if window.hit_tokens else 0.0) if hits is None else hits / window.arrivals
    hitting = hit_share * window.arrivals
    return Load(
        arrival_rate=window.arrival_rate,
        prompt_tokens=window.prompt_tokens / window.arrivals,
        hit_tokens=window.hit_tokens / window.arrivals,
        output_tokens=max(window.output_tokens / window.arrivals, 1.0),
        hit_share=hit_share,
        fetched_bytes=window.fetches.bytes / hitting if hitting else 0.0,
        seconds=window.seconds,
    )


def _row(load: Load, replicas: int) -> tuple[object, ...]:
    hit_share = load.hit_share if load.hit_tokens > 0.0 else 0.0
    cached = load.hit_tokens / hit_share if hit_share else 0.0
    fetches = 1.0 if load.fetched_bytes else 0.0
    return (
        load.seconds,
        load.arrival_rate / replicas,
        load.prompt_tokens,
        load.output_tokens,
        (1.0 - hit_share, hit_share),
        (max(load.prompt_tokens, 1.0), max(load.prompt_tokens - cached, 1.0)),
        (0.0, fetches),
        (0.0, load.fetched_bytes),
    )


def check_load(load: Load) -> list[str]:
    """Return what is wrong with a load, by field; nothing if it can be served."""
    problems = [
        f"{name}: {value:g} is not {wanted}"
        for name, value, good, wanted in (
            ("arrival_rate", load.arrival_rate, load.arrival_rate > 0.0, "above 0"),
            ("prompt_tokens", load.prompt_tokens, load.prompt_tokens >= 1.0, "at least 1"),
            ("hit_tokens", load.hit_tokens, load.hit_tokens >= 0.0, "at least 0"),
            ("output_tokens", load.output_tokens, load.output_tokens >= 1.0, "at least 1"),
            ("hit_share", load.hit_share, 0.0 < load.hit_share <= 1.0, "above 0 and at most 1"),
            ("fetched_bytes", load.fetched_bytes, load.fetched_bytes >= 0.0, "at least 0"),
            ("seconds", load.seconds, load.seconds > 0.0, "above 0"),
        )
        if not (good and math.isfinite(value))
    ]
    if not problems and load.hit_tokens > load.prompt_tokens * load.hit_share:
        most = load.prompt_tokens * load.hit_share
        problems.append(f"hit_tokens: {load.hit_tokens:g} is more than the prompts of those that hit have ({most:g})")
    return problems
