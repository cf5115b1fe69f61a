"""The slow form: every window as a small simulation of a continuously batching engine, all windows in step.

Requests of a window arrive at fixed places in it (the same random numbers for all parameters, so that the likelihood is
a function of them) and are ready when their prefix is fetched. An engine works in steps as vLLM does: up to four
requests that are ready join the running ones, at most B, and a step of b sequences with p tokens to compute takes
    step(b) + p / prefill_rate
(`closed_form.flow` has step(b)). Without anybody to join, decode steps up to the next arrival or end are one jump. A
simulation is one long loop: it cannot be split, and takes nearly as long for ten windows as for a hundred. A window
with more than 128 requests a replica is simulated with 128; what a longer overload adds is the closed form's.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shadowserve_capacity.errors import CalledOff
from shadowserve_capacity.model.closed_form import LOGISTIC, by_chance, flow, seconds_per_sequence, slot_delay
from shadowserve_capacity.model.hardware import Parameters
from shadowserve_capacity.model.latencies import Latencies
from shadowserve_capacity.model.work import Work

Values = NDArray[np.float64]
Indices = NDArray[np.intp]

_FEWEST, _MOST = 24, 128
"""Requests that a window is simulated with: enough to see its queue, not more than it takes."""
_JOINING = 4


@dataclass(frozen=True, slots=True)
class Simulation:
    """The simulated form of the model: a function of parameters and work, and of nothing else.

    `arrivals` and `kinds`: uniform numbers, shape (windows, 128), for when requests come and which of them hit.
    """

    arrivals: Values
    kinds: Values

    @staticmethod
    def of(windows: int, seed: int) -> "Simulation":
        """Return the simulation with the common random numbers of a seed."""
        rng = np.random.default_rng([seed, 17])
        return Simulation(rng.random((windows, _MOST)), rng.random((windows, _MOST)))

    def __call__(self, parameters: Parameters, work: Work, called_off: Callable[[], bool] = lambda: False) -> Latencies:
        """Return what the windows show; parameters have shape (). Raises CalledOff soon after `called_off` says so."""
        counts = np.clip(np.ceil(work.arrival_rate * work.seconds), _FEWEST, _MOST).astype(np.intp)
        requests = self._requests(parameters, work, counts)
        engine = _Engine.of(parameters, work, requests)
        engine.run(called_off)
        return _summary(parameters, work, requests, engine)

    def _requests(self, parameters: Parameters, work: Work, counts: Indices) -> "_Requests":
        most = int(counts.max())
        there = np.arange(most) < counts[:, None]
        horizon = counts / work.arrival_rate
        arrival = np.sort(np.where(there, self.arrivals[: len(counts), :most], 2.0), axis=1) * horizon[:, None]
        kind = (self.kinds[: len(counts), :most] < work.shares[:, 1:]).astype(np.intp)
        fetch = work.fetch_count * parameters.fetch_overhead + work.fetch_bytes / parameters.fetch_rate
        ready = np.where(there, arrival + np.take_along_axis(fetch, kind, axis=1), np.inf)
        order = np.argsort(ready, axis=1, kind="stable")
        kind = np.take_along_axis(kind, order, axis=1)
        prefill = np.take_along_axis(work.computed, kind, axis=1) / parameters.prefill_rate
        return _Requests(counts, there, np.take_along_axis(ready, order, axis=1), kind, prefill, fetch)


@dataclass(frozen=True, slots=True)
class _Requests:
    """In the order in which they are ready, shape (windows, most); `fetch` (windows, 2) in seconds by kind."""

    counts: Indices
    there: NDArray[np.bool_]
    ready: Values
    kind: Indices
    prefill: Values
    fetch: Values


@dataclass(slots=True)
class _Engine:
    """One engine a window, all at their own clocks. Sequences are as long as one another, so they end in order."""

    requests: _Requests
    base: Values
    per_sequence: Values
    output: Values
    most: float
    clock: Values
    joined: Indices
    ended: Indices
    decoded: Values
    first: Values
    ends: Values
    token_seconds: Values
    tokens: Values

    @staticmethod
    def of(parameters: Parameters, work: Work, requests: _Requests) -> "_Engine":
        windows, most = requests.ready.shape
        zeros = np.zeros(windows)
        return _Engine(
            requests, np.full(windows, parameters.step_base), seconds_per_sequence(parameters, work),
            np.maximum(np.round(work.output), 1.0), work.max_sequences, zeros.copy(), np.zeros(windows, dtype=np.intp),
            np.zeros(windows, dtype=np.intp), zeros.copy(), np.full((windows, most), np.inf),
            np.full((windows, most + 1), np.inf), zeros.copy(), zeros.copy(),
        )  # fmt: skip

    def run(self, called_off: Callable[[], bool]) -> None:
        rows = np.arange(len(self.clock))
        padded = np.concatenate([self.requests.ready, np.full((len(rows), _JOINING), np.inf)], axis=1)
        while (self.joined < self.requests.counts).any():
            if called_off():
                raise CalledOff("the simulation")
            running = self.joined - self.ended
            following = padded[rows, self.joined]
            idle = (running == 0) & np.isfinite(following)
            self.clock = np.where(idle, np.maximum(self.clock, following), self.clock)
            joining, prefill = self._joining(rows, padded, running)
            step = self.base + (running + joining) * self.per_sequence
            jump = self._jump(rows, running, following, step)
            taken = np.where(joining > 0, step + prefill, jump * step)
            progress = np.where(joining > 0, 1.0, jump)
            self.clock = self.clock + taken
            self.decoded = self.decoded + progress
            self.token_seconds += running * taken
            self.tokens += running * progress
            self._admit(rows, joining)
            self.ended = (self.ends <= self.decoded[:, None]).sum(axis=1)

    def _joining(self, rows: Indices, padded: Values, running: Indices) -> tuple[Indices, Values]:
        joining, prefill = np.zeros_like(running), np.zeros(len(rows))
        for place in range(_JOINING):
            at = self.joined + place
            able = (padded[rows, at] <= self.clock) & (running + place < self.most) & (joining == place)
            joining = joining + able
            prefill += np.where(able, self.requests.prefill[rows, np.minimum(at, self.first.shape[1] - 1)], 0.0)
        return joining, prefill

    def _jump(self, rows: Indices, running: Indices, following: Values, step: Values) -> Values:
        """Return how many decode steps go by until something changes: a sequence ends, or somebody may join."""
        left = np.where(running > 0, self.ends[rows, self.ended] - self.decoded, 0.0)
        wait = np.where(running < self.most, np.ceil((following - self.clock) / step), np.inf)
        return np.minimum(left, np.maximum(wait, 1.0))

    def _admit(self, rows: Indices, joining: Indices) -> None:
        for place in range(_JOINING):
            chosen = rows[joining > place]
            at = self.joined[chosen] + place
            self.first[chosen, at] = self.clock[chosen]
            self.ends[chosen, at] = self.decoded[chosen] + self.output[chosen] - 1.0
        self.joined = self.joined + joining


def _summary(parameters: Parameters, work: Work, requests: _Requests, engine: _Engine) -> Latencies:
    """Return places and spreads of the simulated latencies, as the closed form has them."""
    balance = flow(parameters, work)
    there, shape = requests.there, work.seconds.shape
    waits = np.where(there, engine.first, 0.0) - np.where(there, requests.ready + requests.prefill, 0.0)
    least = np.min(waits, axis=1, where=there, initial=np.inf)
    waits = least[:, None] + parameters.queueing * (waits - least[:, None])
    mean = (waits * there).sum(axis=1) / requests.counts
    missing = slot_delay(parameters, work, balance, work.seconds)
    missing = missing - slot_delay(parameters, work, balance, requests.counts / work.arrival_rate)
    mean = mean + np.where(requests.counts == _MOST, missing, 0.0)
    own = parameters.request_overhead + mean
    ttft = np.log(own[:, None] + work.computed / parameters.prefill_rate + requests.fetch)
    centres = np.take_along_axis(ttft, requests.kind, axis=1)
    fetched = np.take_along_axis(requests.fetch, requests.kind, axis=1)
    single = np.log(np.maximum(parameters.request_overhead + waits + requests.prefill + fetched, 1e-9))
    scatter = np.sqrt((np.where(there, single - centres, 0.0) ** 2).sum(axis=1) / requests.counts)
    share = (mean - least) / np.exp((work.shares * ttft).sum(axis=1))
    tpot = np.where(engine.tokens > 0, engine.token_seconds / np.maximum(engine.tokens, 1.0), balance.tpot)
    return Latencies(
        ttft=ttft,
        ttft_deviation=np.hypot(parameters.ttft_noise, by_chance(share, balance.utilisation, work)),
        ttft_spread=np.hypot(parameters.ttft_spread, LOGISTIC * scatter),
        tpot=np.log(tpot),
        tpot_deviation=np.broadcast_to(parameters.tpot_noise, shape),
        tpot_spread=np.broadcast_to(parameters.tpot_spread, shape),
        fetch=requests.fetch.sum(axis=1),
        utilisation=balance.utilisation,
        batch=balance.batch,
    )
