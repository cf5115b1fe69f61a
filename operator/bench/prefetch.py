"""What prefetching gains: the paper's table in simulated time, and real processes on the cores there are.

Every figure is a JSON line; then a table of all that has a goal. Serial loop, naive prefetching, the paper's method,
ours without and with shared evaluations, and plain data parallelism run on the same chain, and every chain is compared
with the serial one, byte by byte.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"
_REPOSITORY = Path(__file__).parents[2]
sys.path[:0] = [str(_REPOSITORY / part) for part in ("operator", "dataplane_image/bench")]

import real  # noqa: E402
import simulated  # noqa: E402
from results import Goal, Report, Result, at_least, at_most  # noqa: E402

from shadowserve_capacity.prefetch.parallel import measured_batch_seconds  # noqa: E402
from shadowserve_capacity.prefetch.worker import keep_freed_memory  # noqa: E402
from shadowserve_capacity.problems.named import PAPER_SIZES, Named  # noqa: E402

_PUBLISHED = {
    ("burn-in", 16): 6.1, ("burn-in", 32): 9.6, ("burn-in", 64): 16.8,
    ("stationary", 16): 3.9, ("stationary", 32): 4.0, ("stationary", 64): 4.9,
}  # fmt: skip
"""Angelino et al., mixture: whole burn-in; speed between iterations 24,000 and 50,000."""
_STARTS = (23.1, 15.8, 12.4, 8.5, 8.1)
"""Burn-in with 64 workers from five starts, read off their figure; the table has two starts, with a mean of 16.8."""
_SIZES = {"mixture": PAPER_SIZES["mixture"], "lasso": 200_000, "logistic": 200_000}
"""The mixture has the paper's: how long its transient is and what the paper's predictor can tell depend on it."""
_SEED = 1
_TOLD = ("serial", "seconds", "useful", "wasted", "idle", "split", "master")
"""Of every turn of a method on real processes."""


class Table:
    """Collects figures; prints each as a JSON line, and those with a goal as a table at the end."""

    def __init__(self) -> None:
        self._report = Report("prefetch", {})
        self._rows: list[Result] = []

    @property
    def exit_code(self) -> int:
        """0, or 3 when a figure was too noisy to be reported."""
        return self._report.exit_code

    def figure(
        self, case: str, metric: str, seen: float | Sequence[float], goal: Goal | None = None, **parameters: object
    ) -> None:
        """Print one figure: a value, or the samples whose median it is."""
        samples = [seen] if isinstance(seen, int | float) else list(seen)
        result = Result("prefetch", case, metric, samples, "x", goal, "serial loop", parameters)
        if self._report.show(result):
            self._rows.append(result)

    def show(self) -> None:
        """Print the table on stderr."""
        print(f"\n{'case':38} {'figure':34} {'seen':>8} {'goal':>10}  verdict", file=sys.stderr)
        for row in self._rows:
            if row.goal is None:
                continue
            bound = row.goal.bound
            verdict = "kept" if row.holds else f"missed by {abs(row.value - bound) / abs(bound):.0%}"
            red, plain = ("\033[31m", "\033[0m") if not row.holds and sys.stderr.isatty() else ("", "")
            line = f"{row.case:38} {row.metric:34} {row.value:8.3g} {row.goal!s:>10}  {verdict}"
            print(f"{red}{line}{plain}", file=sys.stderr)


def _simulated(table: Table, pool: ProcessPoolExecutor, options: argparse.Namespace) -> None:
    began, sizes = time.monotonic(), {name: options.simulated_size or size for name, size in _SIZES.items()}
    phases = _simulated_phases(table, pool, options, sizes)
    found: list[tuple[simulated.Phase, simulated.Speed]] = []
    whole = sum(len(phase.stretches) for phase in phases)
    for phase, stretch, speeds in simulated.speeds(pool, phases, options.workers, options.methods):
        found += [(phase, speed) for speed in speeds]
        done = len(found) // len(speeds)
        print(f"simulated: {done} of {whole} stretches, {time.monotonic() - began:.0f} s", file=sys.stderr)
        for speed in speeds:
            case = f"{phase.problem}, start {phase.seed}, {phase.name}, {speed.workers} simulated"
            first = stretch.at.iteration + stretch.lengths.warm
            table.figure(case, f"stretch, {speed.method}", speed.serial / speed.seconds, first_iteration=first)
    seen = _together((phase.problem, phase.name, speed) for phase, speed in found)
    for key, value in sorted(seen.items()):
        problem, phase_name, method, workers = key
        case = f"{problem}, {phase_name}, {workers} simulated"
        table.figure(case, f"speed-up, {method}", value, _simulated_goal(*key), size=sizes[problem])
    whole_paper = sizes["mixture"] == PAPER_SIZES["mixture"] and options.burn_in == simulated.BURN_IN
    near = at_most(0.20) if whole_paper else None
    _against_the_paper(table, seen, near)
    burning = [(phase.seed, speed) for phase, speed in found if (phase.problem, phase.name) == ("mixture", "burn-in")]
    _against_its_starts(table, burning, near)


def _simulated_phases(
    table: Table, pool: ProcessPoolExecutor, options: argparse.Namespace, sizes: dict[str, int]
) -> list[simulated.Phase]:
    """Return the phases that are asked for; the mixture's burn-in is of several starts."""
    few, many = (simulated.Lengths.of(options.workers, least) for least in (60, options.measured))
    names = [Named(name, size, _SEED) for name, size in sizes.items() if name in options.problems]
    more = range(1, options.starts if "mixture" in options.problems else 1)
    starts = [*names, *(Named("mixture", sizes["mixture"], _SEED + start) for start in more)]
    asked_burning, asked_settled = "burn-in" in options.phases, "stationary" in options.phases
    burning = [pool.submit(simulated.burn_in, named, options.burn_in, few) for named in starts if asked_burning]
    settling = [pool.submit(simulated.settled, named, many) for named in names if asked_settled]
    phases = []
    for named, each in zip(starts, burning, strict=False):
        length, phase = each.result()
        phases.append(phase)
        table.figure(f"{named.name}, start {named.seed}", "transient", length, unit="iterations", size=named.size)
    return phases + [each.result() for each in settling]


def _together(parts: Iterable[tuple[str, str, simulated.Speed]]) -> dict[tuple[str, str, str, int], float]:
    """Return the speed-up over all stretches by problem, phase, method and workers."""
    seconds: dict[tuple[str, str, str, int], tuple[float, float]] = {}
    for problem, phase, speed in parts:
        key = problem, phase, speed.method, speed.workers
        serial, parallel = seconds.get(key, (0.0, 0.0))
        seconds[key] = serial + speed.serial, parallel + speed.seconds
    return {key: serial / parallel for key, (serial, parallel) in seconds.items()}


def _against_its_starts(table: Table, burning: Sequence[tuple[int, simulated.Speed]], near: Goal | None) -> None:
    """Tell the published predictor's burn-in with 64 workers of each start, beside the five that were published."""
    seeds = sorted({seed for seed, _ in burning})
    each = [
        _together(("", "", speed) for seed, speed in burning if seed == wanted).get(("", "", "paper", 64))
        for wanted in seeds
    ]
    speeds = [speed for speed in each if speed is not None]
    if not speeds:
        return
    case = "mixture, burn-in, 64 simulated"
    for seed, speed in zip(seeds, speeds, strict=True):
        table.figure(case, f"its predictor, start {seed}", speed, published=_STARTS)
    ratio = statistics.harmonic_mean(speeds) / statistics.harmonic_mean(_STARTS)
    table.figure(case, "its predictor, off the mean of its five starts", abs(ratio - 1.0), near)


def _simulated_goal(problem: str, phase: str, method: str, workers: int) -> Goal | None:
    if method not in ("surrogate", "hybrid") or workers != 16:
        return None
    if phase == "burn-in":
        return at_least(0.75 * 16) if problem == "mixture" else None
    return at_least(8.0) if problem != "mixture" else None


def _against_the_paper(table: Table, seen: dict[tuple[str, str, str, int], float], near: Goal | None) -> None:
    for (phase, workers), published in _PUBLISHED.items():
        paper = seen.get(("mixture", phase, "paper", workers))
        if paper is None:
            continue
        case = f"mixture, {phase}, {workers} simulated"
        table.figure(case, "its predictor, off the published", abs(paper / published - 1.0), near)
        for method in ("surrogate", "hybrid"):
            ours = seen.get(("mixture", phase, method, workers))
            if ours is None:
                continue
            goal = at_least(2.0) if phase == "stationary" and workers in (16, 64) else None
            table.figure(case, f"{method} / published", ours / published, goal)
            table.figure(case, f"{method} / its predictor, simulated", ours / paper, goal)


def _real(table: Table, options: argparse.Namespace) -> None:
    named = Named("mixture", options.size, _SEED, options.batches)
    workers = options.processes or real.cores()
    phases = real.phases(named, options.iterations)
    limit = real.ceiling(phases[0].problem, workers)
    case = f"mixture, N = {options.size}, {workers} processes"
    table.figure(case, "ceiling: independent processes", limit, cores=real.cores())
    for phase in phases:
        rounds = [real.speeds(phase, workers) for _ in range(options.rounds)]
        for turns in zip(*rounds, strict=True):
            values = [speed.serial / speed.seconds for speed in turns]
            parameters = {
                "iterations": options.iterations, "batches": options.batches, "cores": real.cores(),
                **{name: [getattr(speed, name) for speed in turns] for name in _TOLD},
            }  # fmt: skip
            where, method = f"{case}, {phase.name}", turns[0].method
            table.figure(where, f"speed-up, {method}", values, _real_goal(workers, phase.name, method), **parameters)
            table.figure(where, f"of the ceiling, {method}", [value / limit for value in values])


def _master(table: Table, rounds: int) -> None:
    """Tell what the master costs two workers with batches of two milliseconds."""
    phase = real.master_phase(_SEED)
    seconds = measured_batch_seconds(phase.problem, 20)
    methods = [each for each in real.METHODS if each.name in ("paper", "partial", "hybrid")]
    for turns in zip(*(real.speeds(phase, 2, methods) for _ in range(rounds)), strict=True):
        case = f"mixture, burn-in, 2 processes, batches of {seconds * 1e3:.1f} ms"
        shares = [speed.master for speed in turns]
        own = [speed.master * speed.seconds / phase.problem.iterations for speed in turns]
        said = {"batch_seconds": seconds, "seconds_an_iteration": own, "idle": [speed.idle for speed in turns]}
        table.figure(case, f"master's share of a core, {turns[0].method}", shares, at_most(0.05), **said)


def _real_goal(workers: int, phase: str, method: str) -> Goal | None:
    if workers != 16 or method != "hybrid":
        return None
    return at_least(12.0) if phase == "burn-in" else at_least(8.0)


def main(arguments: Sequence[str]) -> int:
    """Run; returns the exit code: 0, goals kept or not, 3 when a figure was too noisy to be reported."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("simulated", "real", "master"), help="one part of it")
    parser.add_argument("--workers", type=int, nargs="+", default=[16, 32, 64], help="simulated workers")
    parser.add_argument(
        "--methods", nargs="+", default=[each.name for each in simulated.METHODS], help="those that are simulated"
    )
    parser.add_argument("--problems", nargs="+", default=list(_SIZES), help="those that are simulated")
    parser.add_argument("--phases", nargs="+", default=["burn-in", "stationary"], help="those that are simulated")
    parser.add_argument("--simulated-size", type=int, help=f"data in simulated runs (default: {_SIZES})")
    parser.add_argument("--burn-in", type=int, default=simulated.BURN_IN, help="iterations of burn-in (the paper's)")
    parser.add_argument("--starts", type=int, default=1, help="chains whose burn-in is averaged (the paper: 2)")
    parser.add_argument("--measured", type=int, default=100, help="stationary iterations that are measured, at least")
    parser.add_argument("--size", type=int, default=PAPER_SIZES["mixture"], help="data in real runs")
    parser.add_argument("--batches", type=int, default=32, help="batches in real runs")
    parser.add_argument("--iterations", type=int, default=1000, help="iterations of each real run")
    parser.add_argument("--rounds", type=int, default=4, help="turns of the serial loop and every method in real runs")
    parser.add_argument("--processes", type=int, default=0, help="worker processes (default: the cores)")
    options = parser.parse_args(arguments)
    keep_freed_memory()  # the serial loop is to be the best there is
    table = Table()
    if options.only in (None, "simulated"):
        with ProcessPoolExecutor(real.cores()) as pool:
            _simulated(table, pool, options)
    if options.only in (None, "real"):
        _real(table, options)
    if options.only in (None, "master"):
        _master(table, options.rounds)
    table.show()
    return table.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
