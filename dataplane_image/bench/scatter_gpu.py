"""What landing KV costs the decode steps of an 8B-shaped model on a GPU, at the pace of a link.

For each speed of the link, in gigabits of compressed KV a second at the default tier's ratio, the same chunks a second
land by every way: ours (codes land, are dequantized in the scatter), the paper's plain scatter of bf16, and GPU codecs.
Steps without landing are timed before and after each, in the same run; a sample is the ratio of the medians.
"""

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

import torch
from gpu_decode_step import DecodeStep, StepShape
from gpu_landings import CHUNK, GpuCodec, Landing, Ours, PlainScatter, paged_cache
from results import BUSY, Goal, Report, Result, Wanted, emit

GOAL = Goal(Wanted.AT_MOST, 1.015)
RATIO = 4.4
"""Compression of the default tier against bf16: what turns the link's speed into chunks a second."""
KEPT_UP = 0.98
_WARM_STEPS = 20


@dataclass(frozen=True, slots=True)
class Window:
    """Timed steps: the median step in milliseconds, and the chunks that landed meanwhile, a second."""

    step_ms: float
    chunks_per_second: float


class Pacer:
    """A thread that lands a chunk every `interval` seconds; one that comes late lands at once, none is left out."""

    def __init__(self, landing: Landing, interval: float) -> None:
        self._landing, self._interval = landing, interval
        self._stopping = threading.Event()
        self.landed = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Pacer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        start = time.perf_counter()
        while not self._stopping.is_set():
            self._landing.land(self.landed)
            self.landed += 1
            self._stopping.wait(max(0.0, start + self.landed * self._interval - time.perf_counter()))


def timed(step: DecodeStep, steps: int, landed: Callable[[], int]) -> Window:
    """Replay the step, each between two events, never more than a few ahead of the device."""
    stream = torch.cuda.Stream(priority=torch.cuda.Stream.priority_range()[1])
    with torch.cuda.stream(stream):
        for _ in range(_WARM_STEPS):
            step.replay()
        stream.synchronize()
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
        before, start = landed(), time.perf_counter()
        marks[0].record()
        for number, mark in enumerate(marks[1:]):
            step.replay()
            mark.record()
            if number >= 4:
                marks[number - 3].synchronize()
        stream.synchronize()
        seconds, count = time.perf_counter() - start, landed() - before
    times = [first.elapsed_time(second) for first, second in pairwise(marks)]
    return Window(statistics.fmean(times), count / seconds)


def alone(step: DecodeStep, steps: int) -> Window:
    """Time steps while nothing lands."""
    return timed(step, steps, lambda: 0)


def beside(step: DecodeStep, landing: Landing, interval: float, steps: int) -> Window:
    """Time steps while chunks land."""
    with Pacer(landing, interval) as pacer:
        return timed(step, steps, lambda: pacer.landed)


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured: ways to land, speeds in Gb/s of compressed KV, how often."""

    speeds: tuple[float, ...]
    repeats: int
    steps: int


def measure(step: DecodeStep, landings: Sequence[Landing], case: Case) -> dict[tuple[str, float], Result]:
    """Return a ratio for every way and speed; the ways take turns within a repeat."""
    ratios: dict[tuple[str, float], list[float]] = {}
    paces: dict[tuple[str, float], list[float]] = {}
    for speed in case.speeds:
        wanted = speed * 1e9 / 8 / (CHUNK.values_bytes / RATIO)
        for _ in range(case.repeats):
            before = alone(step, case.steps)
            for landing in landings:
                during = beside(step, landing, 1 / wanted, case.steps)
                after = alone(step, case.steps)
                base = (before.step_ms + after.step_ms) / 2
                ratios.setdefault((landing.name, speed), []).append(during.step_ms / base)
                paces.setdefault((landing.name, speed), []).append(during.chunks_per_second / wanted)
                before = after
            print(f"{speed:g} Gb/s: step alone {before.step_ms:.3f} ms", file=sys.stderr, flush=True)
    encoded = {landing.name: landing.encoded_bytes for landing in landings}
    return {key: _result(key, ratios[key], paces[key], (encoded[key[0]], step.shape, case)) for key in ratios}


def _result(
    key: tuple[str, float], ratios: Sequence[float], paces: Sequence[float], about: tuple[int, StepShape, Case]
) -> Result:
    (name, speed), (encoded, shape, case) = key, about
    pace = statistics.median(paces)
    return Result(
        bench="scatter_gpu",
        case=f"{name}, {speed:g} Gb/s",
        metric="decode step while KV lands / alone",
        samples=ratios,
        unit="ratio",
        goal=GOAL if name == "ours" and speed == 40 else None,
        rival="the same steps without landing",
        parameters={
            "gpu": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "bus_bytes_per_chunk": encoded,
            "values_bytes_per_chunk": CHUNK.values_bytes,
            "pace_kept": round(pace, 3),
            "kept_up": pace >= KEPT_UP,
            "ratio_of_tier": RATIO,
            **asdict(shape),
            **{name: value for name, value in asdict(case).items() if name != "speeds"},
        },
    )


def compared(results: dict[tuple[str, float], Result], speed: float) -> list[Result]:
    """Return ours against every other way at one speed, as the extra time that landing costs; none without ours."""
    ours = results.get(("ours", speed))
    found: list[Result] = []
    if ours is None:
        return found
    for (name, at), result in results.items():
        if at == speed and name != "ours":
            margins = [theirs - mine for theirs, mine in zip(result.samples, ours.samples, strict=True)]
            case = f"ours against {name}, {speed:g} Gb/s"
            metric = "their slow-down minus ours"
            shown = replace(result, case=case, metric=metric, samples=margins, rival=name)
            found.append(replace(shown, goal=Goal(Wanted.AT_LEAST, 0.0)))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print JSON lines; returns the exit code."""
    options = _parser().parse_args(arguments)
    if not torch.cuda.is_available():
        print("scatter_gpu: no CUDA GPU on this machine; nothing was measured", file=sys.stderr)
        return BUSY
    torch.manual_seed(1)
    step = DecodeStep(StepShape(batch=options.batch, context=options.context))
    paged = paged_cache()
    codecs = [GpuCodec(paged, algorithm) for algorithm in options.codecs.split(",") if algorithm]
    landings: list[Landing] = [Ours(paged), PlainScatter(paged), *codecs]
    speeds = tuple(float(speed) for speed in options.speeds.split(","))
    results = measure(step, landings, Case(speeds, options.repeats, options.steps))
    report = Report("scatter_gpu", {})
    steady = {key: result for key, result in results.items() if report.show(result)}
    for result in compared(steady, max(speeds)):  # around 0, where noise in medians says nothing
        emit(result)
    return report.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scatter_gpu", description=__doc__)
    parser.add_argument("--speeds", default="5,10,20,40", help="Gb/s of compressed KV, default %(default)s")
    parser.add_argument("--repeats", type=int, default=7, help="samples of each ratio, default %(default)s")
    parser.add_argument("--steps", type=int, default=100, help="decode steps a sample, default %(default)s")
    parser.add_argument("--batch", type=int, default=16, help="sequences that decode, default %(default)s")
    parser.add_argument("--context", type=int, default=2048, help="tokens of each, default %(default)s")
    parser.add_argument(
        "--codecs", default="Deflate,Zstd,ANS", help="nvCOMP algorithms, empty = none, default %(default)s"
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
