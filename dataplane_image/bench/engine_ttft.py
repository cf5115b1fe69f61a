"""Time to first token on a warm engine: by a remote hit, against its own prefix cache and against computing; and what
a fetch costs a stream that is decoding meanwhile. Real engines, real store; `make bench-ttft ARGS="--repeats 9"`.
"""

import argparse
import itertools
import os
import random
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from results import Goal, Result, Wanted, emit

from shadowserve_lab.engine_client import Answer, Ask, EngineClient
from shadowserve_lab.home import say
from shadowserve_lab.processes import wait_until
from shadowserve_lab.stack import Environments, Stack, StackOptions

PREFIX_TOKENS = 1792
QUESTION_TOKENS = 32
STREAM_TOKENS = 160
SLOW_LINK = 100e6
"""Bits per second of the link while a stream decodes: the fetch then lasts some twenty tokens."""
TOO_NOISY = 1.0
"""Spread of the local hits above which the machine is too busy to tell anything."""
_BENCH = "engine_ttft"
_STORED_SECONDS = 60.0
_SETTLE_SECONDS = 0.3


@dataclass(frozen=True)
class Round:
    """One prompt: computed by A, from outside at B, from B's own prefix cache. Seconds."""

    cold: float
    remote: float
    local: float
    equal: bool


def measure_rounds(stack: Stack, prompts: Sequence[list[int]]) -> list[Round]:
    """Return one round a prompt."""
    return [_round(stack, prompt) for prompt in prompts]


def _round(stack: Stack, prompt: list[int]) -> Round:
    a, b = stack.engines["a"].client, stack.engines["b"].client
    cold = _stored(stack, a, prompt)
    remote = b.complete(Ask(prompt, 8))
    local = b.complete(Ask(prompt, 8))
    return Round(cold.ttft, remote.ttft, local.ttft, remote.tokens == local.tokens)


def _stored(stack: Stack, engine: EngineClient, prompt: list[int]) -> Answer:
    before = stack.store.size()
    answer = engine.complete(Ask(prompt, 8))
    chunks = len(prompt) // 256
    wait_until(lambda: stack.store.size() >= before + chunks, _STORED_SECONDS, "chunks in the store")
    time.sleep(_SETTLE_SECONDS)
    return answer


def measure_stream(stack: Stack, prompt: list[int]) -> tuple[float, float]:
    """Return the mean time between tokens of a stream at B during a fetch, and without one (seconds)."""
    b = stack.engines["b"].client
    _stored(stack, stack.engines["a"].client, prompt)
    stack.store_proxy.limit(SLOW_LINK)
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(b.complete, Ask(prompt[:40], STREAM_TOKENS))
        time.sleep(1.5)
        fetched = b.complete(Ask(prompt, 1))
        streamed = stream.result()
    stack.store_proxy.limit(0)
    begin, end = fetched.began, fetched.began + fetched.ttft
    return _split_gaps([streamed.began + arrival for arrival in streamed.arrivals], begin, end)


def _split_gaps(arrivals: Sequence[float], begin: float, end: float) -> tuple[float, float]:
    """Split the gaps by the fetch; the last ones before `end` belong to the step that computes the question."""
    gaps = [(now, now - before) for before, now in itertools.pairwise(arrivals)]
    usual = statistics.median(gap for _, gap in gaps)
    within = [gap for at, gap in gaps if begin + usual < at < end - 6 * usual]
    without = [gap for at, gap in gaps if at < begin or at > end + 2 * usual]
    if len(within) < 5:
        raise TimeoutError(f"the fetch spanned only {len(within)} tokens: the link was not slow enough")
    return statistics.fmean(within), statistics.fmean(without)


def report(rounds: Sequence[Round], streams: Sequence[tuple[float, float]], parameters: dict[str, object]) -> None:
    """Print every figure."""
    case = str(parameters["tier"])

    def figure(
        metric: str, samples: Sequence[float], unit: str, goal: Goal | None = None, rival: str | None = None
    ) -> None:
        emit(Result(_BENCH, case, metric, samples, unit, goal, rival, parameters))

    figure("cold_ttft", [r.cold for r in rounds], "s")
    figure("local_hit_ttft", [r.local for r in rounds], "s")
    figure("remote_hit_ttft", [r.remote for r in rounds], "s")
    at_most = Wanted.AT_MOST
    figure("remote_over_local", [r.remote / r.local for r in rounds], "ratio", Goal(at_most, 1.25), "local prefix hit")
    figure("remote_over_cold", [r.remote / r.cold for r in rounds], "ratio", Goal(at_most, 0.15), "recompute")
    figure("answers_equal_to_local_hit", [float(r.equal) for r in rounds], "share")
    ratios = [during / without for during, without in streams]
    figure("stream_tpot_without_fetch", [without for _, without in streams], "s")
    figure("stream_tpot_during_fetch", ratios, "ratio", Goal(at_most, 1.10), "the same stream without a fetch")


def main(arguments: Sequence[str]) -> int:
    """Run; 3 when the machine is too busy to tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="prompts (default 7)")
    parser.add_argument("--streams", type=int, default=5, help="fetches beside a decoding stream (default 5)")
    parser.add_argument("--tier", default="Balanced")
    parser.add_argument("--landing", default="Codes")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--host", action="store_true", help="restore in the sidecar, without a data-plane process")
    parser.add_argument("--pin", action="store_true", help="engines on core 0, everything else on core 1")
    options = parser.parse_args(arguments)
    rng = random.Random(1)
    words = [rng.randrange(1000, 30_000) for _ in range(400)]
    length = PREFIX_TOKENS + QUESTION_TOKENS
    prompts = [rng.choices(words, k=length) for _ in range(options.repeats + options.streams + 1)]
    choice = StackOptions(
        tier=options.tier,
        landing=options.landing,
        workers=options.workers,
        data_plane=not options.host,
        engine_cores=(0,) if options.pin else (),
        other_cores=(1,) if options.pin else (),
    )
    with Stack(choice, Environments.from_environment(), say) as stack:
        say("warming up")
        measure_rounds(stack, prompts[-1:])
        say(f"{options.repeats} rounds")
        rounds = measure_rounds(stack, prompts[: options.repeats])
        streams = [] if options.host else [measure_stream(stack, p) for p in prompts[options.repeats : -1]]
    parameters = {
        **vars(options),
        "prefix_tokens": PREFIX_TOKENS,
        "question_tokens": QUESTION_TOKENS,
        "cores": os.cpu_count(),
    }
    local = Result(_BENCH, "", "", [r.local for r in rounds], "s")
    if local.spread > TOO_NOISY:
        say(f"local hits differ by {local.spread:.0%} of their median: this machine is too busy to tell")
        return 3
    report(rounds, streams or [(1.0, 1.0)], parameters)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
