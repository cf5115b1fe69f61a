"""The operator's process on a real API server, without nodes: what it makes, repairs, refuses, and leaves behind."""

import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from operator_story import DEADLINE, cache, condition, create, get, node, operator_running, patch_status, pool, wait
from shadowserve_crds import names
from shadowserve_lab.home import REPOSITORY
from shadowserve_lab.processes import free_port
from shadowserve_operator.cluster import ApiCluster, Cluster
from shadowserve_testbed.api_server import ApiServer

sys.path.insert(0, str(REPOSITORY / "operator/tests"))

from cluster_contract import CONTRACT

pytestmark = pytest.mark.timeout(1800)  # the first time, the API server is built


@pytest.fixture
def operator(api: ApiServer, tmp_path: Path) -> Iterator[Path]:
    log = tmp_path / "operator.log"
    with operator_running(api, log):
        yield log


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
async def test_the_real_client_keeps_the_contract(api: ApiServer, check: Callable[[Cluster], Awaitable[None]]) -> None:
    async with ApiCluster(str(api.kubeconfig)) as cluster:
        try:
            await check(cluster)
        finally:
            api.kubectl("delete", "configmap", "-l", "test=contract")


def test_a_cache_is_made_repaired_settled_and_removed(api: ApiServer, operator: Path) -> None:
    create(api, node("host-0"))
    create(api, node("card-0", **{names.DEFAULT_HOST_LABEL: "host-0"}))
    create(api, cache("kv"))
    wait(operator, "store made", lambda: get(api, "statefulset", "kv-store") is not None)
    wait(operator, "status told", lambda: condition(api, "pfc/kv", "StoreReady") == "Pending")
    wait(operator, "binding made", lambda: get(api, "dpub", "card-0") is not None)
    patch_status(api, "statefulset/kv-store", replicas=1, readyReplicas=1)
    # no kubelet runs the server: the operator looks for it
    wait(operator, "store looked for", lambda: "0 of 1 store servers answer" in str(get(api, "pfc", "kv")))

    api.kubectl("delete", "service", "kv-store")
    wait(operator, "service made anew", lambda: get(api, "service", "kv-store") is not None)
    api.kubectl("scale", "statefulset", "kv-store", "--replicas=0")
    wait(operator, "replicas repaired", lambda: (get(api, "statefulset", "kv-store") or {})["spec"]["replicas"] == 1)

    wait(operator, "settled", lambda: _settled(api))
    before = _versions(api)
    time.sleep(12)  # longer than the operator waits for what is not ready: a writer would have written
    assert _versions(api) == before

    api.kubectl("delete", "pfc", "kv", "--timeout=90s")
    wait(operator, "binding removed", lambda: get(api, "dpub", "card-0") is None)
    api.kubectl("delete", "node", "host-0", "card-0")


def test_an_edit_of_a_cache_rolls_its_pools_unless_running_sidecars_are_told(api: ApiServer, operator: Path) -> None:
    def template() -> dict[str, Any]:
        found: dict[str, Any] = (get(api, "deployment", "chat") or {"spec": {"template": {}}})["spec"]["template"]
        return found

    def edit(what: str, **spec: Any) -> None:
        api.kubectl("patch", what, "--type=merge", "-p", json.dumps({"spec": spec}))

    def written() -> bool:
        """Whether the settings are those of the last edit."""
        about = (get(api, "configmap", "edited-config") or {"metadata": {}})["metadata"].get("annotations", {})
        generation = (get(api, "pfc", "edited") or {"metadata": {}})["metadata"].get("generation")
        return about.get(names.GENERATION_ANNOTATION) == str(generation)

    create(api, cache("edited"), pool("chat", cacheRef={"name": "edited"}))
    wait(operator, "engines made", template)
    before = template()
    edit("pfc/edited", codec={"tier": "Lossless"})
    wait(operator, "pods rolled", lambda: template() != before)
    assert "Lossless" in (get(api, "configmap", "edited-config") or {})["data"]["config.json"]
    rolled = template()
    edit("pfc/edited", placement={"order": ["Host"]})
    wait(operator, "settings written", written)
    edit("sspool/chat", replicas=2)  # after this the operator has looked at the pool with the new settings
    wait(operator, "scaled", lambda: (get(api, "deployment", "chat") or {})["spec"]["replicas"] == 2)
    assert template() == rolled
    api.kubectl("delete", "sspool", "chat", "--timeout=90s")
    api.kubectl("delete", "pfc", "edited", "--timeout=90s")


def _settled(api: ApiServer) -> bool:
    """Return whether nothing is written for a while."""
    before = _versions(api)
    time.sleep(3)
    return _versions(api) == before


def _versions(api: ApiServer) -> dict[str, str]:
    kinds = "pfc,dpub,configmap,secret,service,statefulset,daemonset"
    listed = json.loads(api.kubectl("get", kinds, "-o", "json"))["items"]
    return {f"{each['kind']}/{each['metadata']['name']}": each["metadata"]["resourceVersion"] for each in listed}


def _asked(port: int, path: str) -> str:
    with urlopen(f"http://127.0.0.1:{port}{path}", timeout=DEADLINE) as answer:
        return str(answer.read().decode())


def test_of_two_operators_one_acts_and_the_other_takes_over(api: ApiServer, tmp_path: Path) -> None:
    def holder() -> str:
        lease = get(api, "lease", "shadowserve-operator") or {"spec": {}}
        return str(lease["spec"].get("holderIdentity", ""))

    def leads(port: int) -> float:
        families = list(text_string_to_metric_families(_asked(port, "/metrics")))
        (sample,) = [each for one in families for each in one.samples if each.name == "shadowserve_operator_leader"]
        return float(sample.value)

    first, second = tmp_path / "first.log", tmp_path / "second.log"
    ports = free_port(), free_port()
    with operator_running(api, first, metrics_port=ports[0]) as one:
        wait(first, "first leads", lambda: holder().endswith(f"-{one.pid}"))
        wait(first, "first tells so", lambda: leads(ports[0]) == 1)
        with operator_running(api, second, metrics_port=ports[1]) as other:
            wait(second, "second waits", lambda: "holds it" in second.read_text())
            assert [leads(port) for port in ports] == [1, 0]
            assert [_asked(port, "/readyz") for port in ports] == ["ok", "ok"], "a standby is ready too"
            one.kill()
            wait(second, "second leads", lambda: holder().endswith(f"-{other.pid}"), 60.0)
            wait(second, "second tells so", lambda: leads(ports[1]) == 1)
            create(api, cache("late", placement={"order": ["Host"]}))
            wait(second, "second acts", lambda: get(api, "statefulset", "late-store") is not None, 60.0)
            api.kubectl("delete", "pfc", "late", "--timeout=90s")
