"""Real worker processes, killed, stopped and overtaken: the bytes are the serial run's."""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from select import select

import numpy as np
import pytest

from shadowserve_capacity.errors import CalledOff, TargetFault, WorkerError
from shadowserve_capacity.prefetch.chain import Position, run_serial
from shadowserve_capacity.prefetch.choice import Chooser
from shadowserve_capacity.prefetch.links import Link
from shadowserve_capacity.prefetch.local_worker import READY
from shadowserve_capacity.prefetch.master import Master
from shadowserve_capacity.prefetch.parallel import Options, chosen_split, run_parallel
from shadowserve_capacity.prefetch.policy import Policy
from shadowserve_capacity.prefetch.predictors import Naive, PartialData, Predictor
from shadowserve_capacity.prefetch.problem import Problem, State
from shadowserve_capacity.prefetch.processes import Processes, ProcessLink, processes
from shadowserve_capacity.prefetch.progress import Meter, Progress
from shadowserve_capacity.prefetch.surrogate import Surrogate
from shadowserve_capacity.prefetch.wire import Answer, CallOff, Failure, Message, Order, decode, encode
from shadowserve_capacity.problems.named import Named

SMALL = Named("logistic", 2000, 3, 20)


@dataclass(frozen=True)
class Slow:
    """Takes a few milliseconds a batch, so that there is time to interfere."""

    scale: float = 1.0
    batches: int = 6

    def log_prior(self, theta: State) -> float:
        return 0.0

    def log_likelihood(self, theta: State, batch: int) -> float:
        end = time.thread_time() + 0.002  # of a processor: who gets little of one has as much time to interfere
        while time.thread_time() < end:
            pass
        return -0.5 * self.scale * float((theta * theta).sum()) / (batch + 1)


@dataclass(frozen=True)
class Broken(Slow):
    """Has no value anywhere but at the start, in one batch."""

    def log_likelihood(self, theta: State, batch: int) -> float:
        return float("nan") if batch == 5 else -1.0


@dataclass(frozen=True)
class Endless(Slow):
    """One batch that takes for ever beyond the unit ball, unless it is called off."""

    batches: int = 1

    def log_likelihood(self, theta: State, batch: int) -> float:
        return -0.5 * float((theta * theta).sum())

    def log_likelihood_unless(self, theta: State, batch: int, called_off: Callable[[], bool]) -> float:
        while float((theta * theta).sum()) > 1.0:
            if called_off():
                raise CalledOff("it does not end")
        return self.log_likelihood(theta, batch)


@dataclass
class Troubled:
    """Hires processes and does something to them as the run goes on."""

    processes: Processes
    links: list[ProcessLink]

    def hired(self) -> list[Link]:
        links = self.processes.hired()
        self.links += [link for link in links if isinstance(link, ProcessLink)]
        return links

    def replace(self, link: Link) -> Link | None:
        another = self.processes.replace(link)
        if isinstance(another, ProcessLink):
            self.links.append(another)
        return another

    def fileno(self) -> int | None:
        return None

    def close(self) -> None:
        self.processes.close()


def slow_problem(iterations: int) -> Problem:
    return replace(SMALL.problem(iterations), target=Slow(), start=np.ones(4))


@pytest.mark.parametrize("split", [None, 0, 3])
@pytest.mark.parametrize("predictor", [lambda _: Naive(), Surrogate])
def test_processes_give_the_serial_bytes(split: int | None, predictor: Callable[[Problem], Predictor]) -> None:
    problem = SMALL.problem(80)
    with processes(problem.target, 3) as hiring:
        chain, progress = run_parallel(problem, hiring, 3, predictor(problem), Options(split=split))
    assert chain.sha256 == run_serial(problem).sha256
    assert progress.iteration == 80
    assert progress.acceptance == pytest.approx(chain.acceptance)
    assert progress.useful + progress.wasted + progress.idle == pytest.approx(1.0)


def interfere(signals: list[int], troubled: Troubled) -> Callable[[Progress], None]:
    killed: set[int] = set()

    def tell(progress: Progress) -> None:
        if signals and troubled.links and progress.iteration and (victim := troubled.links[-1].pid) not in killed:
            number = signals.pop()
            os.kill(victim, number)
            if number == signal.SIGKILL:
                killed.add(victim)

    return tell


@pytest.mark.parametrize("signals", [[signal.SIGKILL] * 3, [signal.SIGSTOP], [signal.SIGKILL, signal.SIGSTOP]])
def test_killed_and_stopped_workers_cost_time_only(signals: list[int]) -> None:
    problem = slow_problem(40)
    with processes(problem.target, 2) as hiring:
        troubled = Troubled(hiring, [])
        options = Options(stall_seconds=0.05, told_every=0.0, tell=interfere(signals, troubled))
        chain, _ = run_parallel(problem, troubled, 2, PartialData(), options)
    assert not signals, "there was time for all the trouble"
    assert chain.sha256 == run_serial(problem).sha256


@pytest.mark.parametrize("workers", [1, 2])
def test_while_all_workers_are_stopped_the_master_does_it_all(workers: int) -> None:
    problem = slow_problem(15)
    with processes(problem.target, workers) as hiring:
        troubled = Troubled(hiring, [])
        stopped: set[int] = set()

        def stop_all(progress: Progress) -> None:
            for link in troubled.links:
                if progress.iteration and link.pid not in stopped:
                    os.kill(link.pid, signal.SIGSTOP)
                    stopped.add(link.pid)

        def go_on(_: object, reached: Position) -> None:
            for pid in stopped if reached.iteration == problem.iterations else ():
                os.kill(pid, signal.SIGCONT)  # whoever does not end at the end is waited for, for seconds

        options = Options(stall_seconds=0.05, told_every=0.0, tell=stop_all, keep=go_on)
        chain, _ = run_parallel(problem, troubled, workers, PartialData(), options)
    assert len(stopped) == workers
    assert chain.sha256 == run_serial(problem).sha256


def test_without_any_worker_left_the_master_does_it_all() -> None:
    problem = slow_problem(100)
    with processes(problem.target, 1) as hiring:
        troubled = Troubled(hiring, [])
        options = Options(told_every=0.0, tell=interfere([signal.SIGKILL] * 4, troubled))
        chain, _ = run_parallel(problem, troubled, 1, PartialData(), options)
    assert len(troubled.links) == 4, "the first, and three that took its place"
    assert chain.sha256 == run_serial(problem).sha256


def next_message(link: Link) -> bytes:
    while not (data := link.received()):
        select([link.fileno()], [], [], 60.0)
    return data


def test_an_evaluation_that_nobody_wants_any_more_ends_in_the_middle() -> None:
    with processes(Endless(), 1) as hiring:
        (link,) = hiring.hired()
        assert next_message(link) == READY
        link.order(Order(0, 7, 1, 0, 1, 1, np.full(4, 2.0)))
        link.call_off(CallOff(0, 7))
        answer = decode(next_message(link))
        assert isinstance(answer, Answer)
        assert (answer.serial, answer.last, answer.terms) == (7, True, ())
        link.order(Order(0, 8, 2, 0, 1, 1, np.zeros(4)))
        following = decode(next_message(link))
        link.close()
    assert isinstance(following, Answer)
    assert following.terms == (0.0,)


def test_time_for_what_was_called_off_is_wasted_and_not_useful() -> None:
    problem = SMALL.problem(1)
    master = Master(problem, PartialData(), Policy(workers=1))
    meter = Meter(1, 1.0, 0.0, 1.0)
    meter.begin(0.0)
    task = master.assign(0)
    assert task is not None
    terms = [problem.evaluate(task.theta, batch) for batch in range(task.stop)]
    master.update(0, task.node, 0, terms)
    meter.answered(len(terms), 4.0)
    meter.answered(0, 4.0)
    progress = meter.progress(10.0, master)
    assert progress.useful <= 0.4
    assert progress.useful + progress.wasted == pytest.approx(0.8)


def test_the_master_works_beside_its_workers() -> None:
    problem = slow_problem(20)
    with processes(problem.target, 1) as hiring:
        chain, progress = run_parallel(problem, hiring, 1, PartialData(), Options(master_works=True))
    assert progress.workers == 2
    assert chain.sha256 == run_serial(problem).sha256


def test_a_broken_target_is_named() -> None:
    problem = replace(slow_problem(20), target=Broken())
    with processes(problem.target, 2) as hiring, pytest.raises(TargetFault, match="batch 5 is nan"):
        run_parallel(problem, hiring, 2, PartialData())


def test_a_target_that_cannot_be_sent_is_refused_in_words() -> None:
    class Local(Slow):
        pass

    with pytest.raises(WorkerError, match="define its class in a module"), processes(Local(), 1):
        pass


def test_arrays_are_shared_and_not_copied() -> None:
    problem = Named("mixture", 200_000, 1).problem(1)
    with processes(problem.target, 1) as hiring:
        (link,) = hiring.hired()
        assert isinstance(link, ProcessLink)
        deadline = time.monotonic() + 60
        while not link.received():
            assert time.monotonic() < deadline
            threading.Event().wait(0.01)
        with open(f"/proc/{link.pid}/smaps_rollup") as file:
            private = sum(int(line.split()[1]) for line in file if line.startswith("Private_Dirty"))
        link.close()
    assert private < 100_000, "KiB, less than the interpreter and a copy of 12.8 MB of data would be"


def test_splitting_pays_only_if_shares_outlast_their_messages() -> None:
    assert chosen_split(100, 0.010, 16) == 1
    assert chosen_split(100, 0.0005, 16) == 5
    assert chosen_split(32, 0.002, 2) == 2
    assert chosen_split(100, 0.00001, 16) is None, "an evaluation takes a millisecond"
    assert chosen_split(1, 10.0, 16) is None, "there is nothing to share"
    assert chosen_split(100, 0.010, 1) is None


@pytest.mark.parametrize(
    "message",
    [
        Answer(3, 4, 5, 6, True, 0.5, (1.0, -2.5)),
        Answer(0, 1, 2, 3, False, 0.0, ()),
        Failure(1, 2, 3, "batch 4 is nan – no"),
        CallOff(1, 2**40),
    ],
)
def test_messages_survive_the_wire(message: Message) -> None:
    assert decode(encode(message)) == message


def test_orders_survive_the_wire() -> None:
    order = Order(1, 2, 3, 4, 5, 6, np.array([1.5, -0.0]))
    read = decode(encode(order))
    assert isinstance(read, Order)
    assert read.theta.tobytes() == order.theta.tobytes()
    assert (read.lane, read.serial, read.node, read.first, read.stop, read.report) == (1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize("data", [b"", b"\x07", b"\x01short", encode(CallOff(1, 2))[:-1]])
def test_nonsense_is_refused(data: bytes) -> None:
    with pytest.raises(WorkerError, match="no sense"):
        decode(data)


def rate(way: int | None) -> float:
    return 0.001 if way is None else 0.002


def test_the_faster_way_is_kept_and_the_other_tried_again() -> None:
    chooser, now, ways = Chooser(4), 0.0, []
    for iteration in range(3000):
        way = chooser.choose(iteration, now)
        ways.append(way)
        now += rate(way) if iteration < 1500 else rate(None if way else 4)
    assert ways[0] is None
    assert 4 in ways[:130], "both are tried"
    assert ways[300:700] == [None] * 400
    assert ways[-1000:].count(4) > 800, "shares became the faster way"


def test_where_shares_do_not_pay_they_are_never_tried() -> None:
    chooser = Chooser(None)
    assert {chooser.choose(iteration, float(iteration)) for iteration in range(500)} == {None}


def test_changing_the_way_in_the_middle_keeps_the_bytes() -> None:
    problem = SMALL.problem(60)
    master = Master(problem, PartialData(), Policy(workers=4))
    turn = 0
    while not master.done:
        turn += 1
        master.share((None, 1, 3)[turn // 5 % 3])
        for worker in range(4):
            task = master.assign(worker)
            if task is not None:
                last = min(task.stop, task.first + 2)
                terms = [problem.evaluate(task.theta, batch) for batch in range(task.first, last)]
                master.update(worker, task.node, task.first, terms)
    assert master.chain.sha256 == run_serial(problem).sha256
