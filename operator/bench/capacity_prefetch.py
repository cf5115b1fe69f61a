"""The capacity model's simulated likelihood, serial against prefetching by two processes, in the same run; JSON lines.

The likelihood of all windows is one simulation that cannot be split, so only speculation helps. The predictor is the
closed form. Equal bytes of both chains are a condition, not a figure. Time begins when the workers are ready.
`make bench-capacity-prefetch` runs it.

Before each turn the workers evaluate without messages, one alone and then all together: where that does not go nearly
as many times as fast, somebody else uses the cores, and no figure is reported.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

_REPOSITORY = Path(__file__).parents[2]
sys.path[:0] = [str(_REPOSITORY / part) for part in ("operator", "dataplane_image/bench")]

import numpy as np  # noqa: E402
import real  # noqa: E402
from results import BUSY  # noqa: E402

from shadowserve_capacity.model.fit import Method, Sampling, posterior_target, problems  # noqa: E402
from shadowserve_capacity.model.hardware import NAMES, prior_of  # noqa: E402
from shadowserve_capacity.model.observations import Pool  # noqa: E402
from shadowserve_capacity.model.prediction import ByFormula  # noqa: E402
from shadowserve_capacity.model.synthetic import random_loads, synthetic  # noqa: E402
from shadowserve_capacity.prefetch.chain import run_serial  # noqa: E402
from shadowserve_capacity.prefetch.parallel import Options, run_parallel  # noqa: E402
from shadowserve_capacity.prefetch.processes import processes  # noqa: E402

GOAL = 1.6
QUIET = 0.95
"""Of the cores, what independent workers must be able to use."""


def main(arguments: Sequence[str]) -> int:
    """Run both, print; return 1 when the goal is missed, 2 when the chains differ, 3 when the machine is too busy."""
    parser = argparse.ArgumentParser(prog='make bench-capacity-prefetch ARGS="..."', description=__doc__)
    parser.add_argument("--windows", type=int, default=60)
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    rng = np.random.default_rng(options.seed)
    truth = prior_of("cpu").logs(0.5 * rng.standard_normal(len(NAMES)))
    observations = synthetic(Pool("cpu", 8), truth, random_loads(options.windows, rng), rng)
    target = posterior_target(observations, options.seed, Method.SIMULATION)
    problem = problems(target, options.seed, Sampling(warm_up=0, steps=options.iterations))[0]
    speedups, free = [], []
    for turn in range(options.repeats):
        free.append(real.ceiling(problem, options.workers) / options.workers)
        turned = replace(problem, seed=problem.seed + turn)
        start = time.perf_counter()
        serial = run_serial(turned)
        serial_seconds = time.perf_counter() - start
        with processes(target, options.workers) as hiring:
            options_of_run = Options(split=None, together=True)
            parallel, progress = run_parallel(turned, hiring, options.workers, ByFormula.of(target), options_of_run)
        if serial.sha256 != parallel.sha256:
            print("the chains differ", file=sys.stderr)
            return 2
        speedups.append(serial_seconds / progress.seconds)
        figures = {"serial_seconds": round(serial_seconds, 3), "parallel_seconds": round(progress.seconds, 3)}
        shares = {"useful": progress.useful, "wasted": progress.wasted, "idle": progress.idle}
        line = {"speedup": round(speedups[-1], 3), "acceptance": serial.acceptance, **shares}
        print(json.dumps({"bench": "capacity_prefetch", "turn": turn, "free": free[-1], **figures, **line}), flush=True)
    if min(free) < QUIET:
        print(
            f"not reported: {options.workers} workers without messages do {min(free):.0%} of what they would on free "
            f"cores, less than {QUIET:.0%}: too busy a machine to tell (the speed-ups seen were "
            f"{', '.join(f'{each:.2f}' for each in speedups)})",
            file=sys.stderr,
        )
        return BUSY
    value = float(np.median(speedups))
    line = {"bench": "capacity_prefetch", "metric": "speedup over serial", "value": round(value, 3), "unit": "ratio"}
    verdict = {"goal": f">= {GOAL}", "holds": value >= GOAL, "rival": "the same chain, serial"}
    setting = {"workers": options.workers, "windows": options.windows, "iterations": options.iterations}
    load = round(os.getloadavg()[0], 2)
    print(json.dumps({**line, **verdict, **setting, "cores": os.cpu_count(), "load": load}), flush=True)
    return 0 if value >= GOAL else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
