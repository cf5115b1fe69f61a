"""The capacity model's simulated likelihood, serial against prefetching by two processes, in the same run; JSON lines.

The likelihood of all windows is one simulation that cannot be split, so only speculation helps. The predictor is the
closed form. Equal bytes of both chains are a condition, not a figure. Time begins when the workers are ready.
`make bench-capacity-prefetch` runs it.

Before and after each turn the workers evaluate without messages, one alone and then all together: the limit, what the
machine allows. Two cores of a virtual machine are often two threads of one, or shared with others, and then do less
than twice the work of one. The speed-up against the serial chain is judged by turns whose limit shows free cores, and
reported when there are enough of them. Its ratio to the turn's own limit is reported from all turns in which the limit
hardly moved.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

_REPOSITORY = Path(__file__).parents[2]
sys.path[:0] = [str(_REPOSITORY / part) for part in ("operator", "dataplane_image/bench")]

import numpy as np  # noqa: E402
import real  # noqa: E402
from results import BUSY, Goal, Result, at_least, emit  # noqa: E402

from shadowserve_capacity.model.fit import Method, Sampling, posterior_target, problems  # noqa: E402
from shadowserve_capacity.model.hardware import NAMES, prior_of  # noqa: E402
from shadowserve_capacity.model.observations import Pool  # noqa: E402
from shadowserve_capacity.model.prediction import ByFormula  # noqa: E402
from shadowserve_capacity.model.synthetic import random_loads, synthetic  # noqa: E402
from shadowserve_capacity.prefetch.chain import Chain, run_serial  # noqa: E402
from shadowserve_capacity.prefetch.parallel import Options, run_parallel  # noqa: E402
from shadowserve_capacity.prefetch.predictors import Naive, Predictor  # noqa: E402
from shadowserve_capacity.prefetch.problem import Problem  # noqa: E402
from shadowserve_capacity.prefetch.processes import processes  # noqa: E402
from shadowserve_capacity.prefetch.progress import Progress  # noqa: E402

GOAL, GOAL_WORKERS = 1.6, 2
FREE = (0.95, 1.06)
"""What as many workers as there are cores do without messages, by what one alone does: outside, somebody else ran."""
STEADY = 0.1
"""How far the limit may move in a turn that is compared with it."""


@dataclass(frozen=True)
class Turn:
    """One chain, serial and by prefetching, and how free the cores were just before and just after."""

    serial_seconds: float
    parallel: Progress
    naive_seconds: float
    acceptance: float
    master_seconds: float
    """Processor time of the master."""
    free: tuple[float, float]

    @property
    def speedup(self) -> float:
        """Seconds of the serial chain by those of the parallel one."""
        return self.serial_seconds / self.parallel.seconds

    @property
    def naive(self) -> float:
        """Seconds of the serial chain by those of naive prefetching."""
        return self.serial_seconds / self.naive_seconds

    @property
    def limit(self) -> float:
        """What the workers did without messages, by what one alone did: the mean of before and after."""
        return self.parallel.workers * sum(self.free) / 2.0

    @property
    def of_the_limit(self) -> float:
        """The speed-up by what the machine allowed in this turn."""
        return self.speedup / self.limit

    @property
    def slower(self) -> float:
        """Seconds of an evaluation in a worker, beside another worker and the master, by seconds of a serial one."""
        return self.parallel.useful * self.parallel.workers / self.speedup

    @property
    def counts(self) -> bool:
        """Whether nobody else used the cores, as far as one can tell."""
        return all(FREE[0] <= each <= FREE[1] for each in self.free)

    @property
    def steady(self) -> bool:
        """Whether the limit was about the same before and after, so that the speed-up can be compared with it."""
        return max(self.free) - min(self.free) <= STEADY * max(self.free)

    def told(self) -> dict[str, object]:
        """Return the turn as JSON has it."""
        share = self.master_seconds / self.parallel.seconds
        return {
            "free": self.free, "counts": self.counts, "steady": self.steady,
            "speedup": round(self.speedup, 3),
            "limit": round(self.limit, 3), "of_the_limit": round(self.of_the_limit, 3), "naive": round(self.naive, 3),
            "evaluations_slower": round(self.slower, 3), "acceptance": self.acceptance,
            "useful": self.parallel.useful, "wasted": self.parallel.wasted, "idle": self.parallel.idle,
            "master_of_a_core": round(share, 3), "load": round(os.getloadavg()[0], 2),
        }  # fmt: skip


def take_turn(problem: Problem, workers: int, before: float) -> Turn:
    """Run the chain serially and by prefetching, naive and by formulas. Raises `RuntimeError` when they differ."""
    start = time.perf_counter()
    serial = run_serial(problem)
    serial_seconds = time.perf_counter() - start
    naive, _ = _prefetched(problem, workers, Naive(), serial)
    parallel, master_seconds = _prefetched(problem, workers, ByFormula.of(problem.target), serial)
    after = real.ceiling(problem, workers) / workers
    return Turn(serial_seconds, parallel, naive.seconds, serial.acceptance, master_seconds, (before, after))


def _prefetched(problem: Problem, workers: int, predictor: Predictor, serial: Chain) -> tuple[Progress, float]:
    """Return how it went and the processor time of the master, from about when the workers were ready."""
    began = 0.0

    def tell(progress: Progress) -> None:
        nonlocal began
        if progress.iteration == 0:
            began = time.process_time()

    options = Options(split=None, together=True, told_every=0.02, tell=tell)
    with processes(problem.target, workers) as hiring:
        chain, progress = run_parallel(problem, hiring, workers, predictor, options)
        busy = time.process_time() - began
    if serial.sha256 != chain.sha256:
        raise RuntimeError("the chains differ")
    return progress, busy


def turns(problem: Problem, options: argparse.Namespace) -> Iterator[Turn]:
    """Take turns, each with draws of its own, until enough of them count or there were too many; tell each as JSON."""
    counted, free = 0, real.ceiling(problem, options.workers) / options.workers
    for number in range(options.most):
        turn = take_turn(replace(problem, seed=problem.seed + number), options.workers, free)
        free = turn.free[1]
        print(json.dumps({"bench": "capacity_prefetch", "turn": number, **turn.told()}), flush=True)
        yield turn
        counted += turn.counts
        if counted == options.repeats:
            return


def main(arguments: Sequence[str]) -> int:
    """Run both, print; return 1 when the goal is missed, 3 when the machine is too busy to tell."""
    parser = argparse.ArgumentParser(prog='make bench-capacity-prefetch ARGS="..."', description=__doc__)
    parser.add_argument("--windows", type=int, default=60)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5, help="turns on free cores that are wanted")
    parser.add_argument("--most", type=int, default=25, help="turns that are taken to have them")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    rng = np.random.default_rng(options.seed)
    truth = prior_of("cpu").logs(0.5 * rng.standard_normal(len(NAMES)))
    observations = synthetic(Pool("cpu", 8), truth, random_loads(options.windows, rng), rng)
    target = posterior_target(observations, options.seed, Method.SIMULATION)
    problem = problems(target, options.seed, Sampling(warm_up=0, steps=options.iterations))[0]
    taken = list(turns(problem, options))
    return report(taken, options)


def report(taken: Sequence[Turn], options: argparse.Namespace) -> int:
    """Print the figures of all turns, and the one that is judged; return the exit code."""
    setting = {"windows": options.windows, "iterations": options.iterations, "turns": len(taken)}

    def figure(metric: str, samples: Sequence[float], rival: str, goal: Goal | None = None) -> Result:
        parameters = {"workers": options.workers, "cores": os.cpu_count(), **setting}
        case = "simulated likelihood"
        result = Result("capacity_prefetch", case, metric, samples, "ratio", goal, rival, parameters)
        emit(result)
        return result

    figure("limit: independent processes over one", [turn.limit for turn in taken], "one process")
    steady = [turn for turn in taken if turn.steady]
    if steady:
        rival = "independent processes, same turn"
        figure("speedup over serial by the limit", [turn.of_the_limit for turn in steady], rival)
        figure("speedup of naive by the limit", [turn.naive / turn.limit for turn in steady], rival)
    counted = [turn for turn in taken if turn.counts]
    if len(counted) < options.repeats:
        print(
            f"not judged: before and after only {len(counted)} of {len(taken)} turns {options.workers} workers "
            f"without messages did {FREE[0]:.0%} to {FREE[1]:.0%} of what free cores allow, {options.repeats} are "
            f"wanted: too busy a machine to tell",
            file=sys.stderr,
        )
        return BUSY
    goal = at_least(GOAL) if options.workers == GOAL_WORKERS else None
    figure("speedup of naive over serial", [turn.naive for turn in counted], "the same chain, serial")
    judged = figure("speedup over serial", [turn.speedup for turn in counted], "the same chain, serial", goal)
    return 1 if judged.holds is False else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
