"""Run a chain on real workers: give orders, take answers, replace who dies, pass over who stalls.

The loop blocks until a worker says something. It looks at no clock to decide about the chain, only to see who is late.
"""

import math
import selectors
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from shadowserve_capacity.errors import TargetFault, WorkerError
from shadowserve_capacity.prefetch.chain import Chain, Position
from shadowserve_capacity.prefetch.choice import Chooser
from shadowserve_capacity.prefetch.links import Hiring, Link
from shadowserve_capacity.prefetch.local_worker import READY, REFUSED
from shadowserve_capacity.prefetch.master import Master
from shadowserve_capacity.prefetch.policy import Policy, Task, Verdict
from shadowserve_capacity.prefetch.predictors import Predictor
from shadowserve_capacity.prefetch.problem import Problem, evaluated
from shadowserve_capacity.prefetch.processes import LANES
from shadowserve_capacity.prefetch.progress import Meter, Progress
from shadowserve_capacity.prefetch.wire import Answer, CallOff, Failure, Order, decode

_HANDLING_S = 60e-6
_ROUND_TRIP_S = 200e-6
_OUTLASTS = 12.0
_REPORT_S = 2e-3
_WAIT_S = 0.5
_LOOK_S = 0.05
_STALLS_AFTER_S = 5.0
_READY_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Options:
    """How a run behaves. Nothing here changes the chain.

    `split`: batches a share; 0 finds out whether it is faster that workers share evaluations, None: they never do.
    `together` lets the run (and its time) begin only when all workers of the start are ready: for benchmarks.
    A worker that is silent for `stall_seconds` (and ten times what its order should take) is passed over.
    """

    split: int | None = 0
    speculate: bool = True
    master_works: bool = False
    together: bool = False
    stall_seconds: float = _STALLS_AFTER_S
    told_every: float = 1.0
    tell: Callable[[Progress], None] | None = None
    keep: Callable[[Chain, Position], None] | None = None
    kept_every: float = 30.0


def chosen_split(batches: int, batch_seconds: float, workers: int) -> int | None:
    """Return the smallest share of an evaluation that is worth its messages; None when splitting does not pay.

    A share must outlast twelve round trips (the next one waits in the worker's queue meanwhile; two workers' messages
    then take about 3 % of a core), and all workers' messages must not take more than half of the master's time.
    """
    least = max(_OUTLASTS * _ROUND_TRIP_S, 2.0 * workers * _HANDLING_S)
    split = max(1, math.ceil(least / max(batch_seconds, 1e-9)))
    return split if workers > 1 and 2 * split <= batches else None


@dataclass(slots=True)
class _Lane:
    """One place in a worker's queue; it holds at most one order."""

    number: int
    worker: "_Worker"
    local: int
    serial: int | None = None
    since: float = 0.0
    due: float = 0.0
    lost: bool = False


@dataclass(slots=True)
class _Worker:
    link: Link
    lanes: list[_Lane] = field(default_factory=list)
    ready: bool = False
    since: float = 0.0

    @property
    def stalled(self) -> bool:
        """Whether it owes an answer for so long that its work is somebody else's now."""
        return any(lane.lost for lane in self.lanes)


class Crew:
    """The workers of one run and the loop over what they say."""

    def __init__(
        self, problem: Problem, hiring: Hiring, master: Master, options: Options, meter: Meter, chooser: Chooser
    ) -> None:
        self._chooser = chooser
        self._problem = problem
        self._hiring = hiring
        self._master = master
        self._options = options
        self._meter = meter
        self._selector = selectors.DefaultSelector()
        self._workers: dict[int, _Worker] = {}
        self._lanes: dict[int, _Lane] = {}
        self._idle: set[int] = set()
        self._serials = 0
        self._queue = LANES if chooser.split is not None or master.split is not None else 1
        self._own: Task | None = None
        self._own_batch = 0
        self._kept = self._look_again = time.monotonic()
        fd = hiring.fileno()
        if fd is not None:
            self._selector.register(fd, selectors.EVENT_READ, None)

    def run(self) -> tuple[Chain, Progress]:
        """Return the finished chain and how it went.

        Raises TargetFault or ProposalFault as the serial run does, and WorkerError when no worker can be had.
        """
        try:
            self._enlist(self._hiring.hired())
            while not self._master.done:
                self._turn()
            if self._options.keep is not None:
                self._options.keep(self._master.chain, self._master.position)
            return self._master.chain, self._meter.progress(time.monotonic(), self._master)
        finally:
            self._selector.close()
            for worker in self._workers.values():
                worker.link.close()

    def _turn(self) -> None:
        if self._options.master_works or self._alone():
            worked = self._work_a_batch()
        else:
            worked = False
            self._give_up_own()
        for key, _ in self._selector.select(0.0 if worked else _WAIT_S):
            if key.data is None:
                self._enlist(self._hiring.hired())
            else:
                self._hear(key.data)
        self._serve()
        now = time.monotonic()
        if now >= self._look_again:
            self._look_again = now + _LOOK_S
            self._pass_over_the_late(now)
        if self._options.tell is not None and self._meter.due(now):
            self._options.tell(self._meter.progress(now, self._master))
        if self._options.keep is not None and now - self._kept >= self._options.kept_every:
            self._kept = now
            self._options.keep(self._master.chain, self._master.position)

    def _enlist(self, links: list[Link]) -> None:
        for link in links:
            worker = _Worker(link, since=time.monotonic())
            for local in range(self._queue):
                lane = _Lane(len(self._lanes), worker, local)
                self._lanes[lane.number] = lane
                worker.lanes.append(lane)
            self._workers[link.fileno()] = worker
            self._selector.register(link.fileno(), selectors.EVENT_READ, worker)
            self._meter.hired(len(self._workers))
            self._hear(worker)

    def _hear(self, worker: _Worker) -> None:
        try:
            self._take(worker, worker.link.received())
            while worker.link.buffered():  # of what is not, the selector tells again
                self._take(worker, worker.link.received())
        except WorkerError as error:
            self._bury(worker, error)

    def _take(self, worker: _Worker, data: bytes) -> None:
        if worker.ready and data:
            self._answered(worker, decode(data))
        elif data == READY:
            worker.ready = True
            if not self._waiting():
                self._meter.begin(time.monotonic())
            self._idle.update(lane.number for lane in worker.lanes)
        elif data:
            reason = data.removeprefix(REFUSED).decode(errors="replace")
            raise TargetFault(f"a worker cannot take the target: {reason}")

    def _answered(self, worker: _Worker, message: object) -> None:
        if not isinstance(message, Answer | Failure) or message.lane >= len(worker.lanes):
            raise WorkerError(f"a worker said {message!r}")
        lane = worker.lanes[message.lane]
        if isinstance(message, Failure):
            self._master.failed(message.node, TargetFault(message.text))
            self._free(lane)
            return
        self._meter.answered(len(message.terms), message.seconds)
        verdict = self._master.update(lane.number, message.node, message.first, message.terms)
        lane.since = time.monotonic()
        if message.last:
            self._free(lane)
        elif verdict is Verdict.STOP or lane.lost:
            self._call_off(lane)

    def _free(self, lane: _Lane) -> None:
        lane.serial, lane.lost = None, False
        self._master.lost(lane.number)
        self._idle.add(lane.number)

    def _call_off(self, lane: _Lane) -> None:
        if lane.serial is not None:
            lane.worker.link.call_off(CallOff(lane.local, lane.serial))

    def _waiting(self) -> bool:
        """Return whether the run is not to begin yet."""
        if not self._options.together or self._meter.begun:
            return False
        return not all(worker.ready for worker in self._workers.values())

    def _serve(self) -> None:
        if self._waiting():
            return
        for number in self._master.called_off():
            if number in self._lanes:
                try:
                    self._call_off(self._lanes[number])
                except WorkerError as error:
                    self._bury(self._lanes[number].worker, error)
            else:
                self._own = None
        if self._chooser.split is not None:
            self._master.share(self._chooser.choose(len(self._master.steps), time.monotonic()))
        for number in sorted(self._idle, key=lambda lane: self._lanes[lane].local):
            if self._master.split is None and self._lanes[number].local > 0:
                break
            if self._master.done or not self._give(self._lanes[number]):
                break
        if self._master.split is None and not self._idle:  # with shares the next one waits at the worker already
            self._master.look_ahead()

    def _give(self, lane: _Lane) -> bool:
        task = self._master.assign(lane.number)
        if task is None:
            return False
        self._serials += 1
        seconds = self._meter.batch_seconds
        lane.serial, lane.since = self._serials, time.monotonic()
        lane.due = 10.0 * seconds * LANES * (task.stop - task.first)
        self._idle.discard(lane.number)
        try:
            lane.worker.link.order(
                Order(lane.local, self._serials, task.node, task.first, task.stop, self._report(task), task.theta)
            )
        except WorkerError as error:
            self._bury(lane.worker, error)
        return True

    def _report(self, task: Task) -> int:
        """Return after how many batches to answer first: a share is short, and its news cost more than they tell."""
        if self._master.split is not None:
            return task.stop - task.first
        seconds = self._meter.batch_seconds
        return max(1, int(_REPORT_S / seconds)) if seconds > 0.0 else 1

    def _pass_over_the_late(self, now: float) -> None:
        for worker in list(self._workers.values()):
            if not worker.ready and now - worker.since > _READY_WITHIN_S:
                self._bury(worker, WorkerError(f"a worker was not ready within {_READY_WITHIN_S:g} s"))
        for worker in self._workers.values():
            for lane in worker.lanes:
                late = now - lane.since > self._options.stall_seconds + lane.due
                if lane.serial is not None and late and not lane.lost:
                    lane.lost = True
                    self._master.lost(lane.number)

    def _bury(self, worker: _Worker, error: WorkerError) -> None:
        fd = worker.link.fileno()
        if self._workers.pop(fd, None) is None:
            return
        self._selector.unregister(fd)
        for lane in worker.lanes:
            self._master.lost(lane.number)
            self._idle.discard(lane.number)
        worker.link.close()
        another = self._hiring.replace(worker.link)
        if another is not None:
            self._enlist([another])
        elif not self._workers and not self._meter.begun:
            raise WorkerError(f"no worker could start: {error}")

    def _alone(self) -> bool:
        """Return whether nobody else gets on with the work, though the run has begun."""
        helping = any(worker.ready and not worker.stalled for worker in self._workers.values())
        return not self._workers or (self._meter.begun and not helping)

    def _give_up_own(self) -> None:
        """Leave to the workers what the master began while there was none."""
        if self._own is not None:
            self._own = None
            self._master.lost(-1)

    def _work_a_batch(self) -> bool:
        """Be a worker oneself for one batch; return whether there was anything to do."""
        if self._own is None:
            self._own = self._master.assign(-1)
            if self._own is None:
                return False
            self._own_batch = self._own.first
        task, began = self._own, time.perf_counter()
        try:
            term = evaluated(self._problem.target, task.theta, self._own_batch)
        except TargetFault as fault:
            self._own = None
            self._master.failed(task.node, fault)
            return True
        self._meter.answered(1, time.perf_counter() - began)
        verdict = self._master.update(-1, task.node, self._own_batch, (term,))
        self._own_batch += 1
        if verdict is Verdict.STOP or self._own_batch == task.stop:
            self._own = None
        return True


def measured_batch_seconds(problem: Problem, count: int = 5) -> float:
    """Return the least of `count` evaluations of one batch at the start, in seconds, in this process."""
    seconds: list[float] = []
    for batch in range(count + 1):
        began = time.perf_counter()
        problem.evaluate(problem.start, batch % problem.target.batches)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def run_parallel(
    problem: Problem,
    hiring: Hiring,
    workers: int,
    predictor: Predictor,
    options: Options = Options(),
    at: Position | None = None,
) -> tuple[Chain, Progress]:
    """Return the chain of `problem` from `at` on, computed by about `workers` workers, and how it went."""
    batch_seconds = measured_batch_seconds(problem)
    split, chooser = options.split, Chooser(None)
    if split == 0:
        split, chooser = None, Chooser(chosen_split(problem.target.batches, batch_seconds, workers))
    policy = Policy(split=split, speculate=options.speculate, workers=workers)
    master = Master(problem, predictor, policy, at)
    meter = Meter(workers + options.master_works, batch_seconds, time.monotonic(), options.told_every)
    return Crew(problem, hiring, master, options, meter, chooser).run()
