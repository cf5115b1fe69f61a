"""The paper's table in simulated time: its predictor and scheduler, and ours beside it, with the paper's costs.

Targets are really evaluated, at a size that a laptop can do; time is 17.5 ms a batch of 100 (1.75 s an evaluation, as
in the paper) and 0.2 ms a message. Every stretch's chain is compared with the serial one.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from phases import Lesson, lesson, positions, stationary, transient

from shadowserve_capacity.prefetch.chain import Position, serial_run
from shadowserve_capacity.prefetch.master import Policy
from shadowserve_capacity.prefetch.predictors import Naive, PaperPartialData, PartialData, Predictor
from shadowserve_capacity.prefetch.problem import Problem
from shadowserve_capacity.prefetch.simulated import Cluster, run_simulated
from shadowserve_capacity.prefetch.surrogate import Surrogate
from shadowserve_capacity.problems.named import Named

BATCH_S = 0.0175
MESSAGE_S = 0.0002
_WARM, _MEASURED, _PAST = 30, 60, 40
_SEGMENTS = 8
_HISTORY = 300
_SETTLE = 800
_LONG_HISTORY = 1500


@dataclass(frozen=True)
class Method:
    """A way to run a chain in parallel, by name."""

    name: str
    predictor: Callable[[Problem], Predictor]
    policy: Callable[[int], Policy]


def _naive(problem: Problem) -> Predictor:
    return Naive()


def _paper(problem: Problem) -> Predictor:
    return PaperPartialData()


def _partial(problem: Problem) -> Predictor:
    return PartialData()


def _alone(workers: int) -> Policy:
    return Policy(workers=workers)


def _published(workers: int) -> Policy:
    return Policy(workers=workers, descent=1, finish_dead=True)


def _shared(workers: int) -> Policy:
    return Policy(workers=workers, split=Cluster(workers, BATCH_S, MESSAGE_S).split)


def _data_parallel(workers: int) -> Policy:
    return Policy(workers=workers, split=1, speculate=False)


METHODS = (
    Method("naive", _naive, _alone),
    Method("paper", _paper, _published),
    Method("partial", _partial, _alone),
    Method("surrogate", Surrogate, _alone),
    Method("hybrid", Surrogate, _shared),
    Method("data-parallel", _naive, _data_parallel),
)


@dataclass(frozen=True)
class Stretch:
    """Some iterations of a chain: what the predictor knows before, where they begin, how many are measured."""

    problem: Problem
    at: Position
    lesson: Lesson
    measured: int


@dataclass(frozen=True)
class Speed:
    """Simulated seconds of one method on one stretch, against the serial ones."""

    problem: str
    phase: str
    method: str
    workers: int
    serial: float
    seconds: float


def simulate(stretch: Stretch, method: Method, workers: int) -> tuple[float, float]:
    """Return serial and simulated seconds of the measured iterations; asserts that the chain is the serial one."""
    end = stretch.at.iteration + _WARM + stretch.measured + _PAST
    problem = replace(stretch.problem, iterations=end)
    predictor = stretch.lesson.teach(method.predictor(problem))
    cluster = Cluster(workers, BATCH_S, MESSAGE_S)
    run = run_simulated(problem, cluster, predictor, method.policy(workers), stretch.at)
    assert run.chain.sha256 == serial_run(problem, stretch.at)[0].sha256, "not the serial chain"
    seconds = float(run.times[_WARM + stretch.measured - 1] - run.times[_WARM - 1])
    return stretch.measured * problem.target.batches * BATCH_S, seconds


def burn_in(named: Named, longest: int) -> tuple[int, list[Stretch]]:
    """Return how long the transient is, and stretches evenly spread over twice that: the paper's burn-in.

    The paper drops the first half of a chain before it asks whether two chains agree, so that its burn-in is at
    least twice the transient.
    """
    problem = named.problem(longest)
    chain, _ = serial_run(problem)
    level, _ = serial_run(replace(stationary(named, 300), iterations=300))
    length = transient(chain, level)
    where = positions(problem, chain)
    last = min(2 * length, longest - _WARM - _MEASURED - _PAST)
    stretches = []
    for index in range(_SEGMENTS):
        start = last * index // _SEGMENTS
        taught, at = lesson(problem, where[max(0, start - _HISTORY)], start)
        stretches.append(Stretch(problem, at, taught, _MEASURED))
    return length, stretches


def settled(named: Named, measured: int) -> Stretch:
    """Return a stretch of the stationary chain, after a history that an ordinary run would have too."""
    problem = replace(stationary(named, _SETTLE), iterations=_LONG_HISTORY)
    taught, at = lesson(problem, Position.first(problem), _LONG_HISTORY)
    return Stretch(problem, at, taught, measured)


def speeds(
    pool: ProcessPoolExecutor, phases: Sequence[tuple[str, str, Sequence[Stretch]]], workers: Sequence[int]
) -> Iterator[Speed]:
    """Yield the speed of every method, worker count and phase, as they come out."""
    asked = []
    for problem, phase, stretches in phases:
        for method in METHODS:
            for count in workers:
                parts = [pool.submit(partial(simulate, stretch, method, count)) for stretch in stretches]
                asked.append((problem, phase, method.name, count, parts))
    for problem, phase, name, count, parts in asked:
        done = [part.result() for part in parts]
        yield Speed(problem, phase, name, count, sum(one for one, _ in done), sum(two for _, two in done))
