"""The paper's table in simulated time: its predictor and scheduler, and ours beside it, with the paper's costs.

Targets are really evaluated, at a size that a laptop can do; time is 17.5 ms a batch of 100 (1.75 s an evaluation, as
in the paper) and 0.2 ms a message. Every stretch's chain is compared with the serial one.

Burn-in is the paper's, the first 9,575 iterations; stretches are evenly spread over them. A predictor comes to each
with what the chain has taught it by then.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace

from phases import Lesson, Walk, stationary, transient, walk

from shadowserve_capacity.prefetch.chain import Position, serial_run
from shadowserve_capacity.prefetch.policy import Policy
from shadowserve_capacity.prefetch.predictors import Naive, PaperPartialData, PartialData, Predictor
from shadowserve_capacity.prefetch.problem import Problem, State, Target
from shadowserve_capacity.prefetch.simulated import Cluster, run_simulated
from shadowserve_capacity.prefetch.surrogate import Surrogate
from shadowserve_capacity.problems.named import Named

BATCH_S = 0.0175
MESSAGE_S = 0.0002
BURN_IN = 9575
_SEGMENTS = 6
_SETTLE = 800
_HISTORY = 3000
_SETTLED_HISTORY = 1500


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
class Lengths:
    """Iterations before those that are measured, these, and those after them, which are looked ahead to.

    As many as there are workers may be decided in one instant, so a figure needs several times as many.
    """

    warm: int
    measured: int
    past: int

    @classmethod
    def of(cls, workers: Sequence[int], least: int) -> "Lengths":
        """Return lengths for all of these worker counts, with at least `least` iterations measured."""
        most = max(workers)
        return cls(max(30, 2 * most), max(least, 4 * most), max(40, 2 * most))

    @property
    def whole(self) -> int:
        """All of them."""
        return self.warm + self.measured + self.past


@dataclass(frozen=True)
class Stretch:
    """Some iterations of a chain: what the predictor knows before, where they begin, how many are measured."""

    problem: Problem
    at: Position
    lesson: Lesson
    lengths: Lengths


@dataclass(frozen=True)
class Speed:
    """Seconds of one method with so many workers on one stretch, simulated, against the serial ones."""

    method: str
    workers: int
    serial: float
    seconds: float


@dataclass(frozen=True)
class Phase:
    """Stretches of one problem that make one figure."""

    problem: str
    seed: int
    name: str
    stretches: Sequence[Stretch]


@dataclass(frozen=True)
class Remembered:
    """A target that evaluates nothing twice: methods visit the same candidates, and simulated time pays for each."""

    inner: Target
    known: dict[tuple[bytes, int], float] = field(default_factory=dict)

    @property
    def batches(self) -> int:
        """Return the target's batches."""
        return self.inner.batches

    def log_prior(self, theta: State) -> float:
        """Return the target's."""
        return self.inner.log_prior(theta)

    def log_likelihood(self, theta: State, batch: int) -> float:
        """Return the target's, as it was the first time."""
        key = theta.tobytes(), batch
        term = self.known.get(key)
        if term is None:
            term = self.known[key] = self.inner.log_likelihood(theta, batch)
        return term

    def aligned(self, theta: State, like: State) -> State:
        """Return what the target says, if it says anything."""
        known: Callable[[State, State], State] | None = getattr(self.inner, "aligned", None)
        return theta if known is None else known(theta, like)


def simulate(stretch: Stretch, workers: Sequence[int], methods: Sequence[str]) -> list[Speed]:
    """Return the speed of each of these methods and worker counts; asserts that each chain is the serial one."""
    lengths = stretch.lengths
    end = stretch.at.iteration + lengths.whole
    problem = replace(stretch.problem, target=Remembered(stretch.problem.target), iterations=end)
    serial = serial_run(problem, stretch.at)[0].sha256
    seconds = lengths.measured * problem.target.batches * BATCH_S
    found = []
    for method in (each for each in METHODS if each.name in methods):
        for count in workers:
            predictor = stretch.lesson.teach(method.predictor(problem))
            cluster = Cluster(count, BATCH_S, MESSAGE_S)
            run = run_simulated(problem, cluster, predictor, method.policy(count), stretch.at)
            assert run.chain.sha256 == serial, f"{method.name}, {count} workers: not the serial chain"
            taken = float(run.times[lengths.warm + lengths.measured - 1] - run.times[lengths.warm - 1])
            found.append(Speed(method.name, count, seconds, taken))
    return found


def burn_in(named: Named, length: int, lengths: Lengths) -> tuple[int, Phase]:
    """Return how long the transient is, and stretches evenly spread over the first `length` iterations."""
    problem = named.problem(length + lengths.whole)
    chain, level = walk(problem), walk(replace(stationary(named, 300), iterations=300))
    starts = [length * (2 * index + 1) // (2 * _SEGMENTS) for index in range(_SEGMENTS)]
    stretches = [_stretch(problem, chain, start, _HISTORY, lengths) for start in starts]
    return transient(chain, level), Phase(named.name, named.seed, "burn-in", stretches)


def settled(named: Named, lengths: Lengths) -> Phase:
    """Return a stretch of the stationary chain, after a history that an ordinary run would have too."""
    problem = replace(stationary(named, _SETTLE), iterations=_SETTLED_HISTORY)
    stretch = _stretch(problem, walk(problem), _SETTLED_HISTORY, _SETTLED_HISTORY, lengths)
    return Phase(named.name, named.seed, "stationary", [stretch])


def _stretch(problem: Problem, chain: Walk, start: int, history: int, lengths: Lengths) -> Stretch:
    return Stretch(problem, chain.positions[start], chain.lesson(start, history), lengths)


def speeds(
    pool: ProcessPoolExecutor, phases: Sequence[Phase], workers: Sequence[int], methods: Sequence[str]
) -> Iterator[tuple[Phase, Stretch, list[Speed]]]:
    """Yield all speeds of one stretch after another, as they come out."""
    asked = {
        pool.submit(simulate, stretch, workers, methods): (phase, stretch)
        for phase in phases
        for stretch in phase.stretches
    }
    for done in as_completed(asked):
        yield *asked[done], done.result()
