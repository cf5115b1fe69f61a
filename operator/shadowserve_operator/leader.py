"""Of several operators one acts: it holds a Lease and renews it. The rule is pure; `hold` does what it says.

Whoever finds the Lease without a holder, or not renewed for its whole duration, takes it. Of two who take the same one
the second write conflicts. Only where there is none yet two could both make it: whoever does waits one renewal before
acting. An operator that is asked to end gives the Lease back, so that the next one need not wait for it to run out.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from shadowserve_crds import names
from shadowserve_operator.cluster import Cluster
from shadowserve_operator.errors import ApiUnavailable, Conflict, LeadershipLost, OperatorError
from shadowserve_operator.kinds import LEASE, Json, Ref

LEASE_NAME = "shadowserve-operator"
DURATION = timedelta(seconds=15)
RENEW = timedelta(seconds=5)
_log = logging.getLogger(__name__)


class Turn(StrEnum):
    """What an operator may do about the Lease now."""

    TAKE = "take"
    RENEW = "renew"
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class Decision:
    """A turn, and why."""

    turn: Turn
    reason: str


def decide(lease: Json | None, identity: str, now: datetime) -> Decision:
    """Return what the operator called `identity` does about the Lease."""
    spec = (lease or {}).get("spec") or {}
    holder, renewed = spec.get("holderIdentity", ""), spec.get("renewTime")
    if not holder or not renewed:
        return Decision(Turn.TAKE, "nobody holds it")
    if holder == identity:
        return Decision(Turn.RENEW, "it is held by this operator")
    age = now - datetime.fromisoformat(renewed)
    if age > timedelta(seconds=spec.get("leaseDurationSeconds", DURATION.total_seconds())):
        return Decision(Turn.TAKE, f"{holder} has not renewed it for {age.total_seconds():.0f} s")
    return Decision(Turn.WAIT, f"{holder} holds it")


def lease_manifest(namespace: str, identity: str, now: datetime, before: Json | None) -> Json:
    """Return the Lease as its holder writes it; a conflict if it is not `before` any more."""
    metadata: Json = {
        "name": LEASE_NAME,
        "namespace": namespace,
        "labels": {names.MANAGED_BY_LABEL: names.MANAGED_BY},
    }
    if before is not None:
        metadata["resourceVersion"] = before["metadata"]["resourceVersion"]
    seconds = int(DURATION.total_seconds())
    when = now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    spec = {"holderIdentity": identity, "leaseDurationSeconds": seconds, "renewTime": when}
    return {"apiVersion": LEASE.api_version, "kind": LEASE.name, "metadata": metadata, "spec": spec}


async def acquire(
    cluster: Cluster, namespace: str, identity: str, clock: Callable[[], datetime], looked: Callable[[], None]
) -> None:
    """Return once this operator holds the Lease. `looked` is told whenever it was read."""
    said = ""
    while True:
        try:
            lease = await cluster.get(Ref(LEASE, namespace, LEASE_NAME))
            looked()
            decision = decide(lease, identity, clock())
            if decision.reason != said:
                said = decision.reason
                _log.info("leader election: %s", said)
            if decision.turn is not Turn.WAIT:
                taken = await cluster.apply(lease_manifest(namespace, identity, clock(), lease))
                if lease is None:
                    await asyncio.sleep(RENEW.total_seconds())
                    await cluster.apply(lease_manifest(namespace, identity, clock(), taken))
                return
        except (ApiUnavailable, Conflict) as error:
            _log.info("leader election: %s", error)
        await asyncio.sleep(RENEW.total_seconds())


async def hold(
    cluster: Cluster, namespace: str, identity: str, clock: Callable[[], datetime], looked: Callable[[], None]
) -> None:
    """Renew the Lease for ever. Raises `LeadershipLost` once somebody else has it, or it was not renewed in time.

    `looked` is told whenever it was read.
    """
    renewed = clock()
    while True:
        await asyncio.sleep(RENEW.total_seconds())
        try:
            lease = await cluster.get(Ref(LEASE, namespace, LEASE_NAME))
            looked()
            decision = decide(lease, identity, clock())
            if lease is not None and decision.turn is not Turn.RENEW:
                raise LeadershipLost(decision.reason)
            await cluster.apply(lease_manifest(namespace, identity, clock(), lease))
            renewed = clock()
        except (ApiUnavailable, Conflict) as error:
            _log.warning("leader election: %s", error)
        if clock() - renewed >= DURATION - RENEW:
            raise LeadershipLost(f"it could not be renewed for {(clock() - renewed).total_seconds():.0f} s")


async def release(cluster: Cluster, namespace: str, identity: str, clock: Callable[[], datetime]) -> None:
    """Give the Lease back, if this operator holds it; one that cannot be given back runs out."""
    try:
        lease = await cluster.get(Ref(LEASE, namespace, LEASE_NAME))
        if lease is not None and decide(lease, identity, clock()).turn is Turn.RENEW:
            await cluster.apply(lease_manifest(namespace, "", clock(), lease))
    except OperatorError as error:
        _log.warning("leader election: the Lease was not given back: %s", error)
