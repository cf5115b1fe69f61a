"""What each stage costs alone, in seconds of processor time per gigabyte of restored KV, and the pipeline beside it.

The pipeline cannot be cheaper than its stages: receive, checksum, Huffman decoder, and for `Values` dequantisation. A
copy of the values is there to compare with. And what is left to do when the last byte of a chunk has come.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import xxhash
from in_thread import InThread
from link import ShapedLink
from pipeline import Bench, Fetch, HuffmanOnly
from real_kv import canonical_chunks
from results import at_most, unwind_on_sigterm

from shadowserve_dataplane.codec.dequantize import Dequantizer, NumpyDequantizer, dequantizer
from shadowserve_dataplane.codec.format import planes_per_frame
from shadowserve_dataplane.codec.quantize import bits_dtype
from shadowserve_dataplane.codec.tiers import LandingMode
from shadowserve_dataplane.fetch.plan import ChunkRequest
from shadowserve_dataplane.store.settings import StoreSettings
from shadowserve_dataplane.store.topology import Address
from shadowserve_lab.home import say

DRAIN_GIGABITS = 1.0


def checksums(bench: Bench) -> Fetch:
    """Return what verifies all frames."""
    encoded = [memoryview(chunk.encoded) for chunk in bench.chunks]
    return lambda _: [xxhash.xxh3_64_intdigest(chunk) for chunk in encoded]


def dequantized(bench: Bench, kind: Dequantizer) -> Fetch:
    """Return what turns the codes of as many chunks into values, frame by frame, in place of those that land."""
    shape, rng = bench.shape, np.random.default_rng(0)
    planes = planes_per_frame(shape)
    codes = rng.normal(0, 3, (planes, shape.tokens, shape.channels)).astype(np.int8)
    steps, means = np.full(shape.planes, 0.5, np.float32), np.zeros((shape.planes, shape.channels), np.uint16)

    def run(requests: Sequence[ChunkRequest]) -> None:
        for request in requests:
            with bench.landing.writer(request.ref) as slot:
                values = np.frombuffer(slot, bits_dtype(shape.dtype), shape.elements)
                whole = values.reshape(shape.planes, shape.tokens, shape.channels)
                kind.begin(steps, means)
                for first in range(0, shape.planes, planes):
                    out = whole[first : first + planes]
                    kind.planes(codes[: len(out)], first, out)

    return run


def copied(bench: Bench) -> Fetch:
    """Return what copies values to where they land."""
    values, _ = canonical_chunks(1)[0]

    def run(requests: Sequence[ChunkRequest]) -> None:
        for request in requests:
            with bench.landing.writer(request.ref) as slot:
                np.copyto(np.frombuffer(slot, np.uint8, len(values)), values)

    return run


def stages(bench: Bench, passes: int) -> None:
    """Report every stage alone, and the pipeline against the sum of its stages."""
    say("roofline: stages")
    server = bench.store()
    shape, plain = bench.shape, server.settings()
    fast = dequantizer(shape, planes_per_frame(shape))
    best = "dequantize in numpy" if isinstance(fast, NumpyDequantizer) else "dequantize in torch"
    variants: dict[str, Fetch] = {
        "receive": bench.receive_only(server.port),
        "checksum": checksums(bench),
        "Huffman": HuffmanOnly(bench.chunks, bench.landing),
        "dequantize in numpy": dequantized(bench, NumpyDequantizer(shape)),
        best: dequantized(bench, fast),
        "copy of values": copied(bench),
        "pipeline, Codes": bench.ours(plain, 1),
        "pipeline, Values": bench.ours(plain, 1, LandingMode.VALUES),
    }
    costs = bench.costs(variants, passes)
    cpu = {name: [cost.cpu / bench.values_gb for cost in samples] for name, samples in costs.items()}
    for name, seconds in cpu.items():
        bench.report.figure(name, "processor time", seconds, "s/GB of KV")
    for mode, parts in (("Codes", ()), ("Values", (best,))):
        alone = zip(*(cpu[name] for name in ("receive", "checksum", "Huffman", *parts)), strict=True)
        sums = [sum(parts_of_one) for parts_of_one in alone]
        ratios = [whole / total for whole, total in zip(cpu[f"pipeline, {mode}"], sums, strict=True)]
        bench.report.figure(f"pipeline, {mode}", "processor time / its stages alone", ratios, "ratio")
        bound = [huffman / total for huffman, total in zip(cpu["Huffman"], sums, strict=True)]
        bench.report.figure(f"pipeline, {mode}", "share of Huffman in its stages", bound, "ratio")


def drain(bench: Bench) -> None:
    """Report how many frames are left when a chunk's last byte has come, on a link that is the limit."""
    say("roofline: drain")
    server = bench.store()
    with ShapedLink(server.port) as link:
        link.limit(DRAIN_GIGABITS * 1e9)
        store = StoreSettings(endpoints=(Address("127.0.0.1", link.port),))
        path = InThread(store, bench.shape, LandingMode.CODES, bench.landing)
        path.fetch(bench.requests[:2])
        left = path.fetch(bench.requests)
        path.close()
    case = f"link of {DRAIN_GIGABITS:g} Gb/s"
    bench.report.figure(case, "frames left after the last byte", left, "frames", at_most(1))


def main(arguments: Sequence[str]) -> int:
    """Run; 3 when the machine is too busy to tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9, help="samples of each figure (default 9)")
    parser.add_argument("--chunks", type=int, default=24, help="chunks of 256 tokens (default 24)")
    parser.add_argument("--passes", type=int, default=4, help="passes over them a sample (default 4)")
    parser.add_argument("--tier", default="Balanced")
    parser.add_argument("--noise-bound", type=float, default=0.25, help="a figure is refused above this (default 0.25)")
    options = parser.parse_args(arguments)
    unwind_on_sigterm()
    with ExitStack() as stack:
        bench = Bench("roofline", options, stack)
        stages(bench, options.passes)
        drain(bench)
    return bench.report.exit_code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
