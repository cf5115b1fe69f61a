"""Which data plane every injected pod is told to use: a card of its host while one serves, else none. Pure.

None means the next place of the PrefixCache's order: the sidecar runs the pipeline itself, or the engine computes. A
card that failed is left at once and taken back only after it has served for a while without a break: nothing is
remembered for that, Kubernetes tells since when a pod is ready.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from shadowserve_crds.placement import PlaceName
from shadowserve_operator.desired.pairing import Pairing

RETURN_AFTER = timedelta(seconds=30)
"""How long a card that was left has to serve before its pods go back to it."""


@dataclass(frozen=True, slots=True)
class DataPlane:
    """A data-plane pod on a card. `ready_since` is None while it does not serve, or its node is silent."""

    card: str
    endpoint: str
    ready_since: datetime | None


@dataclass(frozen=True, slots=True)
class EnginePod:
    """An injected pod. `told` is its annotation now: None if it has none yet, "" if it was told to use none."""

    name: str
    uid: str
    node: str
    told: str | None


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a pod is to be told, and why; "" is none."""

    pod: EnginePod
    endpoint: str
    reason: str

    @property
    def changes(self) -> bool:
        """Whether the pod has to be told."""
        return self.pod.told != self.endpoint


def uses_cards(order: Sequence[PlaceName]) -> bool:
    """Return whether pods are ever told to use a card: only where cards come first."""
    return order[0] is PlaceName.DPU


def place_of(endpoint: str | None, order: Sequence[PlaceName]) -> PlaceName | None:
    """Return where an injected pod restores that was told this endpoint; None: nowhere, its engine computes."""
    if endpoint:
        return PlaceName.DPU
    return PlaceName.HOST if PlaceName.HOST in order else None


def assign(
    pods: Sequence[EnginePod],
    pairing: Pairing,
    planes: Mapping[str, DataPlane],
    order: Sequence[PlaceName],
    now: datetime,
) -> tuple[Assignment, ...]:
    """Return an assignment for every pod that has a node; `planes` are by card."""
    return tuple(_assign(pod, pairing, planes, order, now) for pod in pods if pod.node)


def _assign(
    pod: EnginePod, pairing: Pairing, planes: Mapping[str, DataPlane], order: Sequence[PlaceName], now: datetime
) -> Assignment:
    if PlaceName.DPU not in order:
        return Assignment(pod, "", "the cache's spec.placement.order does not name DPU")
    if not uses_cards(order):
        return Assignment(pod, "", "the cache's spec.placement.order names the host first")
    cards = pairing.cards_of(pod.node)
    if not cards:
        return Assignment(pod, "", f"no card is paired with host {pod.node}")
    serving = [planes[card] for card in cards if card in planes and planes[card].ready_since is not None]
    for plane in serving:
        if plane.endpoint == pod.told:
            return Assignment(pod, plane.endpoint, f"the data plane on {plane.card} serves")
    rested = [plane for plane in serving if pod.told is None or _rested(plane, now)]
    if rested:
        plane = rested[zlib.crc32(pod.uid.encode()) % len(rested)]
        return Assignment(pod, plane.endpoint, f"the data plane on {plane.card} serves")
    if serving:
        seconds = RETURN_AFTER.total_seconds()
        return Assignment(pod, "", f"the data plane on {serving[0].card} serves again, but not for {seconds:g} s yet")
    return Assignment(pod, "", f"no data plane serves on {', '.join(cards)}")


def _rested(plane: DataPlane, now: datetime) -> bool:
    return plane.ready_since is not None and now - plane.ready_since >= RETURN_AFTER
