"""What the servers of a managed store say of themselves and of one another, as CLUSTER NODES tells it. Pure.

Terms are those of the cluster specification: a primary serves slots, a replica follows one, a slot under way is
migrating at its source and importing at its target.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from shadowserve_crds import names

SLOTS = 16384


class BadView(Exception):
    """A server said something that is no CLUSTER NODES."""


@dataclass(frozen=True, slots=True)
class Member:
    """A pod of the store: `number` is its ordinal, `address` its IP, `host` its name in certificates."""

    pod: str
    number: int
    address: str
    host: str
    port: int = names.STORE_PORT


@dataclass(frozen=True, slots=True)
class Known:
    """A server as another one, or itself, knows it; `follows` is the id of its primary, "" for a primary."""

    id: str
    address: str
    follows: str
    slots: frozenset[int]


@dataclass(frozen=True, slots=True)
class ServerView:
    """What one server says. `migrating` and `importing` are slots under way, with the id of the other side.

    `agrees`: in its view the cluster works; it answers no command on keys before. `policy`: what it gives up first.
    """

    member: Member
    id: str
    known: Mapping[str, Known]
    migrating: Mapping[int, str]
    importing: Mapping[int, str]
    agrees: bool = True
    policy: str = ""

    @property
    def slots(self) -> frozenset[int]:
        """The slots that it serves by its own account."""
        me = self.known[self.id]
        return me.slots if not me.follows else frozenset()

    @property
    def follows(self) -> str:
        """The id of its primary; "" if it is one."""
        return self.known[self.id].follows


def parse_nodes(member: Member, text: str, agrees: bool = True) -> ServerView:
    """Return what a server's CLUSTER NODES says. Raises `BadView`."""
    known: dict[str, Known] = {}
    me, moving = "", []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 8:
            raise BadView(f"{member.pod}: CLUSTER NODES says {line!r}")
        flags = words[2].split(",")
        if "handshake" in flags:  # its name is not known yet
            continue
        name, parts = words[0], words[8:]
        slots = frozenset(slot for part in parts if not part.startswith("[") for slot in _range(part))
        follows = words[3] if words[3] != "-" else ""
        known[name] = Known(name, words[1].split("@")[0].rpartition(":")[0], follows, slots)
        if "myself" in flags:
            me, moving = name, [part[1:-1] for part in parts if part.startswith("[")]
    if not me:
        raise BadView(f"{member.pod}: CLUSTER NODES names no server as itself")
    pairs = [(part.partition("-"), part.rpartition("-")) for part in moving]
    migrating = {int(first[0]): last[2] for first, last in pairs if "->-" in "".join(first)}
    importing = {int(first[0]): last[2] for first, last in pairs if "-<-" in "".join(first)}
    return ServerView(member, me, known, migrating, importing, agrees)


def ranges(slots: Iterable[int]) -> list[tuple[int, int]]:
    """Return slots as ranges, both ends included."""
    found: list[tuple[int, int]] = []
    for slot in sorted(slots):
        if found and found[-1][1] == slot - 1:
            found[-1] = (found[-1][0], slot)
        else:
            found.append((slot, slot))
    return found


def _range(text: str) -> range:
    first, _, last = text.partition("-")
    try:
        return range(int(first), int(last or first) + 1)
    except ValueError as error:
        raise BadView(f"CLUSTER NODES names the slots {text!r}") from error
