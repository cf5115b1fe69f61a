"""The scheduler half: looks prompts up, says how much of them can come from outside, and plans loads and stores.

It lives in the engine's scheduler process and sees requests only; blocks are filled and read by the workers. Nothing
here waits for the sidecar while a forward could run.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

from shadowserve_dataplane.chunks import ChunkKey, extend_keys
from shadowserve_dataplane.connector.client import SidecarClient
from shadowserve_dataplane.connector.identity import CacheIdentity
from shadowserve_dataplane.connector.lookups import Lookups
from shadowserve_dataplane.connector.messages import Contract, Found, FromSidecar, Hello, Lookup, Welcome
from shadowserve_dataplane.connector.plan import (
    ChunkStore,
    Geometry,
    KnownChunks,
    LoadPlan,
    RequestTraits,
    StepPlan,
    StepReport,
    chunks_filled,
    chunks_to_look_up,
    plan_chunks,
    storable,
    tokens_beyond,
)
from shadowserve_dataplane.connector.settings import ConnectorSettings

_KNOWN_CHUNKS = 65536


class EngineRequest(Protocol):
    """The part of vLLM's `Request` that is read here; it is live, so its tokens grow."""

    @property
    def request_id(self) -> str:
        """Name of the request inside the engine."""

    @property
    def all_token_ids(self) -> Sequence[int]:
        """Prompt and output so far."""


@dataclass(frozen=True, slots=True)
class NewRequest:
    """A request as it arrives; `adapter` is the LoRA adapter's folder, `salt` the request's `cache_salt`."""

    live: EngineRequest
    traits: RequestTraits
    adapter: str | None = None
    salt: str | None = None


@dataclass(frozen=True, slots=True)
class ScheduledRequest:
    """A request in a step: tokens computed when the step has run (drafts not counted), and its blocks, on demand."""

    request: str
    computed_tokens: int
    blocks: Callable[[], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Step:
    """What the engine's scheduler decided."""

    scheduled: Iterable[ScheduledRequest]
    preempted: frozenset[str] = frozenset()
    idle: bool = False


@dataclass(slots=True)
class _Tracked:
    """One request from arrival to end. `found` None: the look-up is under way."""

    new: NewRequest
    roots: tuple[ChunkKey, ...] | None = None
    keys: list[tuple[ChunkKey, ...]] = field(default_factory=list)
    lookup: int = 0
    found: int | None = 0
    load: LoadPlan | None = None
    next_store: int = 0
    unread: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _Issued:
    """A store under way; over when all ranks have read its blocks and the sidecar is done with it."""

    request: str
    key: bytes
    unread_ranks: int
    settled: bool = False


class SchedulerHalf:
    """One per engine. Every method is called on the engine's thread, but for the client's three events."""

    def __init__(self, settings: ConnectorSettings, hello: Hello, geometry: Geometry, identity: CacheIdentity) -> None:
        self._settings = settings
        self._geometry = geometry
        self._identity = identity
        self._world = hello.world
        self._numbers = count(1)
        self._requests: dict[str, _Tracked] = {}
        self._lookups = Lookups()
        self._known = KnownChunks(_KNOWN_CHUNKS)
        self._issued: dict[int, _Issued] = {}
        self._loads: list[LoadPlan] = []
        self._cancels: list[int] = []
        self._held: list[str] = []
        self._computing: set[str] = set()
        self._may_wait = True
        self._greeted: Welcome | None = None
        self._client = SidecarClient(settings.socket, hello, self)

    def start(self) -> None:
        """Begin to connect to the sidecar, and to find out whose cache this is."""
        self._identity.start(self._tell_contract)
        self._client.start()

    def close(self) -> None:
        """Stop talking to the sidecar."""
        self._client.close()

    @property
    def connected(self) -> bool:
        """Whether there is a sidecar to talk to."""
        return self._client.session is not None

    # Requests.

    def arrived(self, new: NewRequest) -> None:
        """Track a request, and look its prompt up if that can pay."""
        tracked = self._requests[new.live.request_id] = _Tracked(new)
        chunks = chunks_to_look_up(new.traits, self._geometry.chunk)
        session = self._client.session
        if not chunks or session is None or not self._extend_keys(tracked, chunks):
            return
        tracked.lookup, tracked.found = next(self._numbers), None
        self._lookups.ask(tracked.lookup, time.monotonic() + session.lookup_deadline_ms / 1e3)
        by_rank = [[bytes(keys[rank]) for keys in tracked.keys] for rank in range(self._world)]
        self._client.send(Lookup(session.session, tracked.lookup, by_rank))

    def matched_tokens(self, request: str, computed_tokens: int) -> int | None:
        """Return how many tokens can be loaded beyond `computed_tokens`; None while the look-up is under way.

        While no request computes, this waits for the answer, at most `idle_wait` a step: an empty step takes longer.
        """
        tracked = self._requests.get(request)
        if tracked is None or tracked.load is not None:
            return 0
        found = self._found(tracked)
        if found is None and self._may_wait and not self._computing:
            self._may_wait = False
            self._lookups.wait(self._settings.idle_wait)
            found = self._found(tracked)
        return None if found is None else tokens_beyond(found, computed_tokens, self._geometry.chunk)

    def allocated(self, request: str, external_tokens: int, blocks: Sequence[int]) -> None:
        """The engine has blocks for `external_tokens` tokens that it expects from outside: load them."""
        tracked = self._requests.get(request)
        if tracked is None or not external_tokens or not tracked.found:
            return
        computed = tracked.found * self._geometry.chunk - external_tokens
        chunks = plan_chunks(tracked.keys[: tracked.found], blocks, computed, self._geometry)
        tracked.load = LoadPlan(next(self._numbers), request, chunks)
        self._loads.append(tracked.load)

    def finished(self, request: str) -> bool:
        """Forget a request. Returns whether its blocks must be kept, because stores still read them."""
        tracked = self._requests.pop(request, None)
        if tracked is None:
            return False
        self._lookups.forget(tracked.lookup)
        self._computing.discard(request)
        if tracked.load is not None:
            self._cancels.append(tracked.load.load)
            return False
        if tracked.unread:
            self._held.append(request)
        return bool(tracked.unread)

    # Steps.

    def plan_step(self, step: Step) -> StepPlan:
        """Return the workers' orders for this step.

        A step without a forward waits for the look-ups, at most `idle_wait`: there is nothing else to do.
        """
        for request in step.preempted:
            self._preempted(request)
        scheduled = tuple(step.scheduled)
        self._computing = {request.request for request in scheduled}
        self._may_wait = True
        stores = tuple(store for request in scheduled for store in self._stores_of(request))
        if step.idle and not self._loads:
            self._lookups.wait(self._settings.idle_wait)
        plan = StepPlan(
            loads=tuple(self._loads),
            stores=stores,
            cancels=tuple(self._cancels),
            preempted=step.preempted,
            held=tuple(self._held),
            idle=step.idle,
        )
        self._loads, self._cancels, self._held = [], [], []
        return plan

    def reported(self, report: StepReport) -> None:
        """Note what the workers did."""
        for store, ranks in report.read.items():
            issued = self._issued[store]
            issued.unread_ranks -= ranks
            if issued.unread_ranks == 0 and (tracked := self._requests.get(issued.request)) is not None:
                tracked.unread.discard(store)
        for store in report.settled:
            if (settled := self._issued.get(store)) is not None:
                settled.settled = True
                if store in report.dropped:
                    self._known.forget([settled.key])
        for store in {*report.read, *report.settled} & self._issued.keys():
            if self._issued[store].settled and self._issued[store].unread_ranks == 0:
                del self._issued[store]
        for tracked in self._requests.values() if report.failed_loads else ():
            if tracked.load is not None and tracked.load.load in report.failed_loads:
                self._load_failed(tracked, tracked.load)

    def received_all(self, requests: Iterable[str]) -> None:
        """The loads of these requests ended in every worker."""
        for request in requests:
            if (tracked := self._requests.get(request)) is not None:
                tracked.load = None

    def _load_failed(self, tracked: _Tracked, load: LoadPlan) -> None:
        """Never load for this request again (the engine asks again), and let what is computed now be stored."""
        self._known.forget(chunk.keys[0] for chunk in load.chunks)
        tracked.found = 0
        tracked.next_store = 0

    def _preempted(self, request: str) -> None:
        tracked = self._requests.get(request)
        if tracked is None:
            return
        self._known.forget(self._issued[store].key for store in tracked.unread)
        tracked.unread.clear()
        tracked.next_store = 0

    def _stores_of(self, scheduled: ScheduledRequest) -> list[ChunkStore]:
        tracked = self._requests.get(scheduled.request)
        if tracked is None or not storable(tracked.new.traits):
            return []
        known_tokens = len(tracked.new.live.all_token_ids)
        filled = chunks_filled(scheduled.computed_tokens, known_tokens, self._geometry.chunk)
        if filled <= tracked.next_store or self._client.session is None or not self._extend_keys(tracked, filled):
            return []
        new = [index for index in range(tracked.next_store, filled) if tracked.keys[index][0] not in self._known]
        tracked.next_store = filled
        blocks = scheduled.blocks() if new else ()
        return [self._store(tracked, index, blocks) for index in new]

    def _store(self, tracked: _Tracked, index: int, blocks: Sequence[int]) -> ChunkStore:
        number, per_chunk = next(self._numbers), self._geometry.blocks_per_chunk
        keys, request = tracked.keys[index], tracked.new.live.request_id
        tracked.unread.add(number)
        self._known.add([keys[0]])
        self._issued[number] = _Issued(request, keys[0], self._world)
        mine = tuple(blocks[index * per_chunk : (index + 1) * per_chunk])
        return ChunkStore(number, request, keys, mine, first=index == 0)

    def _extend_keys(self, tracked: _Tracked, chunks: int) -> bool:
        """Make sure that the first `chunks` chunks have keys; False while the identity is not known."""
        if tracked.roots is None:
            session = self._client.session
            if session is not None:
                tracked.roots = self._identity.roots(session, tracked.new.adapter, tracked.new.salt)
            if tracked.roots is None:
                return False
        have, size = len(tracked.keys), self._geometry.chunk
        if have < chunks:
            last = tracked.keys[-1] if have else tracked.roots
            tokens = tracked.new.live.all_token_ids[have * size : chunks * size]
            tracked.keys.extend(zip(*(extend_keys(key, tokens, size) for key in last), strict=True))
        return True

    def _found(self, tracked: _Tracked) -> int | None:
        if tracked.found is None:
            answer = self._lookups.take(tracked.lookup)
            if answer is not None:
                tracked.found = min(answer, len(tracked.keys))
                self._learn(tracked.keys, tracked.found)
            elif self._lookups.late(tracked.lookup, time.monotonic()):
                self._lookups.forget(tracked.lookup)
                tracked.found = 0
        return tracked.found

    def _learn(self, keys: Sequence[tuple[ChunkKey, ...]], found: int) -> None:
        """The store has the first `found` of `keys`, and not the next: what is not on its way there may be stored."""
        self._known.add(key[0] for key in keys[:found])
        on_their_way = {issued.key for issued in self._issued.values()}
        self._known.forget(key[0] for key in keys[found:] if key[0] not in on_their_way)

    def _tell_contract(self) -> None:
        """Tell it once both are known, the model and the sidecar's terms; called by whoever comes to know one."""
        welcome = self._greeted
        contract = self._identity.contract(welcome) if welcome is not None else None
        if welcome is not None and contract is not None:
            self._client.send(Contract(welcome.session, contract))

    # The client's thread.

    def session_began(self, welcome: Welcome) -> None:
        """Tell whose chunks these are, as far as it is known; look-ups start with the next request."""
        self._greeted = welcome
        self._tell_contract()

    def session_lost(self) -> None:
        """No look-up will be answered."""
        self._greeted = None
        self._lookups.give_up()

    def received(self, message: FromSidecar) -> None:
        """Note the answer to a look-up."""
        if isinstance(message, Found):
            self._lookups.answer(message.lookup, message.chunks)
