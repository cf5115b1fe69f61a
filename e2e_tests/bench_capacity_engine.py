"""Measures real vLLM engines under many loads, and asks the capacity model for what it did not see; JSON lines.

One and two replicas, several rates, prompts that miss, hit, or both. Windows are written to a file (`--output`, for
example examples/windows.json); every second one is fitted, the others are predicted: how many of their TTFT p90 lie
inside the 80 % interval? `make bench-capacity-engine` runs it; `--windows FILE` judges windows measured before.
"""

import argparse
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shadowserve_capacity.model.comparison import compare
from shadowserve_capacity.model.fit import fit
from shadowserve_capacity.model.observations import Observations
from shadowserve_capacity.model.parsing import read_observations
from shadowserve_lab.engine_client import Answer, Ask, EngineClient, Metrics
from shadowserve_lab.home import say
from shadowserve_lab.processes import wait_until
from shadowserve_lab.stack import Environments, Stack, StackOptions
from shadowserve_lab.windows import Gauges, Scrapes, window_of

PREFIX_TOKENS, QUESTION_TOKENS = 256, 32
PREFIXES = 12
MAX_SEQUENCES = 8
"""What the stack starts its engines with."""
COVERAGE_GOAL, LEVEL = 0.7, 0.8
_DRAIN_SECONDS = 60.0


@dataclass(frozen=True)
class Case:
    """One window to come: requests per second over all replicas, share that hits, tokens of an answer."""

    replicas: int
    rate: float
    hit_share: float
    output_tokens: int


def cases(number: int, rng: random.Random) -> list[Case]:
    """Return loads of all kinds, in random order; hits allow more of them."""
    kinds = itertools.cycle(itertools.product((1, 2), (0.0, 0.5, 1.0), (8, 24)))
    found = []
    for replicas, hit_share, output in itertools.islice(kinds, number):
        busiest = {0.0: 0.8, 0.5: 1.0, 1.0: 1.6}[hit_share] * (1.0 if output == 8 else 0.7)
        found.append(Case(replicas, round(replicas**0.5 * busiest * rng.uniform(0.3, 1.0), 3), hit_share, output))
    rng.shuffle(found)
    return found


class Bench:
    """Prompts and engines; every window starts with empty engine caches and a store that has all prefixes."""

    def __init__(self, stack: Stack, rng: random.Random) -> None:
        self._stack, self._rng = stack, rng
        self._names = sorted(stack.engines)
        words = [rng.randrange(1000, 30_000) for _ in range(400)]
        self._prefixes = [rng.choices(words, k=PREFIX_TOKENS) for _ in range(PREFIXES)]
        self._words = words

    def warm_up(self) -> None:
        """Have every prefix in the store, and every engine used to all shapes of a step."""
        say("filling the store")
        clients = self._clients(len(self._names))
        with ThreadPoolExecutor(4) as pool:
            asks = [Ask([*prefix, *self._question()], 8) for prefix in self._prefixes]
            list(pool.map(lambda pair: clients[pair[0] % len(clients)].complete(pair[1]), enumerate(asks)))
        wait_until(lambda: self._stack.store.size() >= PREFIXES, 60.0, "prefixes in the store")
        for client in clients:
            client.reset_prefix_cache()
            for prefix in self._prefixes[:2]:
                client.complete(Ask([*prefix, *self._question()], 8))

    def measure(self, case: Case, seconds: float) -> dict[str, Any]:
        """Return the window of one load: random arrivals for `seconds`, then until all are answered."""
        clients = self._clients(case.replicas)
        for client in clients:
            client.reset_prefix_cache()
        before = self._scrapes(case.replicas)
        count = max(int(np.random.default_rng(self._rng.getrandbits(32)).poisson(case.rate * seconds)), 3)
        arrivals = sorted(self._rng.uniform(0.0, seconds) for _ in range(count))
        with Gauges(lambda: self._scrapes(case.replicas).engines) as gauges, ThreadPoolExecutor(count) as pool:
            start = time.monotonic()
            asked = []
            for at in arrivals:
                time.sleep(max(start + at - time.monotonic(), 0.0))
                asked.append(pool.submit(self._rng.choice(clients).complete, self._ask(case)))
            time.sleep(max(start + seconds - time.monotonic(), 0.0))
            answers: list[Answer] = [each.result(_DRAIN_SECONDS) for each in asked]
        wait_until(lambda: self._finished(before, case, count), 10.0, "metrics of the last answer")
        window = window_of(before, self._scrapes(case.replicas), seconds, gauges)
        window["ttft_p90"] = round(float(np.quantile([answer.ttft for answer in answers], 0.9)), 5)
        return window

    def _finished(self, before: Scrapes, case: Case, count: int) -> bool:
        name = "vllm:request_prefill_kv_computed_tokens_count"
        return self._scrapes(case.replicas).total(name) - before.total(name) >= count

    def _ask(self, case: Case) -> Ask:
        hit = self._rng.random() < case.hit_share
        prefix = self._rng.choice(self._prefixes) if hit else self._rng.choices(self._words, k=PREFIX_TOKENS)
        return Ask([*prefix, *self._question()], case.output_tokens)

    def _question(self) -> list[int]:
        return self._rng.choices(self._words, k=QUESTION_TOKENS)

    def _clients(self, replicas: int) -> list[EngineClient]:
        return [self._stack.engines[name].client for name in self._names[:replicas]]

    def _scrapes(self, replicas: int) -> Scrapes:
        names = self._names[:replicas]
        engines: Sequence[Metrics] = [self._stack.engines[name].client.metrics() for name in names]
        return Scrapes(tuple(engines), tuple(self._stack.sidecars[name].metrics() for name in names))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the observations of real engines as a JSON value; the file has every window as soon as it is over."""
    rng = random.Random(options.seed)
    windows: list[dict[str, Any]] = []
    value = {"hardware": "cpu", "max_sequences": MAX_SEQUENCES, "windows": windows}
    end = time.monotonic() + options.minutes * 60.0
    with Stack(StackOptions(data_plane=False), Environments.from_environment(), say) as stack:
        bench = Bench(stack, rng)
        bench.warm_up()
        for number, case in enumerate(cases(options.number, rng)):
            if time.monotonic() > end:
                say(f"{options.minutes:g} minutes are over: {number} windows of {options.number}")
                break
            windows.append(bench.measure(case, options.seconds))
            options.output.write_text(json.dumps(value, indent=1) + "\n")
            say(f"window {number}: {case}, TTFT p90 {windows[-1]['ttft_p90']:.3f} s, load {os.getloadavg()[0]:.1f}")
    return value


def judge(observations: Observations, seed: int) -> dict[str, object]:
    """Fit every second window, predict the others, and return what came out as one figure."""
    windows = observations.windows
    start = time.perf_counter()
    posterior = fit(Observations(observations.pool, windows[::2]), seed)
    took = time.perf_counter() - start
    held_out = compare(posterior, windows[1::2], LEVEL)
    say(posterior.explain())
    for each in held_out:
        low, high = each.interval.low, each.interval.high
        place = "inside" if each.covered else "outside"
        say(f"held out {2 * each.window + 1}: {each.observed:.3f} s, {place} {low:.3f} to {high:.3f} s")
    coverage = sum(each.covered for each in held_out) / len(held_out)
    return {
        "bench": "capacity_engine",
        "metric": f"held-out TTFT p90 inside the {LEVEL:.0%} interval",
        "value": round(coverage, 3),
        "goal": f">= {COVERAGE_GOAL:g}",
        "holds": coverage >= COVERAGE_GOAL,
        "fitted": len(windows[::2]),
        "held_out": len(held_out),
        "width": round(float(np.median([each.interval.high / each.interval.low for each in held_out])), 3),
        "fit_seconds": round(took, 2),
        "warnings": posterior.warnings,
        "load": round(os.getloadavg()[0], 2),
    }


def main(arguments: Sequence[str]) -> int:
    """Measure unless there are windows, judge, print; 1 when the goal is missed."""
    parser = argparse.ArgumentParser(prog='make bench-capacity-engine ARGS="..."', description=__doc__)
    parser.add_argument("--windows", type=Path, help="judge these instead of measuring")
    parser.add_argument("--output", type=Path, default=Path("windows.json"), help="where measured windows go")
    parser.add_argument("--number", type=int, default=36)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a window")
    parser.add_argument("--minutes", type=float, default=9.0, help="start no window so long after the start")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    value = measure(options) if options.windows is None else json.loads(options.windows.read_text())
    result = judge(read_observations(value), options.seed)
    print(json.dumps(result), flush=True)
    return 0 if result["holds"] else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
