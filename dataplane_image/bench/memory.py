"""What restoring allocates: single allocations above 4 KiB, page faults a chunk, and the peak against the settings.

Allocations are Python's and numpy's (tracemalloc), looked at between any two calls on the worker's thread; memory that
C libraries take for themselves shows as page faults and in the peak.
"""

import argparse
import resource
import sys
import tracemalloc
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from in_thread import InThread
from pipeline import Bench
from results import at_most, unwind_on_sigterm

from shadowserve_dataplane.codec.encode import Encoder
from shadowserve_dataplane.codec.tiers import LandingMode
from shadowserve_dataplane.fetch.plan import ChunkRequest
from shadowserve_lab.home import say

LARGE_BYTES = 4096


class LargeAllocations:
    """Counts, while it is entered, how often more than `LARGE_BYTES` were taken between two calls of this thread."""

    def __init__(self) -> None:
        self.places: list[str] = []
        self._last = 0

    def __enter__(self) -> "LargeAllocations":
        tracemalloc.start()
        self._last = tracemalloc.get_traced_memory()[0]
        sys.setprofile(self._look)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        tracemalloc.stop()

    def _look(self, frame: FrameType, event: str, argument: object) -> None:
        current, peak = tracemalloc.get_traced_memory()
        if peak - self._last > LARGE_BYTES:
            self.places.append(f"{frame.f_code.co_qualname}:{frame.f_lineno} {event}: {peak - self._last} bytes")
        tracemalloc.reset_peak()
        self._last = current


def steady(bench: Bench, mode: LandingMode) -> None:
    """Report allocations and page faults once everything was made."""
    say(f"memory: {mode}")
    server = bench.store()
    path = InThread(server.settings(), bench.shape, mode, bench.landing)
    naive = bench.naive(server.port, mode)
    for _ in range(2):
        path.fetch(bench.requests)
    naive.fetch(bench.requests)
    with LargeAllocations() as of_naive:
        naive.fetch(bench.requests)
    with LargeAllocations() as large:
        path.fetch(bench.requests)
    for place in sorted(set(large.places)):
        print(f"memory: {mode}: {place}", file=sys.stderr)
    chunks = len(bench.requests)
    case = f"steady state, {mode}"
    bench.report.figure(case, "allocations above 4 KiB a chunk", [len(large.places) / chunks], "", at_most(0))
    naive_case = f"a stock client, {mode}"
    bench.report.figure(naive_case, "allocations above 4 KiB a chunk", [len(of_naive.places) / chunks], "")
    faults = [_faults(path, bench.requests) / chunks for _ in range(bench.repeats)]
    bench.report.figure(case, "page faults a chunk", faults, "")
    path.close()


def peak(bench: Bench) -> None:
    """Report how far the process grows when both modes are made and used, against the buffers that were configured."""
    store, landing = bench.store().settings(), bench.landing.total_bytes
    before = _status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # from here on VmHWM counts anew
    for mode in LandingMode:
        path = InThread(store, bench.shape, mode, bench.landing)
        path.fetch(bench.requests)
        path.close()
    configured = landing + 2 * Encoder.max_encoded_bytes(bench.shape)
    grown = landing + _status_bytes("VmHWM") - before
    bench.report.figure("peak, Codes and Values", "memory / configured buffers", [grown / configured], "ratio")


def _faults(path: InThread, requests: Sequence[ChunkRequest]) -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    path.fetch(requests)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


def main(arguments: Sequence[str]) -> int:
    """Run; 3 when the machine is too busy to tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="samples of each figure (default 5)")
    parser.add_argument("--chunks", type=int, default=12, help="chunks of 256 tokens (default 12)")
    parser.add_argument("--tier", default="Balanced")
    options = parser.parse_args(arguments)
    unwind_on_sigterm()
    options.noise_bound = 1.0
    with ExitStack() as stack:
        bench = Bench("memory", options, stack)
        for mode in LandingMode:
            steady(bench, mode)
        peak(bench)
    return bench.report.exit_code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
