"""What is told of pods that run without the sidecar that they ask for: an Event of each, a condition of the cache."""

from datetime import UTC, datetime, timedelta

import pytest
from cache_on_a_cluster import a_cluster, become_ready, conditions, message, until_quiet
from cli_pictures import pod
from fakes import FakeCluster

from shadowserve_crds import names
from shadowserve_operator.kinds import POD, Json, Ref
from shadowserve_operator.telling import tell_skipped

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def left_out(skipped: str = "") -> Json:
    body = pod("a", injected=False)
    if skipped:
        body["metadata"]["annotations"][names.SKIPPED_ANNOTATION] = skipped
    return body


@pytest.mark.parametrize(
    ("skipped", "says"), [("it runs a shell", "it runs a shell"), ("", "the admission webhook did not see it")]
)
async def test_it_is_recorded_once_with_the_reason(skipped: str, says: str) -> None:
    cluster = FakeCluster("default")
    assert await tell_skipped(cluster, left_out(skipped), NOW)
    assert not await tell_skipped(cluster, left_out(skipped), NOW + timedelta(hours=1))
    (event,) = cluster.events
    assert says in event["message"]
    assert event["involvedObject"]["name"] == "a"


async def test_what_somebody_else_wrote_is_cut_short_and_recorded_once_however_often_it_changes() -> None:
    cluster = a_cluster()
    await until_quiet(cluster)
    become_ready(cluster)
    cluster.put(left_out("first\nsecond" + 20_000 * " third"))
    await until_quiet(cluster)
    assert "Pod a: first second third" in message(cluster, "PodsInjected")
    assert len(message(cluster, "PodsInjected")) < 1000
    events = FakeCluster("default")
    assert await tell_skipped(events, left_out("one reason"), NOW)
    assert not await tell_skipped(events, left_out("another reason"), NOW)
    assert len(events.events) == 1


def _ended() -> Json:
    return left_out() | {"status": {"phase": "Succeeded"}}


def _ours() -> Json:
    body = left_out()
    body["metadata"]["labels"][names.MANAGED_BY_LABEL] = names.MANAGED_BY
    return body


@pytest.mark.parametrize("body", [pod("a"), _ended(), _ours()], ids=["injected", "ended", "the store's"])
async def test_of_other_pods_there_is_nothing_to_tell(body: Json) -> None:
    cluster = FakeCluster("default")
    assert not await tell_skipped(cluster, body, NOW)
    assert cluster.events == []


async def test_the_cache_names_them_until_they_are_gone_and_is_ready_all_the_same() -> None:
    cluster = a_cluster()
    await until_quiet(cluster)
    become_ready(cluster)
    for number in range(7):
        body = left_out("it runs a shell" if number else "")
        body["metadata"]["name"] = f"pod-{number}"
        cluster.put(body)
    cluster.put(_ended())
    await until_quiet(cluster)
    assert conditions(cluster)["PodsInjected"] == ("False", "PodsWithoutSidecar")
    assert message(cluster, "PodsInjected") == (
        "these pods ask for it by a label and run without the sidecar: pod-0, pod-1, pod-2, pod-3, pod-4 and 2 more. "
        "Pod pod-0: the admission webhook did not see it when it was made; delete it, so that it is made anew"
    )
    assert conditions(cluster)["Ready"] == ("True", "Succeeded")
    for number in range(7):
        cluster.remove(Ref(POD, "default", f"pod-{number}"))
    await until_quiet(cluster)
    assert conditions(cluster)["PodsInjected"] == ("True", "Succeeded")
