"""The canary: a small chunk is stored, fetched through the pipeline that serves engines, and compared.

One chunk a shard, with fresh values every time, so that nothing that lies in the store from an earlier time can pass.
Says of the stage that failed what failed. The pipeline does not count canaries: its metrics are about engines' chunks.
"""

import asyncio
import hashlib
import itertools
import secrets
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum

from shadowserve_dataplane.chunks import ChunkKey, KvDtype, KvShape, store_key
from shadowserve_dataplane.codec.encode import Encoder
from shadowserve_dataplane.codec.landed import HEADER_BYTES, LandedLayout
from shadowserve_dataplane.codec.tiers import LandingMode, Tier
from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.errors import Cancelled, ChunkOutcome, ShadowServeError, StoreRefused
from shadowserve_dataplane.fetch.pipeline import Pipeline
from shadowserve_dataplane.fetch.plan import ChunkRequest, FetchJob
from shadowserve_dataplane.fetch.report import ChunkResult
from shadowserve_dataplane.landing import LandingBuffer, SlotRef
from shadowserve_dataplane.place.base import PlacementTarget
from shadowserve_dataplane.store.client import StoreClient
from shadowserve_dataplane.store.settings import StoreSettings
from shadowserve_dataplane.store.topology import Address, SlotMap, slot_of

SHAPE = KvShape(layers=1, kv_heads=1, head_dim=8, dtype=KvDtype.FLOAT16, tokens=64)
"""2 KiB of values."""
_KEEP_SECONDS = 600.0
"""How long a canary lies in the store: it is replaced long before."""
_OWNER = b"canary"
_MOST_SHARDS = 64
_TRIES = 100_000
"""Names that are tried to find one for every shard: a shard with one of 16384 slots is found with 99.8 %."""


class Stage(StrEnum):
    """Where a round trip can fail; `NONE`: it did not."""

    NONE = ""
    STORE = "store"
    FETCH = "fetch"
    COMPARE = "compare"


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """How it went: `shards` were tried; `failed` is the first stage that failed, `detail` says how, for people."""

    shards: int = 0
    failed: Stage = Stage.NONE
    detail: str = ""


@dataclass(frozen=True, slots=True)
class _Chunk:
    shard: Address
    key: ChunkKey
    values: bytes


class CanaryLanding:
    """Where canaries land: a small buffer of its own, and what its placement says of chunks that came whole."""

    def __init__(self, shards: int = _MOST_SHARDS) -> None:
        slot = LandedLayout.max_bytes(SHAPE)
        self.buffer = LandingBuffer(shards * (-(-slot // 4096) * 4096))
        self.buffer.carve(slot)
        self._whole: set[SlotRef] = set()
        self._changed = threading.Condition()

    def came(self, ref: SlotRef) -> None:
        """Note that every byte of a chunk lies in its slot; called by the receiver of the placement."""
        with self._changed:
            self._whole.add(ref)
            self._changed.notify_all()

    def wait(self, ref: SlotRef, deadline: Deadline) -> bool:
        """Return whether the chunk came whole by the deadline."""
        with self._changed:
            return self._changed.wait_for(lambda: ref in self._whole, deadline.remaining())

    def lease(self) -> SlotRef:
        """Return a slot. There is one for every shard that a store may have."""
        ref = self.buffer.lease(_OWNER)
        assert ref is not None, "slots are given back after every round trip"
        return ref

    def take(self, ref: SlotRef) -> bytes:
        """Return the values that lie in the slot."""
        with self.buffer.writer(ref) as slot:
            return bytes(slot[HEADER_BYTES : HEADER_BYTES + SHAPE.values_bytes])

    def give_back(self, ref: SlotRef) -> None:
        """End the lease."""
        with self._changed:
            self._whole.discard(ref)
        self.buffer.revoke(ref.lease)


class Canary:
    """Makes round trips through one pipeline, one at a time; call it from a thread without an event loop.

    `name` makes the chunks of several data planes different; `target` places into `landing`. `tells`: what receives the
    placement tells the landing of chunks that came whole; else they are there once the pipeline says so.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        store: StoreSettings,
        name: str,
        landing: CanaryLanding,
        target: PlacementTarget,
        tells: bool = True,
    ) -> None:
        self._pipeline = pipeline
        self._store = replace(store, time_to_live=_KEEP_SECONDS)
        self._name = name
        self._landing = landing
        self._target = target
        self._tells = tells
        self._jobs = itertools.count(-1, -1)
        """Below all numbers of engines' jobs."""
        self._encoder = Encoder(SHAPE, Tier.LOSSLESS)

    def round_trip(self, seconds: float) -> RoundTrip:
        """Return how it went; it ends in that time, whatever happens. Raises nothing that is a fault of others."""
        deadline = Deadline.after(seconds)
        try:
            chunks = asyncio.run(self._put(deadline))
        except ShadowServeError as error:
            return RoundTrip(0, Stage.STORE, str(error))
        refs = [self._landing.lease() for _ in chunks]
        try:
            return self._fetched(chunks, refs, deadline)
        except Cancelled as error:
            return RoundTrip(len(chunks), Stage.FETCH, str(error))
        finally:
            for ref in refs:
                self._landing.give_back(ref)

    async def _put(self, deadline: Deadline) -> list[_Chunk]:
        client = StoreClient(self._store)
        try:
            chunks = self._chunks(await client.topology(deadline))
            for chunk in chunks:
                encoded = self._encoder.encode(memoryview(chunk.values), chunk.key, False)
                await client.put(chunk.key, encoded, deadline, replace=True)
        finally:
            await client.close()
        return chunks

    def _chunks(self, slot_map: SlotMap) -> list[_Chunk]:
        if None in slot_map.owners:
            raise StoreRefused(f"{slot_map.owners.count(None)} slots of the cluster are served by no shard")
        keys = keys_by_shard(self._name, slot_map)
        return [_Chunk(shard, key, secrets.token_bytes(SHAPE.values_bytes)) for shard, key in keys.items()]

    def _fetched(self, chunks: list[_Chunk], refs: list[SlotRef], deadline: Deadline) -> RoundTrip:
        wanted = tuple(
            ChunkRequest(index, chunk.key, ref) for index, (chunk, ref) in enumerate(zip(chunks, refs, strict=True))
        )
        results = _Results(len(chunks))
        job = FetchJob(next(self._jobs), SHAPE, LandingMode.VALUES, wanted, deadline, counted=False)
        self._pipeline.submit(job, self._target, results.add)
        for result in results.wait(deadline):
            if result.outcome is not ChunkOutcome.LANDED:
                why = f"{result.outcome.value}: {result.detail}".removesuffix(": ")
                return RoundTrip(len(chunks), Stage.FETCH, f"chunk at {chunks[result.index].shard}: {why}")
        if len(results.seen) < len(chunks):
            self._pipeline.cancel(job.job)
            return RoundTrip(len(chunks), Stage.FETCH, "the pipeline did not answer in time")
        for chunk, ref in zip(chunks, refs, strict=True):
            if self._tells and not self._landing.wait(ref, deadline):
                return RoundTrip(len(chunks), Stage.FETCH, f"chunk at {chunk.shard}: it was placed, but did not arrive")
            if self._landing.take(ref) != chunk.values:
                return RoundTrip(len(chunks), Stage.COMPARE, f"chunk at {chunk.shard}: other values came back")
        return RoundTrip(len(chunks))


class _Results:
    """Collects the results of one job from the pipeline's threads."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._all = threading.Event()
        self.seen: list[ChunkResult] = []

    def add(self, result: ChunkResult) -> None:
        """Take a result."""
        self.seen.append(result)
        if len(self.seen) == self._expected:
            self._all.set()

    def wait(self, deadline: Deadline) -> list[ChunkResult]:
        """Return all results, or those that came by the deadline."""
        self._all.wait(deadline.remaining())
        return sorted(self.seen, key=lambda result: result.index)


def keys_by_shard(name: str, slot_map: SlotMap) -> dict[Address, ChunkKey]:
    """Return a key for every shard, the same ones as long as slots do not move."""
    found: dict[Address, ChunkKey] = {}
    for number in range(_TRIES):
        with suppress(KeyError):
            return {shard: found[shard] for shard in slot_map.addresses}
        digest = hashlib.blake2b(f"{name} {number}".encode(), digest_size=32, person=b"shadowserve-test")
        key = ChunkKey(digest.digest())
        shard = slot_map.address_of(slot_of(store_key(key)))
        if shard is not None:
            found.setdefault(shard, key)
    return found
