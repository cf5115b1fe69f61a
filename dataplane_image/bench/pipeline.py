"""How fast chunks are restored and what that costs: ours beside receiving only, a naive client, and work by stages.

Real encoded KV through a real store: over a link of some gigabits per second, where the link should be the limit, and
directly, where processor time is. `make bench-pipeline ARGS="-- --repeats 9"`.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from clients import Naive, ReceiveOnly
from link import ShapedLink
from ours_pipeline import Ours, landing_buffer, landing_elsewhere, leased
from real_kv import EncodedChunk, encoded_chunks, filled, interleaved, kv_shape
from real_store import Certificate, RedisServer
from results import Goal, Report, at_least, at_most, unwind_on_sigterm

from shadowserve_dataplane.codec.encode import Encoder
from shadowserve_dataplane.codec.entropy import FrameInflater
from shadowserve_dataplane.codec.format import ChunkHeader, FrameKind, Limits, parse_any_header
from shadowserve_dataplane.codec.tiers import LandingMode, Tier
from shadowserve_dataplane.fetch.plan import ChunkRequest
from shadowserve_dataplane.landing import LandingBuffer, SlotRef
from shadowserve_dataplane.place.shared_memory import SharedMemoryTarget
from shadowserve_dataplane.store.settings import StoreSettings
from shadowserve_dataplane.store.topology import Address
from shadowserve_lab.home import say

Fetch = Callable[[Sequence[ChunkRequest]], object]
LINK_GOAL = 0.97
LINK_BOUND = (1, 2, 5)
"""Gigabits per second at which the link has to be the limit."""


@dataclass(frozen=True)
class Cost:
    """What restoring all chunks took: seconds on the clock, and of processor time in this process."""

    wall: float
    cpu: float


def timed(fetch: Fetch, requests: Sequence[ChunkRequest], passes: int) -> Cost:
    """Return the cost of one pass, over `passes` of them."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(passes):
        fetch(requests)
    return Cost((time.perf_counter() - wall) / passes, (time.process_time() - cpu) / passes)


class HuffmanOnly:
    """The bound that the entropy coder sets: decompress the codes to where they land, and nothing else."""

    def __init__(self, chunks: Sequence[EncodedChunk], landing: LandingBuffer) -> None:
        self._landing = landing
        self._inflater = FrameInflater()
        self._chunks = {chunk.key: (memoryview(chunk.encoded), _header(chunk)) for chunk in chunks}

    def __call__(self, requests: Sequence[ChunkRequest]) -> None:
        """Decompress the codes of every chunk."""
        for request in requests:
            encoded, header = self._chunks[request.key]
            with self._landing.writer(request.ref) as slot:
                at = 0
                for frame in header.frames:
                    if frame.kind is FrameKind.CODES:
                        source = encoded[frame.offset : frame.offset + frame.encoded_bytes]
                        self._inflater.inflate(source, slot[at : at + frame.raw_bytes], "frame")
                        at += frame.raw_bytes


def _header(chunk: EncodedChunk) -> ChunkHeader:
    return parse_any_header(memoryview(chunk.encoded), Limits(), len(chunk.encoded))


class Bench:
    """The chunks, where they land, the report, and everything that has to be closed."""

    def __init__(self, name: str, options: argparse.Namespace, open_until_end: ExitStack) -> None:
        self.shape = kv_shape()
        self.chunks = encoded_chunks(Tier.parse(options.tier), options.chunks)
        self.values_gb = len(self.chunks) * self.shape.values_bytes / 1e9
        self.landing = landing_buffer(self.shape, len(self.chunks))
        self.requests = self.requests_for(leased(self.landing, self.shape, len(self.chunks)))
        encoded = sum(len(chunk.encoded) for chunk in self.chunks)
        parameters = {**vars(options), "chunks": len(self.chunks), "encoded_bytes": encoded, "restored": "bfloat16 KV"}
        self.report = Report(name, parameters, options.noise_bound)
        self.repeats: int = options.repeats
        self._stack = open_until_end

    def requests_for(self, refs: Sequence[SlotRef]) -> list[ChunkRequest]:
        """Return what to fetch, into these slots."""
        pairs = zip(self.chunks, refs, strict=True)
        return [ChunkRequest(index, chunk.key, ref) for index, (chunk, ref) in enumerate(pairs)]

    def store(self, tls: bool = False) -> RedisServer:
        """Start a store with the chunks."""
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        server = RedisServer(folder, tls=Certificate.make(folder / "tls") if tls else None)
        return self._stack.enter_context(filled(server, self.chunks))

    def ours(self, store: StoreSettings, workers: int, mode: LandingMode = LandingMode.CODES) -> Fetch:
        """Start our pipeline into shared memory."""
        ours = Ours(store, workers, self.shape, mode, SharedMemoryTarget(self.landing))
        self._stack.callback(ours.close)
        return ours.fetch

    def ours_by_tcp(self, store: StoreSettings, mode: LandingMode) -> Fetch:
        """Start our pipeline with one worker, placing into another process."""
        target, refs = self._stack.enter_context(landing_elsewhere(self.shape, len(self.chunks)))
        ours = Ours(store, 1, self.shape, mode, target)
        self._stack.callback(ours.close)
        requests = self.requests_for(refs)
        return lambda _: ours.fetch(requests)

    def receive_only(self, port: int, certificate: Certificate | None = None) -> Fetch:
        """Connect the client that is the ceiling, by TLS where the store has a certificate."""
        tls = None if certificate is None else certificate.client_context()
        client = ReceiveOnly(port, 1, Encoder.max_encoded_bytes(self.shape), tls)
        self._stack.callback(client.close)
        return client.fetch

    def naive(self, port: int, mode: LandingMode = LandingMode.CODES) -> Naive:
        """Connect a stock client."""
        client = Naive(port, self.shape, mode, self.landing)
        self._stack.callback(client.close)
        return client

    def costs(
        self, variants: dict[str, Fetch], passes: int, prepare: Callable[[], None] = lambda: None
    ) -> dict[str, list[Cost]]:
        """Return the samples of every variant, taken turn by turn; `prepare` comes before each and does not count."""

        def sample(fetch: Fetch) -> Cost:
            prepare()
            return timed(fetch, self.requests, passes)

        return interleaved(self.repeats, {name: lambda f=fetch: sample(f) for name, fetch in variants.items()})


def over_a_link(bench: Bench, server: RedisServer, rates: Sequence[float]) -> None:
    """Goodput through a token bucket, as a share of what only receiving reaches."""
    with ShapedLink(server.port) as link:
        store = StoreSettings(endpoints=(Address("127.0.0.1", link.port),))
        variants: dict[str, Fetch] = {
            "receive only": bench.receive_only(link.port),
            "naive": bench.naive(link.port).fetch,
            "by stages": bench.naive(link.port).fetch_by_stages,
            "ours, 1 worker": bench.ours(store, 1),
            "ours, 2 workers": bench.ours(store, 2),
        }
        for rate in rates:
            say(f"pipeline: {rate:g} Gb/s")
            turns = bench.costs(variants, 1, lambda bits=rate * 1e9: link.limit(bits))  # what idled saves up nothing
            seconds = {name: [cost.wall for cost in costs] for name, costs in turns.items()}
            case = f"link of {rate:g} Gb/s, Codes, shared memory"
            for name, taken in seconds.items():
                goodput = [bench.values_gb / wall for wall in taken]
                bench.report.figure(f"{case}, {name}", "goodput", goodput, "GB/s of KV", gigabits=rate)
                if name != "receive only":
                    ours = name.startswith("ours") and rate in LINK_BOUND
                    goal = at_least(LINK_GOAL) if ours else None
                    ratios = _ratios(seconds["receive only"], taken)
                    bench.report.figure(
                        f"{case}, {name}", "goodput / receive only", ratios, "ratio", goal, rival="receive only"
                    )


def by_processor_time(bench: Bench, server: RedisServer, secure: RedisServer, passes: int) -> None:
    """Processor time per gigabyte of KV, without a link in between."""
    say("pipeline: processor time")
    codes, values = LandingMode.CODES, LandingMode.VALUES
    plain = server.settings()
    variants: dict[str, Fetch] = {
        "receive only": bench.receive_only(server.port),
        "receive only, TLS": bench.receive_only(secure.port, secure.tls),
        "Huffman only": HuffmanOnly(bench.chunks, bench.landing),
        "naive, Codes": bench.naive(server.port).fetch,
        "naive, Values": bench.naive(server.port, values).fetch,
        "by stages, Codes": bench.naive(server.port).fetch_by_stages,
        "ours, Codes, shared memory": bench.ours(plain, 1),
        "ours, Codes, shared memory, 2 workers": bench.ours(plain, 2),
        "ours, Codes, shared memory, TLS": bench.ours(secure.settings(), 1),
        "ours, Codes, TCP": bench.ours_by_tcp(plain, codes),
        "ours, Values, shared memory": bench.ours(plain, 1, values),
        "ours, Values, TCP": bench.ours_by_tcp(plain, values),
    }
    costs = bench.costs(variants, passes)
    cpu = {name: [cost.cpu for cost in samples] for name, samples in costs.items()}
    for name, seconds in cpu.items():
        spent = [second / bench.values_gb for second in seconds]
        bench.report.figure(f"no link, {name}", "processor time", spent, "s/GB of KV")
    _compare(bench.report, cpu)
    _least_of_tls(bench.report, cpu)
    wall = {name: [cost.wall for cost in samples] for name, samples in costs.items()}
    one, two = "ours, Codes, shared memory", "ours, Codes, shared memory, 2 workers"
    bench.report.figure(f"no link, {two}", "speed / 1 worker", _ratios(wall[one], wall[two]), "ratio", at_least(1.8))


def _least_of_tls(report: Report, cpu: dict[str, list[float]]) -> None:
    """Show what TLS would cost us if it cost what it costs who only receives: less is not to be had with `ssl`."""
    ours = "ours, Codes, shared memory"
    turns = zip(cpu[ours], cpu["receive only"], cpu["receive only, TLS"], strict=True)
    least = [(own - received + by_tls) / own for own, received, by_tls in turns]
    case = f"no link, {ours}, receiving by TLS and nothing else dearer"
    report.figure(case, f"processor time / {ours}", least, "ratio", rival=ours)


def _compare(report: Report, cpu: dict[str, list[float]]) -> None:
    ours, values = "ours, Codes, shared memory", "ours, Values, shared memory"
    comparisons: list[tuple[str, str, bool, Goal | None]] = [
        (ours, "Huffman only", True, at_least(0.85)),
        (values, "Huffman only", True, at_least(0.50)),
        ("ours, Codes, TCP", "Huffman only", True, None),
        ("ours, Values, TCP", "Huffman only", True, None),
        (ours, "naive, Codes", False, at_most(0.30)),
        (ours, "naive, Values", False, at_most(0.30)),
        (values, "naive, Values", False, None),
        ("Huffman only", "naive, Codes", False, None),
        (ours, "by stages, Codes", False, None),
        ("ours, Codes, shared memory, TLS", ours, False, at_most(1.35)),
        ("ours, Codes, TCP", ours, False, None),
    ]
    for case, rival, per_second, goal in comparisons:
        ratios = _ratios(cpu[rival], cpu[case]) if per_second else _ratios(cpu[case], cpu[rival])
        metric = f"KV per processor second / {rival}" if per_second else f"processor time / {rival}"
        report.figure(f"no link, {case}", metric, ratios, "ratio", goal, rival=rival)


def _ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def main(arguments: Sequence[str]) -> int:
    """Run; 3 when the machine is too busy to tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9, help="samples of each figure (default 9)")
    parser.add_argument("--chunks", type=int, default=24, help="chunks of 256 tokens (default 24)")
    parser.add_argument("--passes", type=int, default=4, help="passes over them a sample of processor time (default 4)")
    parser.add_argument("--tier", default="Balanced")
    rates = (1.0, 2.0, 5.0, 10.0, 20.0)
    parser.add_argument("--rates", nargs="*", type=float, default=rates, help="Gb/s of the links")
    parser.add_argument("--noise-bound", type=float, default=0.25, help="a figure is refused above this (default 0.25)")
    options = parser.parse_args(arguments)
    unwind_on_sigterm()
    with ExitStack() as stack:
        bench = Bench("pipeline", options, stack)
        server, secure = bench.store(), bench.store(tls=True)
        by_processor_time(bench, server, secure, options.passes)
        over_a_link(bench, server, options.rates)
    return bench.report.exit_code


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main(sys.argv[1:]))
