"""Who acts: the Lease's holder, and nobody else."""

from datetime import UTC, datetime, timedelta

import pytest

from shadowserve_operator.kinds import Json
from shadowserve_operator.leader import Turn, decide, lease_manifest

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
