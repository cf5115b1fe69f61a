"""Simulation-based calibration of the capacity model: is it as often right as it says? JSON lines.

Parameters are drawn from the prior, windows made from them, and fitted. The rank of the true value among the
posterior's draws must be uniform (Talts, Betancourt, Simpson, Vehtari and Gelman 2018). Measure: sqrt(fits) D of
Kolmogorov and Smirnov for each parameter, whose largest of 13 exceeds 1.98 in one of a hundred faultless runs.

`--pools simulation` makes the windows by the simulated form instead, request by request, with other random numbers than
any fit would use: what is fitted is then not quite what is true, as with a real engine. First one fit is timed.

Last come the predictors of prefetching, on a chain in simulated time: how often what they say comes true.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from shadowserve_capacity.calibration import Recorded, calibrate
from shadowserve_capacity.model.closed_form import latencies
from shadowserve_capacity.model.fit import Sampling, fit
from shadowserve_capacity.model.hardware import NAMES, prior_of
from shadowserve_capacity.model.observations import Pool
from shadowserve_capacity.model.simulation import Simulation
from shadowserve_capacity.model.synthetic import random_loads, synthetic
from shadowserve_capacity.prefetch.policy import Policy
from shadowserve_capacity.prefetch.predictors import ConstantRate, PaperPartialData, PartialData, Predictor
from shadowserve_capacity.prefetch.simulated import Cluster, run_simulated
from shadowserve_capacity.prefetch.surrogate import Surrogate
from shadowserve_capacity.problems.named import Named

LIMIT = 1.98
FIT_WINDOWS, FIT_SECONDS = 200, 20.0
DRAWS = 99
PREDICTED, PREDICTED_DATA = 400, 20_000
_SAMPLING = Sampling(chains=1, pilot=450, warm_up=150, steps=1200, thin=1, rounds=1, workers=1)


@dataclass(frozen=True)
class Trial:
    """One fit to make: of so many windows of a pool drawn with `seed`."""

    windows: int
    seed: int
    simulated: bool


def ranks(trial: Trial) -> list[float]:
    """Return where the true value of each parameter lies among the posterior's draws, 0 to 1."""
    rng = np.random.default_rng([trial.seed, 29])
    pool, prior = Pool("cpu", 8), prior_of("cpu")
    truth = prior.logs(rng.standard_normal(len(NAMES)))
    form = Simulation.of(trial.windows, trial.seed) if trial.simulated else latencies
    observations = synthetic(pool, truth, random_loads(trial.windows, rng), rng, form)
    draws = fit(observations, trial.seed, _SAMPLING).logs.reshape(-1, len(NAMES))
    chosen = draws[np.linspace(0, len(draws) - 1, DRAWS).round().astype(int)]
    below = (chosen < truth).sum(axis=0)
    return [float(value) for value in (below + rng.random(len(NAMES))) / (DRAWS + 1)]


def time_fit(options: argparse.Namespace) -> bool:
    """Fit as many windows as the goal says, as users do; print the seconds and return whether the goal is kept."""
    rng = np.random.default_rng(options.seed)
    truth = prior_of("cpu").logs(0.5 * rng.standard_normal(len(NAMES)))
    observations = synthetic(Pool("cpu", 8), truth, random_loads(FIT_WINDOWS, rng), rng)
    start, used = time.perf_counter(), os.times()
    posterior = fit(observations, options.seed)
    seconds, after = time.perf_counter() - start, os.times()
    processor = sum(after[:4]) - sum(used[:4])
    line = {"bench": "capacity_fit", "metric": f"seconds of a fit of {FIT_WINDOWS} windows", "value": round(seconds, 2)}
    verdict = {"goal": f"<= {FIT_SECONDS:g}", "holds": seconds <= FIT_SECONDS, "processor_seconds": round(processor, 2)}
    least = min(min(each.ess_bulk, each.ess_tail) for each in posterior.diagnoses.values())
    worst = max(each.rhat for each in posterior.diagnoses.values())
    checks = {"least_ess": round(least), "worst_rhat": round(worst, 4), "warnings": posterior.warnings}
    load = round(os.getloadavg()[0], 2)
    print(json.dumps({**line, **verdict, **checks, "cores": os.cpu_count(), "load": load}), flush=True)
    return seconds <= FIT_SECONDS


def tell_predictors(seed: int) -> None:
    """Print one line for each predictor and fifth of the data: reliability and Brier score of what it said."""
    problem = Named("mixture", PREDICTED_DATA, seed).problem(PREDICTED)
    predictors: dict[str, Predictor] = {
        "constant": ConstantRate(), "paper": PaperPartialData(), "partial": PartialData(),
        "surrogate": Surrogate(problem),
    }  # fmt: skip
    for name, predictor in predictors.items():
        recorded = Recorded(predictor)
        run_simulated(problem, Cluster(16, 0.0175, 0.0002), recorded, Policy(workers=16))
        for part in calibrate(recorded.forecasts):
            line = {"bench": "predictor_calibration", "case": f"mixture, {PREDICTED_DATA} data", "predictor": name}
            print(json.dumps({**line, **part.as_json()}), flush=True)


def distance(values: Sequence[float]) -> float:
    """Return sqrt(n) D of Kolmogorov and Smirnov against the uniform distribution."""
    ordered, count = np.sort(values), len(values)
    steps = np.arange(count + 1) / count
    return float(np.sqrt(count) * max((steps[1:] - ordered).max(), (ordered - steps[:-1]).max()))


def report(found: np.ndarray, options: argparse.Namespace, seconds: float) -> bool:
    """Print one line a parameter and one for all; return whether the goal is kept."""
    case = f"windows by {options.pools}"
    common = {"bench": "capacity_calibration", "case": case, "fits": len(found), "windows": options.windows}
    distances = [distance(column) for column in found.T]
    for name, column, value in zip(NAMES, found.T, distances, strict=True):
        histogram = np.histogram(column, bins=10, range=(0.0, 1.0))[0].tolist()
        covered = float((np.abs(column - 0.5) < 0.4).mean())
        line = {"metric": name, "value": round(value, 3), "ranks": histogram, "inside_80": round(covered, 3)}
        print(json.dumps({**common, **line}), flush=True)
    worst = max(distances)
    judged = options.pools == "model"
    verdict = {"goal": f"<= {LIMIT}", "holds": worst <= LIMIT} if judged else {"goal": None, "holds": None}
    covered = float((np.abs(found - 0.5) < 0.4).mean())
    load = round(os.getloadavg()[0], 2)
    line = {"metric": "largest sqrt(n) D", "value": round(worst, 3), **verdict, "inside_80": round(covered, 3)}
    print(json.dumps({**common, **line, "seconds": round(seconds, 1), "load": load}), flush=True)
    return not judged or worst <= LIMIT


def main(arguments: Sequence[str]) -> int:
    """Fit, print, return 1 when ranks are not uniform or a fit takes too long."""
    parser = argparse.ArgumentParser(prog='make bench-capacity-calibration ARGS="..."', description=__doc__)
    parser.add_argument("--fits", type=int, default=120)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--pools", choices=["model", "simulation"], default="model")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-timing", action="store_true", help="do not time a fit first")
    options = parser.parse_args(arguments)
    seeds = range(options.seed * 100_000, options.seed * 100_000 + options.fits)
    trials = [Trial(options.windows, seed, options.pools != "model") for seed in seeds]
    in_time = options.no_timing or time_fit(options)
    start, found = time.perf_counter(), []
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        for number, each in enumerate(pool.map(ranks, trials)):
            found.append(each)
            if (number + 1) % 10 == 0:
                print(
                    f"{number + 1} of {options.fits} fits, {time.perf_counter() - start:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
    uniform = report(np.array(found), options, time.perf_counter() - start)
    tell_predictors(options.seed)
    return 0 if uniform and in_time else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
