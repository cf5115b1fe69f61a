"""Time to first token on a warm engine: by a remote hit, against its own prefix cache and against computing; and what
a fetch costs a stream that is decoding meanwhile. Real engines, real store; `make bench-engine_ttft`.
"""

import argparse
import itertools
import random
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from results import Report, at_most

from shadowserve_dataplane.chunks import CHUNK_TOKENS
from shadowserve_lab.engine_client import Answer, Ask, EngineClient
from shadowserve_lab.home import say
from shadowserve_lab.processes import wait_until
from shadowserve_lab.stack import Environments, Stack, StackOptions

PREFIX_TOKENS = 1792
QUESTION_TOKENS = (32, 128)
"""A short question, and one of the length of a chat turn: the part that every engine has to compute itself."""
STREAM_TOKENS = 160
SLOW_LINK = 100e6
"""Bits per second of the link while a stream decodes: the fetch then lasts some twenty tokens."""
_STORED_SECONDS = 60.0
_QUIET_SECONDS = 1.5
"""vLLM's processes poll, each on a whole core, for a second after their last message: wait until engine A rests."""
_WAKING = 24
"""Tokens of the request that B answers just before each of its hits: B polls then, as it does under any traffic."""


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
    remote = _woken(b, prompt)
    local = _woken(b, prompt)
    return Round(cold.ttft, remote.ttft, local.ttft, remote.tokens == local.tokens)


def _woken(engine: EngineClient, prompt: list[int]) -> Answer:
    engine.complete(Ask(prompt[:_WAKING], 2))
    return engine.complete(Ask(prompt, 8))


def _stored(stack: Stack, engine: EngineClient, prompt: list[int]) -> Answer:
    before = stack.store.size()
    answer = engine.complete(Ask(prompt, 8))
    chunks = len(prompt) // CHUNK_TOKENS
    wait_until(lambda: stack.store.size() >= before + chunks, _STORED_SECONDS, "chunks in the store")
    time.sleep(_QUIET_SECONDS)
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


def report_rounds(report: Report, case: str, rounds: Sequence[Round], question: int) -> None:
    """Print what the rounds of one case say."""
    figure = partial(report.figure, f"{case}, question {question}", question_tokens=question)
    figure("cold_ttft", [r.cold for r in rounds], "s")
    figure("local_hit_ttft", [r.local for r in rounds], "s")
    figure("remote_hit_ttft", [r.remote for r in rounds], "s")
    over_local, over_cold = [r.remote / r.local for r in rounds], [r.remote / r.cold for r in rounds]
    figure("remote_over_local", over_local, "ratio", at_most(1.25), rival="local prefix hit")
    figure("remote_over_cold", over_cold, "ratio", at_most(0.15), rival="recompute")
    figure("answers_equal_to_local_hit", [float(r.equal) for r in rounds], "share")


def report_streams(report: Report, case: str, streams: Sequence[tuple[float, float]]) -> None:
    """Print what the streams say."""
    report.figure(case, "stream_tpot_without_fetch", [without for _, without in streams], "s")
    ratios = [during / without for during, without in streams]
    rival = "the same stream without a fetch"
    report.figure(case, "stream_tpot_during_fetch", ratios, "ratio", at_most(1.10), rival=rival)


def measure_place(report: Report, place: str, options: argparse.Namespace, words: random.Random) -> None:
    """Measure and print everything with the data plane in one place."""
    vocabulary = [words.randrange(1000, 30_000) for _ in range(400)]

    def prompts(number: int, question: int) -> list[list[int]]:
        return [words.choices(vocabulary, k=PREFIX_TOKENS + question) for _ in range(number)]

    choice = StackOptions(
        tier=options.tier,
        landing=options.landing,
        workers=options.workers,
        data_plane=place == "process",
    )
    case = f"{options.tier}, data plane in {'a process' if place == 'process' else 'the sidecar'}"
    with Stack(choice, Environments.from_environment(), say) as stack:
        say("warming up")
        measure_rounds(stack, prompts(1, QUESTION_TOKENS[0]))
        for question in QUESTION_TOKENS:
            say(f"{options.repeats} rounds with a question of {question} tokens")
            report_rounds(report, case, measure_rounds(stack, prompts(options.repeats, question)), question)
        if place == "process" and options.streams:
            say(f"{options.streams} fetches over a slow link beside a stream; the engines have a core of their own")
            stack.use_store_proxy()
            stack.part_cores()
            streams = [measure_stream(stack, prompt) for prompt in prompts(options.streams, QUESTION_TOKENS[0])]
            report_streams(report, case, streams)


def main(arguments: Sequence[str]) -> int:
    """Run; 3 when the machine is too busy to tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="prompts of each kind (default 7)")
    parser.add_argument("--streams", type=int, default=5, help="fetches beside a decoding stream (default 5)")
    parser.add_argument("--tier", default="Balanced")
    parser.add_argument("--landing", default="Codes")
    parser.add_argument("--workers", type=int, default=1)
    places = ("sidecar", "process")
    parser.add_argument("--places", nargs="+", choices=places, default=places, help="where the data plane runs")
    options = parser.parse_args(arguments)
    report, words = Report("engine_ttft", {**vars(options), "prefix_tokens": PREFIX_TOKENS}), random.Random(1)
    for place in options.places:
        measure_place(report, place, options, words)
    return report.exit_code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
