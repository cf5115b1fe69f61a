"""Which nodes a test bed has, what they are called, and which of them stand for cards. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from shadowserve_crds import names
from shadowserve_testbed.errors import TestbedError

CARD_TAINT = "shadowserve.io/card"
"""Keeps everything off card nodes that does not tolerate it; as on clusters with real cards."""
MOST_NODES = 20
_RATE = re.compile(r"\d+(\.\d+)?[kmg]?bit")


@dataclass(frozen=True, slots=True)
class Node:
    """A node. `host` is where a card sits, "" for a host; `rate` limits its link ("2gbit"), "" is unlimited."""

    name: str
    index: int
    host: str = ""
    rate: str = ""

    @property
    def labels(self) -> dict[str, str]:
        """Labels that tell which host a card sits in."""
        return {names.DEFAULT_HOST_LABEL: self.host} if self.host else {}


def make_nodes(hosts: int, cards: int, rates: Mapping[str, str] | None = None) -> tuple[Node, ...]:
    """Return `host-0`, ... and `card-0`, ...; cards are spread over the hosts. Raises `TestbedError`."""
    if hosts < 1 or cards < 0 or hosts + cards > MOST_NODES:
        raise TestbedError(f"{hosts} hosts and {cards} cards: at least one host, at most {MOST_NODES} nodes")
    rates = rates or {}
    found = [(f"host-{number}", "") for number in range(hosts)]
    found += [(f"card-{number}", f"host-{number % hosts}") for number in range(cards)]
    known = {name for name, _ in found}
    for name, rate in rates.items():
        if name not in known:
            raise TestbedError(f"--link {name}={rate}: there is no such node, only {', '.join(sorted(known))}")
        if not _RATE.fullmatch(rate):
            raise TestbedError(f"--link {name}={rate}: write a rate as tc(8) does, for example 2gbit or 500mbit")
    return tuple(Node(name, index, host, rates.get(name, "")) for index, (name, host) in enumerate(found))
