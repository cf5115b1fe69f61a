"""What every `Cluster` has to do. Each check is given an empty one with the namespace `default`."""

from collections.abc import Awaitable, Callable
from typing import Protocol

import pytest

from shadowserve_crds import names
from shadowserve_operator.cluster import Cluster
from shadowserve_operator.errors import Conflict, Refused
from shadowserve_operator.kinds import CONFIG_MAP, EVENT, PREFIX_CACHE, SERVICE, Json, Ref


class Check(Protocol):
    __name__: str

    def __call__(self, cluster: Cluster) -> Awaitable[None]: ...


def config_map(name: str, data: dict[str, str], namespace: str = "default") -> Json:
    """Return a manifest that the operator could apply."""
    owner = {"apiVersion": names.API_VERSION, "kind": "PrefixCache", "name": "gone", "uid": "0"}
    labels = {names.MANAGED_BY_LABEL: names.MANAGED_BY, "test": "contract"}
    metadata = {"name": name, "namespace": namespace, "labels": labels, "ownerReferences": [owner]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def _ref(name: str) -> Ref:
    return Ref(CONFIG_MAP, "default", name)


async def nothing_is_found_where_nothing_is(cluster: Cluster) -> None:
    assert await cluster.get(_ref("nothing")) is None
    await cluster.delete(_ref("nothing"))
    await cluster.annotate(_ref("nothing"), {"a": "b"})
    await cluster.write_status(Ref(PREFIX_CACHE, "default", "nothing"), {"pools": 1})
    assert await cluster.get(Ref(PREFIX_CACHE, "default", "nothing")) is None


async def applying_twice_changes_nothing(cluster: Cluster) -> None:
    first = await cluster.apply(config_map("twice", {"k": "v"}))
    second = await cluster.apply(config_map("twice", {"k": "v"}))
    assert first["metadata"]["resourceVersion"] == second["metadata"]["resourceVersion"]
    assert second["data"] == {"k": "v"}


async def what_is_no_longer_applied_goes(cluster: Cluster) -> None:
    await cluster.apply(config_map("shrinks", {"k": "v", "old": "1"}))
    assert (await cluster.apply(config_map("shrinks", {"k": "w"})))["data"] == {"k": "w"}


async def what_was_changed_meanwhile_is_not_overwritten(cluster: Cluster) -> None:
    seen = await cluster.apply(config_map("raced", {"k": "v"}))
    await cluster.apply(config_map("raced", {"k": "w"}))
    late = config_map("raced", {"k": "x"})
    late["metadata"]["resourceVersion"] = seen["metadata"]["resourceVersion"]
    with pytest.raises(Conflict):
        await cluster.apply(late)


async def entries_of_others_go_when_a_list_is_overwritten(cluster: Cluster) -> None:
    ours: Json = {**config_map("listed-ports", {}), "kind": "Service"}
    del ours["data"]
    port = {"name": "http", "port": 80, "protocol": "TCP"}
    await cluster.apply({**ours, "spec": {"ports": [{**port, "port": 81}, {**port, "name": "more", "port": 82}]}})
    now = await cluster.overwrite({**ours, "spec": {"ports": [port]}})
    assert [(each["name"], each["port"]) for each in now["spec"]["ports"]] == [("http", 80)]
    await cluster.delete(Ref(SERVICE, "default", "listed-ports"))


async def lists_are_in_order_and_by_label(cluster: Cluster) -> None:
    await cluster.apply(config_map("order-b", {}))
    await cluster.apply(config_map("order-a", {}))
    wanted = {"test": "contract", names.MANAGED_BY_LABEL: ""}
    found = [body["metadata"]["name"] for body in await cluster.list(CONFIG_MAP, "default", wanted)]
    assert [name for name in found if name.startswith("order-")] == ["order-a", "order-b"]
    assert await cluster.list(CONFIG_MAP, "default", {"test": "other"}) == ()


async def listed_objects_say_what_they_are(cluster: Cluster) -> None:
    await cluster.apply(config_map("listed", {}))
    (found,) = await cluster.list(CONFIG_MAP, "default", {"test": "contract"})
    assert (found["apiVersion"], found["kind"]) == ("v1", "ConfigMap")


async def only_the_very_object_is_deleted(cluster: Cluster) -> None:
    await cluster.apply(config_map("precious", {}))
    with pytest.raises(Conflict):
        await cluster.delete(_ref("precious"), uid="00000000-0000-0000-0000-000000000000")
    there = await cluster.get(_ref("precious"))
    assert there is not None
    await cluster.delete(_ref("precious"), uid=there["metadata"]["uid"])
    assert await cluster.get(_ref("precious")) is None


async def annotations_come_and_go(cluster: Cluster) -> None:
    await cluster.apply(config_map("noted", {}))
    await cluster.annotate(_ref("noted"), {"x/a": "1", "x/b": ""})
    await cluster.annotate(_ref("noted"), {"x/a": None})
    noted = await cluster.get(_ref("noted"))
    assert noted is not None
    assert noted["metadata"]["annotations"] == {"x/b": ""}


async def an_event_of_a_name_is_recorded_once(cluster: Cluster) -> None:
    about = {"apiVersion": "v1", "kind": "ConfigMap", "name": "a", "namespace": "default", "uid": "1"}
    event = {"apiVersion": "v1", "kind": "Event", "metadata": {"name": "contract", "namespace": "default"}}
    event |= {"involvedObject": about, "type": "Normal", "reason": "Seen", "message": "words"}
    await cluster.create_event(event)
    with pytest.raises(Conflict):
        await cluster.create_event(event)
    await cluster.delete(Ref(EVENT, "default", "contract"))


async def an_unknown_namespace_is_refused_in_words(cluster: Cluster) -> None:
    with pytest.raises(Refused, match='namespaces "nowhere" not found'):
        await cluster.apply(config_map("lost", {}, namespace="nowhere"))


CONTRACT: tuple[Callable[[Cluster], Awaitable[None]], ...] = (
    nothing_is_found_where_nothing_is,
    applying_twice_changes_nothing,
    what_is_no_longer_applied_goes,
    what_was_changed_meanwhile_is_not_overwritten,
    entries_of_others_go_when_a_list_is_overwritten,
    lists_are_in_order_and_by_label,
    listed_objects_say_what_they_are,
    only_the_very_object_is_deleted,
    annotations_come_and_go,
    an_event_of_a_name_is_recorded_once,
    an_unknown_namespace_is_refused_in_words,
)
