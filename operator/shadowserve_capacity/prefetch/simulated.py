"""A simulated cluster: the target is really evaluated, time is not really spent.

Discrete events over any number of workers; costs in seconds of simulated time. Faults can be injected: they
must cost time and nothing else.
"""

import heapq
from dataclasses import dataclass, field

import numpy as np

from shadowserve_capacity.prefetch.chain import Chain
from shadowserve_capacity.prefetch.master import Master, Task, Verdict
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
    """Workers and costs: seconds per batch, seconds until a new or restarted worker has its task."""

    workers: int
    batch_seconds: float = 1.0
    message_seconds: float = 0.0
    restart_seconds: float = 10.0
    faults: Faults = Faults()


@dataclass(frozen=True, slots=True)
class Run:
    """What came out: the chain (the serial one), simulated seconds, and where the workers' time went."""

    chain: Chain
    seconds: float
    serial_seconds: float
    useful: float
    wasted: float
    idle: float

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

    def run(self) -> None:
        self.workers = [_Worker(number) for number in range(self.cluster.workers)]
        for worker in self.workers:
            self._give(worker)
        while self.events and not self.master.done:
            self.now, _, number, epoch = heapq.heappop(self.events)
            worker = self.workers[number]
            if epoch == worker.epoch:
                self._step(worker)
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
        for number in self.master.abandoned():
            if number != worker.number:
                self._give(self.workers[number])
        self._serve_idle()

    def _answer(self, worker: _Worker, task: Task) -> None:
        term = self.problem.evaluate(task.theta, worker.batch)
        self.terms += 1
        verdict = self.master.update(worker.number, task.node, worker.batch, term)
        if self.rng.random() < self.cluster.faults.twice:
            self.master.update(worker.number, task.node, worker.batch, term)
        worker.batch += 1
        if verdict is Verdict.CONTINUE:
            self._schedule(worker, self._batch_seconds())
        else:
            self._give(worker)

    def _give(self, worker: _Worker) -> None:
        worker.task = self.master.assign(worker.number)
        worker.epoch += 1
        if worker.task is not None:
            worker.batch = worker.task.batch
            self._schedule(worker, self.cluster.message_seconds + self._batch_seconds())

    def _serve_idle(self) -> None:
        waiting = {number for _, _, number, epoch in self.events if epoch == self.workers[number].epoch}
        if len(waiting) < len(self.workers):
            for worker in self.workers:
                if worker.number not in waiting:
                    self._give(worker)

    def _schedule(self, worker: _Worker, seconds: float) -> None:
        worker.epoch += 1
        self.sequence += 1
        heapq.heappush(self.events, (self.now + seconds, self.sequence, worker.number, worker.epoch))

    def _batch_seconds(self) -> float:
        slow = self.rng.random() < self.cluster.faults.slow
        return self.cluster.batch_seconds * (1.0 + 19.0 * self.rng.random() if slow else 1.0)


def run_simulated(problem: Problem, cluster: Cluster, predictor: Predictor | None = None) -> Run:
    """Return the chain of `problem` as `cluster` would compute it, and the time it would take."""
    master = Master(problem, predictor or PartialData())
    simulation = _Simulation(problem, cluster, master, np.random.default_rng(cluster.faults.seed))
    simulation.run()
    batches = problem.target.batches
    spent = simulation.now * cluster.workers / cluster.batch_seconds
    useful = master.useful_terms + batches
    return Run(
        chain=master.chain,
        seconds=simulation.now,
        serial_seconds=useful * cluster.batch_seconds,
        useful=useful / spent if spent else 1.0,
        wasted=(simulation.terms - useful) / spent if spent else 0.0,
        idle=1.0 - simulation.terms / spent if spent else 0.0,
    )
