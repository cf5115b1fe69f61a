"""Two engines on a cluster with nodes, one cache, a card: what breaks costs time, never a request and never a token."""

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

from cluster_story import SECONDS, Bed
from shadowserve_dataplane.chunks import CHUNK_TOKENS
from shadowserve_lab.engine_client import Answer, Ask, EngineClient
from shadowserve_testbed import scenario
from shadowserve_testbed.installation import remove
from shadowserve_testbed.pods import Pod
from shadowserve_testbed.traffic import Traffic

pytestmark = pytest.mark.timeout(900)
_ENGINES_SECONDS = 600.0
_TOKENS = 3 * CHUNK_TOKENS + 40
_EXACT = ("--dtype", "float32")


@dataclass(frozen=True)
class Serving:
    """Both engines, A first; `prompts` counts what was asked, so that no story meets another's prefixes."""

    bed: Bed
    pods: Sequence[Pod]
    a: EngineClient
    b: EngineClient

    def prompt(self, number: int) -> list[int]:
        """Return a prompt of three chunks and a little more."""
        return [1000 + (number * 7919 + 13 * i) % 20000 for i in range(_TOKENS)]

    def store(self, prompt: Sequence[int], tenant: str = "") -> Answer:
        """Have A compute the prompt, and wait until its chunks are in the store. Return A's answer."""
        before = self._stored()
        answer = self.a.complete(Ask(prompt, extra=_of(tenant)))
        self.bed.wait("A's chunks stored", lambda: self._stored() > before)
        settled: list[float] = []
        self.bed.wait("nothing more to store", lambda: _still(settled, self._stored()))
        return answer

    def stores_again(self, numbers: Iterator[int]) -> None:
        """Ask A until a chunk of it is stored: the first ones still go to a store that is gone, and are given up."""
        before = self._stored()

        def stored() -> bool:
            self.a.complete(Ask(self.prompt(next(numbers))))
            return self._stored() > before

        self.bed.wait("A stores again", stored)

    def _stored(self) -> float:
        metrics = self.bed.access.sidecar(scenario.NAMESPACE, self.pods[0].name)
        return metrics.total("shadowserve_stored_bytes_total")

    def hit(self, engine: EngineClient, prompt: Sequence[int], tenant: str = "") -> tuple[Answer, int]:
        """Ask an engine that has forgotten its own prefixes; return how many tokens came from outside as well."""
        engine.reset_prefix_cache()
        return engine.counted(Ask(prompt, extra=_of(tenant)))

    def placed(self, place: str) -> None:
        """Wait until every sidecar restores there."""
        self.bed.wait(f"restored at {place}", lambda: all(self.bed.place(pod.name) == place for pod in self.pods))


def _of(tenant: str) -> dict[str, object]:
    """Return what makes a request a tenant's."""
    return {"cache_salt": tenant} if tenant else {}


def _still(seen: list[float], now: float) -> bool:
    seen.append(now)
    time.sleep(0.5)
    return seen[-2:] == [now, now]


@pytest.fixture(scope="module")
def serving(bed: Bed) -> Iterator[Serving]:
    pool = scenario.pool_manifest(arguments=_EXACT, variables={"VLLM_SERVER_DEV_MODE": "1"})
    bed.apply(scenario.cache_manifest("Lossless", "PerTenant"), pool)
    for what in (f"pfc/{scenario.CACHE}", f"sspool/{scenario.POOL}"):
        bed.wait(f"{what} ready", lambda what=what: bed.ready(what), _ENGINES_SECONDS)  # type: ignore[misc]
    pods = bed.engines()
    found = Serving(bed, pods, *(bed.client(pod) for pod in pods))
    found.placed("dpu")
    yield found
    remove(bed.kubectl, scenario.NAMESPACE, SECONDS, lambda _: None)


def test_b_answers_from_what_a_computed_through_the_card(serving: Serving) -> None:
    bed, prompt = serving.bed, serving.prompt(1)
    cold = serving.store(prompt)
    [plane] = bed.planes()
    before = bed.restored(plane)
    answer, external = serving.hit(serving.b, prompt)
    assert (external, answer.tokens) == (3 * CHUNK_TOKENS, cold.tokens)
    assert bed.restored(plane) - before == 3
    assert plane.node == "card-0"
    assert bed.condition(f"sspool/{scenario.POOL}", "CacheAttached") == "True"


def test_tenants_share_with_themselves_and_with_nobody_else(serving: Serving) -> None:
    prompt = serving.prompt(6)
    cold = serving.store(prompt, "one")
    answer, external = serving.hit(serving.b, prompt, "one")
    assert (external, answer.tokens) == (3 * CHUNK_TOKENS, cold.tokens)
    for other in ("another", ""):
        answer, external = serving.hit(serving.b, prompt, other)
        assert (external, answer.tokens) == (0, cold.tokens)


def test_a_settled_system_writes_nothing(serving: Serving) -> None:
    before = _versions(serving.bed)
    time.sleep(20)
    assert _versions(serving.bed) == before


def test_a_data_plane_that_is_deleted_is_replaced_and_no_request_fails(serving: Serving) -> None:
    bed, prompt = serving.bed, serving.prompt(2)
    cold = serving.store(prompt)
    [old] = bed.planes()
    with Traffic([serving.a, serving.b], prompt, cold.tokens) as traffic:
        bed.kubectl.run("delete", "pod", old.name, "--grace-period=1")
        bed.wait("a new data plane", lambda: [p for p in bed.planes() if p.ready and p.name != old.name])
        serving.placed("dpu")
    assert (traffic.failed, traffic.different) == (0, 0)
    answer, external = serving.hit(serving.b, prompt)
    assert (external, answer.tokens) == (3 * CHUNK_TOKENS, cold.tokens)


def test_a_store_that_is_deleted_costs_time_only(serving: Serving) -> None:
    bed, prompt = serving.bed, serving.prompt(3)
    cold = serving.store(prompt)
    with Traffic([serving.b], prompt, cold.tokens) as traffic:
        bed.kubectl.run("delete", "pod", f"{scenario.CACHE}-store-0", "--grace-period=1")
        bed.wait("the store is back", lambda: bed.ready(f"pfc/{scenario.CACHE}"))
    assert (traffic.failed, traffic.different) == (0, 0)
    serving.stores_again(itertools.count(100))
    later = serving.prompt(4)
    cold = serving.store(later)
    answer, external = serving.hit(serving.b, later)
    assert (external, answer.tokens) == (3 * CHUNK_TOKENS, cold.tokens)


def test_no_request_fails_when_the_cards_node_dies(serving: Serving) -> None:
    bed, prompt = serving.bed, serving.prompt(5)
    cold = serving.store(prompt)
    with Traffic([serving.a, serving.b], prompt, cold.tokens) as traffic:
        bed.provider.lose("card-0")
        serving.placed("host")
        assert all(bed.told(pod.name) for pod in serving.pods), "long before Kubernetes notices: nobody tells it"
        answered = traffic.requests
        bed.wait("requests go on", lambda: traffic.requests >= answered + 2)
    assert (traffic.failed, traffic.different) == (0, 0)
    answer, external = serving.hit(serving.b, prompt)
    assert (external, answer.tokens) == (3 * CHUNK_TOKENS, cold.tokens)
    bed.provider.restore("card-0")


def test_deleting_both_leaves_nothing_behind(serving: Serving) -> None:
    remove(serving.bed.kubectl, scenario.NAMESPACE, SECONDS, lambda _: None)
    assert serving.bed.remaining() == []


def _versions(bed: Bed) -> dict[str, str]:
    kinds = "pfc,sspool,configmaps,secrets,services,statefulsets,daemonsets,deployments,poddisruptionbudgets,pods"
    listed = [*bed.kubectl.items(kinds, "--namespace", scenario.NAMESPACE), *bed.kubectl.items("dpubindings")]
    return {f"{each['kind']}/{each['metadata']['name']}": each["metadata"]["resourceVersion"] for each in listed}
