"""Our pipeline as a bench drives it, and a landing buffer in another process for placement by TCP."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from shadowserve_dataplane.chunks import KvShape
from shadowserve_dataplane.codec.encode import Encoder
from shadowserve_dataplane.codec.landed import LandedLayout
from shadowserve_dataplane.codec.tiers import LandingMode
from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.errors import ChunkOutcome
from shadowserve_dataplane.fetch.pipeline import Pipeline, PipelineSettings
from shadowserve_dataplane.fetch.plan import ChunkRequest, FetchJob
from shadowserve_dataplane.fetch.report import ChunkResult
from shadowserve_dataplane.landing import LandingBuffer, SlotRef
from shadowserve_dataplane.place.base import PlacementTarget
from shadowserve_dataplane.place.receiver import TcpPlacementReceiver
from shadowserve_dataplane.place.tcp import TcpTarget
from shadowserve_dataplane.store.discovery import topology_source
from shadowserve_dataplane.store.settings import StoreSettings

_SECONDS = 60.0
_TOKEN = bytes(range(32))


class Ours:
    """A pipeline that restores chunks into the same slots again and again."""

    def __init__(
        self, store: StoreSettings, workers: int, shape: KvShape, mode: LandingMode, target: PlacementTarget
    ) -> None:
        settings = PipelineSettings(workers, Encoder.max_encoded_bytes(shape), 2)
        self._pipeline = Pipeline(settings, store, topology_source(store))
        self._shape, self._mode, self._target = shape, mode, target
        self._jobs = 0

    def fetch(self, requests: Sequence[ChunkRequest]) -> list[ChunkResult]:
        """Restore the chunks; raises unless all of them land."""
        results: list[ChunkResult] = []
        done = threading.Event()

        def on_result(result: ChunkResult) -> None:
            results.append(result)
            if len(results) == len(requests):
                done.set()

        self._jobs += 1
        job = FetchJob(self._jobs, self._shape, self._mode, tuple(requests), Deadline.after(_SECONDS))
        self._pipeline.submit(job, self._target, on_result)
        done.wait(_SECONDS)
        failed = [result for result in results if result.outcome is not ChunkOutcome.LANDED]
        if failed or len(results) < len(requests):
            raise RuntimeError(f"{len(results)} of {len(requests)} chunks ended, of these badly: {failed}")
        return results

    def close(self) -> None:
        """Stop the threads."""
        self._pipeline.close(Deadline.after(0))


def leased(landing: LandingBuffer, shape: KvShape, slots: int) -> list[SlotRef]:
    """Cut the buffer and return that many slots, open for writing."""
    landing.carve(LandedLayout.max_bytes(shape))
    refs = [landing.lease(b"engine") for _ in range(slots)]
    return [ref for ref in refs if ref is not None]


def landing_buffer(shape: KvShape, slots: int) -> LandingBuffer:
    """Return a buffer with room for that many slots."""
    return LandingBuffer(slots * (LandedLayout.max_bytes(shape) + 4096))


@contextmanager
def landing_elsewhere(shape: KvShape, slots: int) -> Iterator[tuple[TcpTarget, list[SlotRef]]]:
    """Yield how to place, by TCP, into slots of another process, as a sidecar has them."""
    fields = (shape.layers, shape.kv_heads, shape.head_dim, shape.tokens, slots)
    command = [sys.executable, __file__, *map(str, fields)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = json.loads(process.stdout.readline())
        yield TcpTarget("127.0.0.1", found["port"], _TOKEN), [SlotRef(*ref) for ref in found["refs"]]
        process.kill()


def _host(layers: int, kv_heads: int, head_dim: int, tokens: int, slots: int) -> None:
    shape = KvShape(layers, kv_heads, head_dim, tokens=tokens)
    landing = landing_buffer(shape, slots)
    refs = leased(landing, shape, slots)
    receiver = TcpPlacementReceiver(landing, ("127.0.0.1", 0), _TOKEN, lambda _: None)
    print(json.dumps({"port": receiver.port, "refs": [(ref.slot, ref.lease) for ref in refs]}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _host(*map(int, sys.argv[1:]))
