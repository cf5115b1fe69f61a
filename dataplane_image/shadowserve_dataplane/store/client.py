"""Look-ups and puts: the part of the store client that is not in a hurry, on the client library and asyncio.

The library does connections, authentication and the protocol; which shard has a key, and what MOVED and ASK mean, comes
from `topology.py`, shared with the bulk reader. (The library's own cluster class takes no `ssl.SSLContext`, and drops
every connection when one shard fails.)

Least rights. Both the data plane (reads) and the sidecar (look-ups and puts) work as a user made by

    ACL SETUSER shadowserve on >PASSWORD resetkeys ~shadowserve:* resetchannels -@all
        +get +exists +set +ping +asking +cluster|slots

and a data plane that only reads by the same rule without `+exists +set`. A standalone store needs neither `+asking`
nor `+cluster|slots`.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from valkey.exceptions import ResponseError

from shadowserve_dataplane.chunks import ChunkKey, store_key
from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.errors import DeadlineExceeded, NetworkError, ShadowServeError, StoreRefused
from shadowserve_dataplane.store.discovery import discover
from shadowserve_dataplane.store.node import Node, Reply, translated
from shadowserve_dataplane.store.settings import StoreSettings
from shadowserve_dataplane.store.topology import Address, Redirect, SlotMap, Topology, slot_of

_T = TypeVar("_T")
_ROUNDS = 6
_PAUSE_SECONDS = 0.05
_PASSING = ("TRYAGAIN", "CLUSTERDOWN", "LOADING", "MASTERDOWN")


class PutOutcome(StrEnum):
    """What became of a put."""

    STORED = "stored"
    PRESENT = "present"


@dataclass(slots=True)
class _Command:
    """One command on one key, on its way to an answer."""

    name: bytes
    words: tuple[bytes | str, ...]
    target: Address | None = None
    asking: bool = False
    reply: Reply = None
    answered: bool = False


class StoreClient:
    """Looks chunks up and puts them; belongs to one event loop, any number of its tasks may call it.

    Every call ends by its deadline. Raises `DeadlineExceeded`; `NetworkError` when a shard cannot be reached;
    `StoreRefused` when the store says no (not let in, out of memory, ...); `PeerProtocolError` when what answers is no
    store.
    """

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        self._nodes: dict[Address, Node] = {}
        self._closed = False
        self._search: asyncio.Task[None] | None = None
        standalone = settings.topology is Topology.STANDALONE
        self._map = SlotMap.single(settings.endpoints[0]) if standalone else None

    async def exists(self, keys: Sequence[ChunkKey], deadline: Deadline) -> list[bool]:
        """Return for every key whether its chunk is there now; one round trip per shard, all shards at once."""
        commands = [_Command(name, ("EXISTS", name)) for name in map(store_key, keys)]
        await self._run(commands, deadline)
        return [command.reply == 1 for command in commands]

    async def present(self, key: ChunkKey, deadline: Deadline) -> bool:
        """Return whether the chunk is there now."""
        return (await self.exists([key], deadline))[0]

    async def put(
        self, key: ChunkKey, value: bytes | bytearray | memoryview, deadline: Deadline, replace: bool = False
    ) -> PutOutcome:
        """Store a chunk unless one is there already, with the time to live of the settings; says which it was.

        With `replace` it is stored in any case: what is there is of no use.

        The value is copied first: a put that is given up never sends what the caller next writes into its buffer.
        """
        name = store_key(key)
        words: tuple[bytes | str, ...] = ("SET", name, bytes(value))
        words += () if replace else ("NX",)
        if self._settings.time_to_live is not None:
            words += ("PX", str(math.ceil(self._settings.time_to_live * 1000)))
        command = _Command(name, words)
        await self._run([command], deadline)
        return PutOutcome.PRESENT if command.reply is None else PutOutcome.STORED

    async def ping(self, deadline: Deadline) -> None:
        """Return when every shard has answered a PING."""
        async with self._within(deadline):
            slot_map = await self._slot_map(deadline)
            answers = await _together(self._node(a).run([("PING",)]) for a in slot_map.addresses)
            for address, replies in zip(slot_map.addresses, answers, strict=True):
                self._raise_refusal(replies[0], address)

    async def topology(self, deadline: Deadline) -> SlotMap:
        """Return the slot map, looked up now when the store is a cluster."""
        if self._settings.topology is Topology.CLUSTER:
            known = self._map.addresses if self._map else ()
            self._map = await discover(self._settings, known, deadline)
        return await self._slot_map(deadline)

    async def close(self) -> None:
        """Close all connections, for good: a call that is still under way ends as `StoreRefused` or `NetworkError`."""
        self._closed = True
        nodes, self._nodes = self._nodes, {}
        for node in nodes.values():
            node.close()
        if self._search is not None:
            self._search.cancel()
            await asyncio.gather(self._search, return_exceptions=True)
        await asyncio.sleep(0)  # the turn in which the event loop closes the sockets

    async def _run(self, commands: list[_Command], deadline: Deadline) -> None:
        async with self._within(deadline):
            waiting = commands
            for attempt in range(_ROUNDS):
                if not waiting:
                    return
                await asyncio.sleep(_PAUSE_SECONDS * attempt if attempt > 1 else 0)
                await self._round(waiting, deadline)
                waiting = [command for command in waiting if not command.answered]
            if waiting:
                raise StoreRefused(f"the cluster did not settle: {waiting[0].reply!r}")

    @asynccontextmanager
    async def _within(self, deadline: Deadline) -> AsyncIterator[None]:
        limit = None if math.isinf(deadline.at) else deadline.remaining()
        try:
            async with asyncio.timeout(limit):
                yield
        except TimeoutError as error:
            self._suspect()
            raise DeadlineExceeded("the store did not answer in time") from error

    async def _round(self, commands: list[_Command], deadline: Deadline) -> None:
        slot_map = await self._slot_map(deadline)
        groups: dict[Address, list[_Command]] = {}
        for command in commands:
            target = command.target or slot_map.address_of(slot_of(command.name))
            if target is None:
                self._map = None
                raise StoreRefused(f"no shard of the cluster serves slot {slot_of(command.name)}")
            groups.setdefault(target, []).append(command)
        await _together(self._ask(a, group) for a, group in groups.items())

    async def _ask(self, address: Address, commands: list[_Command]) -> None:
        words = [part for c in commands for part in ([("ASKING",), c.words] if c.asking else [c.words])]
        try:
            replies = iter(await self._node(address).run(words))
        except NetworkError:
            self._forget()
            raise
        for command in commands:
            if command.asking:
                self._raise_refusal(next(replies), address)
            self._take(command, next(replies), address)

    def _take(self, command: _Command, reply: Reply | ResponseError, sender: Address) -> None:
        command.target, command.asking = None, False
        if not isinstance(reply, ResponseError):
            command.reply, command.answered = reply, True
            return
        command.reply = message = str(reply)
        redirect = Redirect.parse(message, sender)
        if redirect is None:
            if not message.startswith(_PASSING):
                raise translated(reply, sender)
        elif self._settings.topology is Topology.STANDALONE:
            raise StoreRefused(f"{sender} is part of a cluster ({message}): set the store's topology to Cluster")
        elif redirect.ask:
            command.target, command.asking = redirect.address, True
        elif self._map is not None:
            self._map = self._map.moved(redirect.slot, redirect.address)

    def _raise_refusal(self, reply: Reply | ResponseError, sender: Address) -> None:
        if isinstance(reply, ResponseError):
            raise translated(reply, sender)

    async def _slot_map(self, deadline: Deadline) -> SlotMap:
        if self._map is None:
            self._map = await discover(self._settings, self._nodes, deadline)
        return self._map

    def _forget(self) -> None:
        if self._settings.topology is Topology.CLUSTER:
            self._map = None

    def _suspect(self) -> None:
        """Look the slot map up in the background: a caller in a hurry never learns that a shard is gone for good."""
        searching = self._search is not None and not self._search.done()
        if self._settings.topology is Topology.CLUSTER and not searching and not self._closed:
            self._search = asyncio.get_running_loop().create_task(self._look_again())

    async def _look_again(self) -> None:
        deadline = Deadline.after(self._settings.connect_timeout + self._settings.read_timeout)
        with suppress(ShadowServeError):  # the old map stays; who is disappointed by it again suspects it again
            self._map = await discover(self._settings, self._nodes, deadline)

    def _node(self, address: Address) -> Node:
        if self._closed:
            raise StoreRefused(f"{address}: this client of the store was closed")
        if address not in self._nodes:
            self._nodes[address] = Node(address, self._settings)
        return self._nodes[address]


async def _together(calls: Iterable[Awaitable[_T]]) -> list[_T]:
    """Return what all `calls` return, in order; raises what the first of them raised, when all have ended."""
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
