"""Which shard has which key: slot maps and redirects of the Redis cluster specification, without I/O."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from valkey.crc import key_slot

from shadowserve_dataplane.errors import PeerProtocolError

SLOTS = 16384
"""Hash slots of a cluster (cluster specification, "Key distribution model")."""


class Topology(StrEnum):
    """How the store is laid out; the word used in settings and in `?topology=`."""

    STANDALONE = "Standalone"
    CLUSTER = "Cluster"


class Address(NamedTuple):
    """Where a store process listens; a host name or an IP address without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class SlotRange:
    """Slots `first` to `last`, both included, served by `address`."""

    first: int
    last: int
    address: Address


@dataclass(frozen=True, slots=True, eq=False)
class SlotMap:
    """The shard of every slot, `None` where no shard serves it. Compare by identity: a refresh makes a new one."""

    owners: tuple[Address | None, ...]
    addresses: tuple[Address, ...] = field(init=False)
    """All shards, each once, in slot order."""

    def __post_init__(self) -> None:
        shards = dict.fromkeys(owner for owner in self.owners if owner is not None)
        object.__setattr__(self, "addresses", tuple(shards))

    @classmethod
    def single(cls, address: Address) -> "SlotMap":
        """Return the map of a standalone store: every slot is at `address`."""
        return cls((address,) * SLOTS)

    @classmethod
    def of(cls, ranges: Iterable[SlotRange]) -> "SlotMap":
        """Return the map that says what `ranges` say; raises `ValueError` for slots outside 0..16383."""
        owners: list[Address | None] = [None] * SLOTS
        for part in ranges:
            if not 0 <= part.first <= part.last < SLOTS:
                raise ValueError(f"slots {part.first}-{part.last} at {part.address} are outside 0-{SLOTS - 1}")
            owners[part.first : part.last + 1] = [part.address] * (part.last - part.first + 1)
        return cls(tuple(owners))

    def moved(self, slot: int, address: Address) -> "SlotMap":
        """Return this map with one slot at `address`."""
        return SlotMap((*self.owners[:slot], address, *self.owners[slot + 1 :]))

    def address_of(self, slot: int) -> Address | None:
        """Return the shard of `slot`, or None when no shard serves it."""
        return self.owners[slot]


@dataclass(frozen=True, slots=True)
class Redirect:
    """A shard's answer that `slot` is elsewhere: for good (MOVED), or for this one command (ASK)."""

    slot: int
    address: Address
    ask: bool

    @classmethod
    def parse(cls, message: str, sender: Address) -> "Redirect | None":
        """Return the redirect in the error reply `message` of `sender`, or None when it is none.

        An empty host means the sender's own: `MOVED 3999 :6381`.
        """
        match message.split(" "):
            case ["MOVED" | "ASK" as word, slot, where] if slot.isdecimal() and int(slot) < SLOTS:
                host, _, port = where.rpartition(":")
                if not port.isdecimal() or not 0 < int(port) < 65536:
                    return None
                return cls(int(slot), Address(host.strip("[]") or sender.host, int(port)), word == "ASK")
        return None


def slot_of(name: bytes) -> int:
    """Return the hash slot of the key `name`: CRC16 of it, or of its `{hash tag}`, modulo 16384."""
    return int(key_slot(name))


def parse_cluster_slots(reply: object, sender: Address) -> SlotMap:
    """Return the slot map in `sender`'s reply to CLUSTER SLOTS: `[[first, last, [host, port, id, ...], ...], ...]`.

    Only the first node of every range, its primary, is used. A shard that does not know its own host (nil, `""`, `?`)
    is where the sender is, as the specification says. Raises `PeerProtocolError` for anything else.
    """
    if not isinstance(reply, list):
        raise PeerProtocolError(f"{sender}: CLUSTER SLOTS answered {reply!r}, not a list")
    try:
        return SlotMap.of(_slot_range(entry, sender) for entry in reply)
    except ValueError as error:
        raise PeerProtocolError(f"{sender}: CLUSTER SLOTS: {error}") from error


def _slot_range(entry: object, sender: Address) -> SlotRange:
    match entry:
        case [int(first), int(last), [host, int(port), *_], *_] if 0 < port < 65536:
            name = host.decode("utf-8", "replace") if isinstance(host, bytes) else ""
            return SlotRange(first, last, Address(name if name not in ("", "?") else sender.host, port))
    raise ValueError(f"cannot be understood: {entry!r}")
