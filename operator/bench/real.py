"""Chains on the cores of this machine: every method against the best serial loop, and what the machine allows."""

import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from selectors import EVENT_READ, DefaultSelector

from phases import Lesson, stationary, walk

from shadowserve_capacity.prefetch.chain import Position, serial_run
from shadowserve_capacity.prefetch.links import Link
from shadowserve_capacity.prefetch.local_worker import READY
from shadowserve_capacity.prefetch.parallel import Options, measured_batch_seconds, run_parallel
from shadowserve_capacity.prefetch.predictors import Naive, PaperPartialData, PartialData, Predictor
from shadowserve_capacity.prefetch.problem import Problem
from shadowserve_capacity.prefetch.processes import processes
from shadowserve_capacity.prefetch.surrogate import Surrogate
from shadowserve_capacity.prefetch.wire import Order
from shadowserve_capacity.problems.named import Named

_SETTLE = 300
_HISTORY = 1200
_ROUNDS, _WARM_UP = 20, 3
_LEAST_S = 1.0
_TRIAL, _CALIBRATIONS = 40_000, 3
_MASTER_BATCHES, _MASTER_BATCH_S = 32, 2e-3


@dataclass(frozen=True)
class Method:
    """A way to run a chain in parallel, by name."""

    name: str
    predictor: Callable[[Problem], Predictor]
    options: Options


METHODS = (
    Method("naive", lambda _: Naive(), Options(split=None, together=True)),
    Method("paper", lambda _: PaperPartialData(), Options(split=None, together=True)),
    Method("partial", lambda _: PartialData(), Options(split=None, together=True)),
    Method("surrogate", Surrogate, Options(split=None, together=True)),
    Method("hybrid", Surrogate, Options(split=0, together=True)),
    Method("data-parallel", lambda _: Naive(), Options(split=1, speculate=False, together=True)),
)


@dataclass(frozen=True)
class Phase:
    """Iterations to run: of what, from where, and what has been learnt by then."""

    name: str
    problem: Problem
    at: Position
    lesson: Lesson


@dataclass(frozen=True)
class Speed:
    """Seconds of one method on one phase, against the serial loop's."""

    phase: str
    method: str
    serial: float
    seconds: float
    useful: float
    wasted: float
    idle: float
    split: int | None
    master: float
    """Processor time of the master, as a share of one core."""


def phases(named: Named, iterations: int) -> list[Phase]:
    """Return the beginning of the chain, and a stretch of the stationary one after a history."""
    start = named.problem(iterations)
    settled = stationary(named, _SETTLE)
    history = walk(replace(settled, iterations=_HISTORY))
    return [
        Phase("burn-in", start, Position.first(start), Lesson(())),
        Phase(
            "stationary",
            replace(settled, iterations=_HISTORY + iterations),
            history.positions[-1],
            history.lesson(_HISTORY, _HISTORY),
        ),
    ]


def master_phase(seed: int) -> Phase:
    """Return a beginning of a chain, in 32 batches as other real runs, that take two milliseconds each here."""
    each = _TRIAL
    for _ in range(_CALIBRATIONS):  # time is not in proportion to size: caches, and what a call costs
        trial = Named("mixture", each * _MASTER_BATCHES, seed, _MASTER_BATCHES).problem(1)
        each = math.ceil(each * _MASTER_BATCH_S / measured_batch_seconds(trial, 20))
    start = Named("mixture", each * _MASTER_BATCHES, seed, _MASTER_BATCHES).problem(200)
    return Phase("burn-in", start, Position.first(start), Lesson(()))


def speeds(phase: Phase, workers: int, methods: Sequence[Method] = METHODS) -> list[Speed]:
    """Run the serial loop and then every method; asserts that all chains are the same."""
    began = time.perf_counter()
    serial, _ = serial_run(phase.problem, phase.at)
    serial_seconds = time.perf_counter() - began
    found = []
    for method in methods:
        with processes(phase.problem.target, workers) as hiring, ThreadPoolExecutor(1) as executor:
            predictor = phase.lesson.teach(method.predictor(phase.problem))
            if isinstance(predictor, Surrogate):  # from now on nobody waits for its fits
                predictor.executor = executor
            busy = time.process_time()
            chain, progress = run_parallel(phase.problem, hiring, workers, predictor, method.options, phase.at)
            busy = time.process_time() - busy
        assert chain.sha256 == serial.sha256, f"{method.name}: not the serial chain"
        found.append(
            Speed(
                phase.name, method.name, serial_seconds, progress.seconds, progress.useful, progress.wasted,
                progress.idle, progress.split, busy / progress.seconds,
            )
        )  # fmt: skip
    return found


def ceiling(problem: Problem, workers: int) -> float:
    """Return how many evaluations `workers` undisturbed processes do in the time in which one alone does one.

    They need no messages and no decisions: what is missing here to `workers` is memory, caches and cores.
    """
    with processes(problem.target, workers) as hiring:
        links = hiring.hired()
        try:
            for link in links:
                while link.received() != READY:
                    time.sleep(0.01)
            first = _seconds_a_round(problem, links, _WARM_UP)
            rounds = max(_ROUNDS, math.ceil(_LEAST_S / first))
            alone, together = (_seconds_a_round(problem, links[:count], rounds) for count in (1, workers))
        finally:
            for link in links:
                link.close()
    return workers * alone / together


def _seconds_a_round(problem: Problem, links: Sequence[Link], rounds: int) -> float:
    batches = problem.target.batches
    with DefaultSelector() as selector:
        left = {link.fileno(): rounds for link in links}
        began = time.perf_counter()
        for link in links:
            selector.register(link.fileno(), EVENT_READ, link)
            link.order(Order(0, 1, 0, 0, batches, batches, problem.start))
        while any(left.values()):
            for key, _ in selector.select(60.0):
                if key.data.received():
                    left[key.fd] -= 1
                    if left[key.fd] > 0:
                        key.data.order(Order(0, 1, 0, 0, batches, batches, problem.start))
        return (time.perf_counter() - began) / rounds


def cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0))
