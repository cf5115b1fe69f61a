"""A simulated cluster: the target is really evaluated, time is not really spent.

Discrete events over any number of workers; costs in seconds of simulated time. Faults can be injected: they
must cost time and nothing else.
"""

import heapq
import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shadowserve_capacity.errors import TargetFault
from shadowserve_capacity.prefetch.chain import Chain, Position
from shadowserve_capacity.prefetch.master import Master
from shadowserve_capacity.prefetch.policy import Policy, Task, Verdict
from shadowserve_capacity.prefetch.predictors import PartialData, Predictor
from shadowserve_capacity.prefetch.problem import Problem


@dataclass(frozen=True, slots=True)
class Faults:
    """Chances per batch that a worker is slow (up to 20 times), dies, or answers twice."""

    slow: float = 0.0
    death: float = 0.0
    twice: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Cluster:
    """Workers and costs: seconds per batch, until a worker has its next task, and until a dead one is replaced."""

    workers: int
    batch_seconds: float = 1.0
    message_seconds: float = 0.0
    restart_seconds: float = 10.0
    faults: Faults = Faults()

    @property
    def split(self) -> int:
        """Return the least number of batches for which messages cost at most 5 %."""
        return max(1, math.ceil(20.0 * self.message_seconds / self.batch_seconds))


@dataclass(frozen=True, slots=True)
class Run:
    """What came out: the chain (the serial one), simulated seconds, and where the workers' time went."""

    chain: Chain
    seconds: float
    serial_seconds: float
    useful: float
    wasted: float
    idle: float
    times: NDArray[np.float64]
    """Simulated seconds at which each iteration came out, (iterations,) float64."""

    @property
    def speedup(self) -> float:
        """Return serial over parallel simulated time."""
        return self.serial_seconds / self.seconds if self.seconds > 0.0 else 1.0


@dataclass(slots=True)
class _Worker:
    number: int
    epoch: int = 0
    task: Task | None = None
    batch: int = 0


@dataclass(slots=True)
class _Simulation:
    problem: Problem
    cluster: Cluster
    master: Master
    rng: np.random.Generator
    now: float = 0.0
    sequence: int = 0
    terms: int = 0
    events: list[tuple[float, int, int, int]] = field(default_factory=list)
    workers: list[_Worker] = field(default_factory=list)
    idle: set[int] = field(default_factory=set)
    times: list[float] = field(default_factory=list)

    def run(self) -> None:
        self.workers = [_Worker(number) for number in range(self.cluster.workers)]
        for worker in self.workers:
            self._give(worker)
        while self.events and not self.master.done:
            self.now, _, number, epoch = heapq.heappop(self.events)
            worker = self.workers[number]
            if epoch == worker.epoch:
                self._step(worker)
                self.times += [self.now] * (len(self.master.steps) - len(self.times))
        assert self.master.done, "no worker has work, but the chain is not out"

    def _step(self, worker: _Worker) -> None:
        if worker.task is None:
            self._give(worker)
            return
        if self.rng.random() < self.cluster.faults.death:
            self.master.lost(worker.number)
            worker.task = None
            self._schedule(worker, self.cluster.restart_seconds)
            return
        self._answer(worker, worker.task)
        for number in self.master.called_off():
            if number != worker.number:
                self._give(self.workers[number])
        for number in sorted(self.idle):
            self._give(self.workers[number])

    def _answer(self, worker: _Worker, task: Task) -> None:
        try:
            terms = [self.problem.evaluate(task.theta, worker.batch)]
        except TargetFault as fault:
            self.master.failed(task.node, fault)
            self._give(worker)
            return
        self.terms += 1
        verdict = self.master.update(worker.number, task.node, worker.batch, terms)
        if self.rng.random() < self.cluster.faults.twice:
            self.master.update(worker.number, task.node, worker.batch, terms)
        worker.batch += 1
        if verdict is Verdict.CONTINUE and worker.batch < task.stop:
            self._schedule(worker, self._batch_seconds())
        else:
            self._give(worker)

    def _give(self, worker: _Worker) -> None:
        worker.task = self.master.assign(worker.number)
        worker.epoch += 1
        if worker.task is None:
            self.idle.add(worker.number)
            return
        self.idle.discard(worker.number)
        worker.batch = worker.task.first
        self._schedule(worker, self.cluster.message_seconds + self._batch_seconds())

    def _schedule(self, worker: _Worker, seconds: float) -> None:
        worker.epoch += 1
        self.sequence += 1
        heapq.heappush(self.events, (self.now + seconds, self.sequence, worker.number, worker.epoch))

    def _batch_seconds(self) -> float:
        slow = self.rng.random() < self.cluster.faults.slow
        return self.cluster.batch_seconds * (1.0 + 19.0 * self.rng.random() if slow else 1.0)


def run_simulated(
    problem: Problem,
    cluster: Cluster,
    predictor: Predictor | None = None,
    policy: Policy | None = None,
    at: Position | None = None,
) -> Run:
    """Return the chain of `problem` from `at` on as `cluster` would compute it, and the time it would take."""
    policy = Policy(workers=cluster.workers) if policy is None else policy
    master = Master(problem, PartialData() if predictor is None else predictor, policy, at)
    simulation = _Simulation(problem, cluster, master, np.random.default_rng(cluster.faults.seed))
    simulation.run()
    spent = simulation.now * cluster.workers / cluster.batch_seconds
    useful = master.useful_terms + problem.target.batches
    return Run(
        chain=master.chain,
        seconds=simulation.now,
        serial_seconds=useful * cluster.batch_seconds,
        useful=useful / spent if spent else 1.0,
        wasted=(simulation.terms - useful) / spent if spent else 0.0,
        idle=1.0 - simulation.terms / spent if spent else 0.0,
        times=np.array(simulation.times),
    )
