"""The promises of `Cluster`, held by the fake here; `e2e_tests/test_e2e_operator.py` runs them on a real API server."""

import pytest
from cluster_contract import CONTRACT, Check, config_map
from fakes import FakeCluster

from shadowserve_operator.errors import ImpossibleCall
from shadowserve_operator.kinds import CONFIG_MAP, SECRET, Ref


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
async def test_the_fake_keeps_the_contract(check: Check) -> None:
    await check(FakeCluster("default"))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"labels": {}}, "nobody could tell that it is ours"),
        ({"ownerReferences": []}, "it would outlive"),
        ({"namespace": ""}, "no namespace"),
    ],
)
async def test_an_impossible_call_is_refused(change: dict[str, object], complaint: str) -> None:
    manifest = config_map("a", {"k": "v"})
    manifest["metadata"] |= change
    with pytest.raises(ImpossibleCall, match=complaint):
        await FakeCluster("default").apply(manifest)


async def test_what_an_owner_owns_goes_with_it() -> None:
    cluster = FakeCluster("default")
    await cluster.apply(config_map("a", {}))
    owner = cluster.put({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "own", "namespace": "default"}})
    owned = config_map("b", {})
    owned["metadata"]["ownerReferences"][0]["uid"] = owner["metadata"]["uid"]
    await cluster.apply(owned)
    await cluster.delete(Ref(SECRET, "default", "own"))
    assert [body["metadata"]["name"] for body in await cluster.list(CONFIG_MAP)] == ["a"]
