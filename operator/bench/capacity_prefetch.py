"""The capacity model's simulated likelihood, serial against prefetching by two processes, in the same run; JSON lines.

The likelihood of all windows is one simulation that cannot be split, so only speculation helps. The predictor is the
closed form. Equal bytes of both chains are a condition, not a figure. `make bench-capacity-prefetch` runs it.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from shadowserve_capacity.model.fit import Method, Sampling, posterior_target, problems
from shadowserve_capacity.model.hardware import NAMES, prior_of
from shadowserve_capacity.model.observations import Pool
from shadowserve_capacity.model.prediction import ByFormula
from shadowserve_capacity.model.synthetic import random_loads, synthetic
from shadowserve_capacity.prefetch.chain import run_serial
from shadowserve_capacity.prefetch.parallel import Options, run_parallel
from shadowserve_capacity.prefetch.processes import processes

GOAL = 1.6


def main(arguments: Sequence[str]) -> int:
    """Run both, print, return 1 when the goal is missed and 2 when the chains differ."""
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
    speedups = []
    for turn in range(options.repeats):
        turned = replace(problem, seed=problem.seed + turn)
        start = time.perf_counter()
        serial = run_serial(turned)
        serial_seconds = time.perf_counter() - start
        with processes(target, options.workers) as hiring:
            start = time.perf_counter()
            parallel, progress = run_parallel(
                turned, hiring, options.workers, ByFormula.of(target), Options(split=None)
            )
            parallel_seconds = time.perf_counter() - start
        if serial.sha256 != parallel.sha256:
            print("the chains differ", file=sys.stderr)
            return 2
        speedups.append(serial_seconds / parallel_seconds)
        figures = {"serial_seconds": round(serial_seconds, 3), "parallel_seconds": round(parallel_seconds, 3)}
        shares = {"useful": progress.useful, "wasted": progress.wasted, "idle": progress.idle}
        line = {"speedup": round(speedups[-1], 3), "acceptance": serial.acceptance, **shares}
        print(json.dumps({"bench": "capacity_prefetch", "turn": turn, **figures, **line}), flush=True)
    value = float(np.median(speedups))
    line = {"bench": "capacity_prefetch", "metric": "speedup over serial", "value": round(value, 3), "unit": "ratio"}
    verdict = {"goal": f">= {GOAL}", "holds": value >= GOAL, "rival": "the same chain, serial"}
    setting = {"workers": options.workers, "windows": options.windows, "iterations": options.iterations}
    load = round(os.getloadavg()[0], 2)
    print(json.dumps({**line, **verdict, **setting, "cores": os.cpu_count(), "load": load}), flush=True)
    return 0 if value >= GOAL else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
