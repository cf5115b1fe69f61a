"""Who acts: the Lease's holder, and nobody else."""

from datetime import UTC, datetime, timedelta

import pytest
from fakes import FakeCluster

from shadowserve_operator.kinds import LEASE, Json, Ref
from shadowserve_operator.leader import LEASE_NAME, Turn, acquire, decide, lease_manifest, release

OURS = Ref(LEASE, "system", LEASE_NAME)
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def held_by(who: str, ago: float) -> Json:
    before = {"metadata": {"resourceVersion": "5"}}
    return lease_manifest("system", who, NOW - timedelta(seconds=ago), before)


@pytest.mark.parametrize(
    ("lease", "turn", "reason"),
    [
        (None, Turn.TAKE, "nobody holds it"),
        (held_by("me", 3), Turn.RENEW, "it is held by this operator"),
        (held_by("other", 3), Turn.WAIT, "other holds it"),
        (held_by("other", 16), Turn.TAKE, "other has not renewed it for 16 s"),
    ],
)
def test_one_operator_acts(lease: Json | None, turn: Turn, reason: str) -> None:
    decision = decide(lease, "me", NOW)
    assert (decision.turn, decision.reason) == (turn, reason)


def test_a_lease_is_renewed_only_as_it_was_seen() -> None:
    assert held_by("me", 0)["metadata"]["resourceVersion"] == "5"
    assert "resourceVersion" not in lease_manifest("system", "me", NOW, None)["metadata"]


async def test_a_lease_that_was_given_back_is_taken_at_once() -> None:
    cluster = FakeCluster("system")
    cluster.put(lease_manifest("system", "me", NOW, None))
    await release(cluster, "system", "me", lambda: NOW)
    await acquire(cluster, "system", "other", lambda: NOW, lambda: None)
    assert cluster.objects[OURS]["spec"]["holderIdentity"] == "other"


async def test_a_lease_of_another_is_not_given_back() -> None:
    cluster = FakeCluster("system")
    cluster.put(lease_manifest("system", "other", NOW, None))
    await release(cluster, "system", "me", lambda: NOW)
    assert cluster.objects[OURS]["spec"]["holderIdentity"] == "other"
