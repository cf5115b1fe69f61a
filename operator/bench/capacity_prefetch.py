"""The capacity model's simulated likelihood, serial against prefetching by two processes, in the same run; JSON lines.

The likelihood of all windows is one simulation that cannot be split, so only speculation helps. The predictor is the
closed form. Equal bytes of both chains are a condition, not a figure. Time begins when the workers are ready.
`make bench-capacity-prefetch` runs it.

Before and after each turn the workers evaluate without messages, one alone and then all together: where that does not
go nearly as many times as fast, somebody else uses the cores, and the turn does not count. Without enough turns that
count no figure is reported.
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
from results import BUSY, Result, at_least, emit  # noqa: E402

from shadowserve_capacity.model.fit import Method, Sampling, posterior_target, problems  # noqa: E402
from shadowserve_capacity.model.hardware import NAMES, prior_of  # noqa: E402
from shadowserve_capacity.model.observations import Pool  # noqa: E402
from shadowserve_capacity.model.prediction import ByFormula  # noqa: E402
from shadowserve_capacity.model.synthetic import random_loads, synthetic  # noqa: E402
from shadowserve_capacity.prefetch.chain import run_serial  # noqa: E402
from shadowserve_capacity.prefetch.parallel import Options, run_parallel  # noqa: E402
from shadowserve_capacity.prefetch.problem import Problem  # noqa: E402
from shadowserve_capacity.prefetch.processes import processes  # noqa: E402
from shadowserve_capacity.prefetch.progress import Progress  # noqa: E402

GOAL, GOAL_WORKERS = 1.6, 2
FREE = (0.95, 1.06)
"""What as many workers as there are cores do without messages, by what one alone does: outside, somebody else ran."""


@dataclass(frozen=True)
class Turn:
    """One chain, serial and by prefetching, and how free the cores were just before and just after."""

    serial_seconds: float
    parallel: Progress
    acceptance: float
    free: tuple[float, float]

    @property
    def speedup(self) -> float:
        """Seconds of the serial chain by those of the parallel one."""
        return self.serial_seconds / self.parallel.seconds

    @property
    def counts(self) -> bool:
        """Whether nobody else used the cores, as far as one can tell."""
        return all(FREE[0] <= each <= FREE[1] for each in self.free)


def take_turn(problem: Problem, workers: int, before: float) -> Turn:
    """Run both chains. Raises `RuntimeError` when they differ."""
    start = time.perf_counter()
    serial = run_serial(problem)
    serial_seconds = time.perf_counter() - start
    with processes(problem.target, workers) as hiring:
        options = Options(split=None, together=True)
        parallel, progress = run_parallel(problem, hiring, workers, ByFormula.of(problem.target), options)
    if serial.sha256 != parallel.sha256:
        raise RuntimeError("the chains differ")
    after = real.ceiling(problem, workers) / workers
    return Turn(serial_seconds, progress, serial.acceptance, (before, after))


def turns(problem: Problem, options: argparse.Namespace) -> Iterator[Turn]:
    """Take turns, each with draws of its own, until enough of them count or there were too many; tell each as JSON."""
    counted, free = 0, real.ceiling(problem, options.workers) / options.workers
    for number in range(options.most):
        turn = take_turn(replace(problem, seed=problem.seed + number), options.workers, free)
        free = turn.free[1]
        shares = {"useful": turn.parallel.useful, "wasted": turn.parallel.wasted, "idle": turn.parallel.idle}
        line = {"turn": number, "free": turn.free, "counts": turn.counts, "speedup": round(turn.speedup, 3)}
        print(json.dumps({"bench": "capacity_prefetch", **line, "acceptance": turn.acceptance, **shares}), flush=True)
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
    speedups = [turn.speedup for turn in taken if turn.counts]
    if len(speedups) < options.repeats:
        print(
            f"not reported: before and after only {len(speedups)} of {len(taken)} turns {options.workers} workers "
            f"without messages did {FREE[0]:.0%} to {FREE[1]:.0%} of what free cores allow, {options.repeats} are "
            f"wanted: too busy a machine to tell",
            file=sys.stderr,
        )
        return BUSY
    setting = {"workers": options.workers, "windows": options.windows, "iterations": options.iterations}
    goal = at_least(GOAL) if options.workers == GOAL_WORKERS else None
    result = Result(
        "capacity_prefetch", "simulated likelihood", "speedup over serial", speedups, "ratio", goal,
        "the same chain, serial", {**setting, "cores": os.cpu_count(), "turns": len(taken)},
    )  # fmt: skip
    emit(result)
    return 1 if result.holds is False else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
