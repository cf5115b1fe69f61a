"""What is told of pods that run without the sidecar that they ask for: an Event of each, a condition of the cache."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from cache_on_a_cluster import a_cluster, become_ready, conditions, message, until_quiet
from cli_pictures import pod
from fakes import FakeCluster

from shadowserve_crds import names
from shadowserve_operator.gathering import Gathered
from shadowserve_operator.kinds import POD, Json, Ref
from shadowserve_operator.telling import tell_left_out

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
    assert await tell_left_out(cluster, [left_out(skipped)], NOW)
    assert not await tell_left_out(cluster, [left_out(skipped)], NOW + timedelta(hours=1))
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
    assert await tell_left_out(events, [left_out("one reason")], NOW)
    assert not await tell_left_out(events, [left_out("another reason")], NOW)
    assert len(events.events) == 1


def _replicas(number: int, of: str = "chat-7f9c") -> list[Json]:
    """Return pods that a ReplicaSet made, in no order."""
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": of, "uid": f"uid-of-{of}", "controller": True}
    found = []
    for each in reversed(range(number)):
        body = left_out("it runs a shell")
        body["metadata"] |= {"name": f"{of}-{each}", "uid": f"{of}-{each}", "ownerReferences": [owner]}
        found.append(body)
    return found


async def test_many_that_are_made_at_once_are_one_event_about_who_made_them() -> None:
    cluster = FakeCluster("default")
    assert await tell_left_out(cluster, _replicas(40), NOW) == 1
    (event,) = cluster.events
    named = "chat-7f9c-0, chat-7f9c-1, chat-7f9c-10, chat-7f9c-11, chat-7f9c-12 and 35 more"
    assert event["message"] == (f"40 pods run without the sidecar: {named}. Pod chat-7f9c-0: it runs a shell")
    about = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "namespace": "default", "name": "chat-7f9c"}
    assert event["involvedObject"] == about | {"uid": "uid-of-chat-7f9c"}
    assert await tell_left_out(cluster, _replicas(41), NOW + timedelta(hours=1)) == 0, "as after a restart of ours"


async def test_pods_of_several_controllers_and_of_none_have_an_event_each() -> None:
    cluster = FakeCluster("default")
    alone, injected = left_out("it runs a shell"), pod("b")
    pods = [*_replicas(3), alone, *_replicas(2, "other"), *_replicas(1, "third"), injected]
    assert await tell_left_out(cluster, pods, NOW) == 4
    about = {(each["involvedObject"]["kind"], each["involvedObject"]["name"]) for each in cluster.events}
    assert about == {("ReplicaSet", "chat-7f9c"), ("ReplicaSet", "other"), ("Pod", "a"), ("Pod", "third-0")}


async def test_what_comes_while_the_first_one_waits_is_handed_on_with_it() -> None:
    told, pause = list[list[str]](), asyncio.Event()

    async def hand_on(gathered: Sequence[str]) -> None:
        told.append(list(gathered))

    together = Gathered(hand_on, pause.wait)
    first = asyncio.ensure_future(together.add("a"))
    await asyncio.wait([first], timeout=0)
    await together.add("b")
    assert told == []
    pause.set()
    await first
    await together.add("c")
    assert told == [["a", "b"], ["c"]]


def _ended() -> Json:
    return left_out() | {"status": {"phase": "Succeeded"}}


def _ours() -> Json:
    body = left_out()
    body["metadata"]["labels"][names.MANAGED_BY_LABEL] = names.MANAGED_BY
    return body


@pytest.mark.parametrize("body", [pod("a"), _ended(), _ours()], ids=["injected", "ended", "the store's"])
async def test_of_other_pods_there_is_nothing_to_tell(body: Json) -> None:
    cluster = FakeCluster("default")
    assert not await tell_left_out(cluster, [body], NOW)
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
