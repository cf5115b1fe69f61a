"""What `shadowserve status` says of small clusters."""

from io import StringIO
from typing import Any

import pytest
from cli_pictures import NOW, cache, condition, data_plane, lease, nodes, picture, pod, pool
from fakes import FakeCluster
from rich.console import Console

from shadowserve_cli.picture import observe_picture
from shadowserve_cli.status import show
from shadowserve_cli.status_report import Report, report
from shadowserve_crds import names
from shadowserve_crds.dpubinding import DPUBinding
from shadowserve_operator.errors import Forbidden
from shadowserve_operator.kinds import Json, Kind


def screen(found: Report) -> str:
    written = StringIO()
    show(found, Console(file=written, width=200), "default")
    return written.getvalue()


def test_a_cluster_where_all_is_well_says_so_on_one_screen() -> None:
    pods = (pod("a", told="10.1.0.9:9464"), data_plane())
    found = report(picture(pods=pods, pools=(pool(cacheRef={"name": "kv"}),)), NOW)
    assert found.troubles == ()
    assert [(each.name, each.place, each.why) for each in found.pods] == [
        ("a", "card", "the data plane on card-0 serves")
    ]
    shown = screen(found)
    assert "operator-1 acts" in shown
    assert "nothing is wrong" in shown
    assert len(shown.splitlines()) < 20


@pytest.mark.parametrize(
    ("told", "order", "ready", "place", "why"),
    [
        ("", ["DPU", "Host"], False, "host", "no data plane serves on card-0"),
        ("", ["DPU"], False, "none: computes", "no data plane serves on card-0"),
        ("", ["Host"], True, "host", "the cache's spec.placement.order does not name DPU"),
        (None, ["DPU", "Host"], True, "host", "serves; the operator has not told the pod yet"),
        ("10.1.0.9:9464", ["DPU", "Host"], False, "card", "no data plane serves on card-0; the operator has not told"),
    ],
)
def test_where_a_pod_restores_and_why(told: str | None, order: list[str], ready: bool, place: str, why: str) -> None:
    pods = (pod("a", told=told), data_plane(ready))
    (line,) = report(picture(pods=pods, caches=(cache(placement={"order": order}),)), NOW).pods
    assert line.place == place
    assert why in line.why


def test_nothing_is_guessed_about_pods_when_nodes_may_not_be_read() -> None:
    hidden = picture(pods=(pod("a", told=""),), nodes=(), unreadable=("nodes: you have no right to list them",))
    assert report(hidden, NOW).pods[0].why == "the operator told it so"
    assert "not looked at: nodes" in screen(report(hidden, NOW))


def test_every_false_condition_comes_with_what_to_do() -> None:
    said = condition("StoreReady", "False", "SecretNotFound", "Secret login does not exist in default: create it")
    summary = condition("Ready", "False", "SecretNotFound", "StoreReady: ...")
    (trouble,) = report(picture(caches=(cache(said, summary),)), NOW).troubles
    assert trouble.about == "pfc default/kv StoreReady"
    assert "create it" in trouble.problem
    assert trouble.look == "kubectl -n default get secrets"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"lease": None}, "nobody holds its Lease"),
        ({"lease": lease(age=600)}, "has not renewed it for 600 s"),
        ({"invalid": ("PrefixCache kv: spec.codec.tier: wrong",)}, "spec.codec.tier"),
        ({"pods": (pod("a", injected=False),)}, "the admission webhook did not see it when it was made"),
    ],
)
def test_what_is_wrong_around_the_resources(changes: dict[str, Any], problem: str) -> None:
    (trouble,) = report(picture(**changes), NOW).troubles
    assert problem in trouble.problem
    assert trouble.look


def test_a_binding_by_hand_that_pairs_nothing_is_told_once() -> None:
    said = condition("PairingValid", "False", "CardNotFound", "spec.dpuNode card-9 is no node; correct it")
    spec = {"hostNode": "host-0", "dpuNode": "card-9"}
    binding = DPUBinding.parse({"metadata": {"name": "mine"}, "spec": spec, "status": {"conditions": [said]}})
    (trouble,) = report(picture(bindings=(binding,)), NOW).troubles
    assert (trouble.about, trouble.problem) == ("dpub mine PairingValid", said["message"])
    told = cache(condition("PairingResolved", "False", "HostNotFound", f"{said['message']} (and 3 more)"))
    assert len(report(picture(bindings=(binding,), caches=(told,)), NOW).troubles) == 1


def test_a_skipped_pod_tells_the_reason_that_the_webhook_gave() -> None:
    body = pod("a", injected=False)
    body["metadata"]["annotations"][names.SKIPPED_ANNOTATION] = "the pod has 2 containers"
    (trouble,) = report(picture(pods=(body,)), NOW).troubles
    assert (trouble.problem, trouble.look) == ("the pod has 2 containers", "shadowserve explain a -n default")


def test_words_in_brackets_are_shown_as_they_are() -> None:
    said = condition("StoreReady", "False", "Unreachable", "nothing answers at [fd00::1]:6379 [/red]")
    assert "[fd00::1]:6379 [/red]" in screen(report(picture(caches=(cache(said),)), NOW))


class Guarded(FakeCluster):
    """A cluster whose nodes and Lease the asker may not read."""

    async def list(self, kind: Kind, namespace: str = "", labels: Any = None) -> tuple[Json, ...]:
        if kind.name == "Node":
            raise Forbidden("nodes is forbidden")
        return await super().list(kind, namespace, labels)


async def test_what_may_not_be_read_is_told_and_the_rest_shown() -> None:
    cluster = Guarded("default")
    cluster.put({**pod("a")})
    metadata = {"name": "kv", "namespace": "default"}
    cluster.put({"apiVersion": names.API_VERSION, "kind": "PrefixCache", "metadata": metadata, "spec": {}})
    seen = await observe_picture(cluster, "default", "shadowserve-system")
    assert [each.name for each in seen.caches] == ["kv"]
    assert len(seen.pods) == 1
    assert seen.unreadable == ("nodes: you have no right to list them",)
    assert not cluster.writes


def test_a_silent_card_is_left() -> None:
    pods = (pod("a", told=""), data_plane())
    (line,) = report(picture(pods=pods, nodes=nodes(ready=False)), NOW).pods
    assert (line.place, line.why) == ("host", "no data plane serves on card-0")


def test_pods_that_nobody_replaces_and_that_have_older_settings_are_told_of() -> None:
    of_pool = pod("b", told="")
    of_pool["metadata"]["labels"][names.POOL_LABEL] = "chat"
    edited = cache(limits={"lookupDeadline": "1s"})
    found = report(picture(pods=(pod("a", told=""), of_pool), caches=(edited,)), NOW)
    (trouble,) = found.troubles
    assert trouble.about == "pod default/a"
    assert "older settings than PrefixCache kv gives now" in trouble.problem
    assert trouble.look == "kubectl -n default delete pod a"
