"""`CacheAttached` tells what sidecars say of their engines: a table, a pool's reconcile, and the real network."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from fakes import FakeCluster, FakeNetwork
from test_operator_inferencepool import NOW, a_cluster, become_ready, conditions, message, pod, pool, until_quiet

from shadowserve_crds import names
from shadowserve_crds.conditions import condition
from shadowserve_crds.inferencepool import InferencePool
from shadowserve_lab.processes import free_port
from shadowserve_operator.desired.attachment import EngineState, SidecarPod, SidecarSays, attachment_trouble, still_said
from shadowserve_operator.desired.round_trip import Plane
from shadowserve_operator.kinds import POD, Json, Ref
from shadowserve_operator.network import PodNetwork
from shadowserve_operator.pool_reconcile import reconcile_inferencepool
from shadowserve_operator.settings import OperatorSettings

POOL = InferencePool.parse(pool())
_MI = 1 << 20


def says(name: str, state: EngineState = EngineState.ATTACHED, **more: Any) -> SidecarSays:
    return SidecarSays(Plane(name, "10.0.0.1:9465"), state, **more)


SMALL = says("a", EngineState.TOO_SMALL, detail="refused", chunks=2, wanted_bytes=900 * _MI + 1)
REFUSED = says("b", EngineState.REFUSED, detail="the connector speaks protocol 1; use the same release")
CONTRACTS = [says(name, contract=contract) for name, contract in (("a", "1"), ("b", "1"), ("c", "2"))]


@pytest.mark.parametrize(
    ("told", "reason", "words"),
    [
        ([], None, []),
        ([says("a"), says("b", contract="1"), says("c", contract="1")], None, []),
        ([says("a", EngineState.WAITING), says("b", EngineState.UNREACHABLE, detail="no answer")], None, []),
        ([SMALL, says("b")], "LandingBufferTooSmall", ["2 chunks", "in a:", "landingBuffer of PrefixCache", "901Mi"]),
        ([REFUSED, says("a")], "EngineRefused", ["engine of b", "use the same release"]),
        ([REFUSED, SMALL], "LandingBufferTooSmall", ["901Mi"]),
        (CONTRACTS, "HashContractDiffers", ["c and the other pods", "spec.model.revision"]),
    ],
)
def test_what_is_wrong_is_told_with_its_fix(told: list[SidecarSays], reason: str | None, words: list[str]) -> None:
    pods = [SidecarPod(each.plane.name, each.plane.address, "7f9c") for each in told]
    found = attachment_trouble(POOL, pods, told)
    assert (found and found.reason) == reason
    for word in words:
        assert word in (found.message if found else "")


def test_pods_of_an_older_template_may_compute_other_keys() -> None:
    templates = {"a": "old", "b": "old", "c": "new"}
    pods = [SidecarPod(name, "10.0.0.1:9465", template) for name, template in templates.items()]
    assert attachment_trouble(POOL, pods, CONTRACTS) is None


def test_a_pod_that_was_too_early_for_the_settings_that_it_was_made_for_is_named() -> None:
    made_for = {"a": "new", "b": "new", "c": "old", "d": "new"}
    pods = [SidecarPod(name, "10.0.0.1:9465", "7f9c", settings) for name, settings in made_for.items()]
    told = [says("a", settings="new"), says("b", settings="old"), says("c", settings="old"), says("d")]
    found = attachment_trouble(POOL, pods, told, "new")
    assert found is not None
    assert (found.reason, "b started with older settings than PrefixCache kv" in found.message) == (
        "OlderSettings",
        True,
    )
    assert attachment_trouble(POOL, pods, told, None) is None, "nobody knows yet"
    assert attachment_trouble(POOL, pods, [told[0], *told[2:]], "new") is None, "the old ones are rolled"


def test_of_many_pods_a_few_are_named() -> None:
    told = [replace(SMALL, plane=Plane(f"pod-{number}", "x:1")) for number in range(9)]
    found = attachment_trouble(POOL, [], told)
    assert found is not None
    assert "pod-0, pod-1, pod-2 and 6 more" in found.message


def running(name: str, template: str = "7f9c") -> Json:
    """Return a pod of the pool whose sidecar can be asked."""
    started = [{"name": names.SIDECAR_CONTAINER, "started": True}]
    body = pod(name, "", podIP="10.0.0.1", initContainerStatuses=started)
    body["metadata"]["labels"]["pod-template-hash"] = template
    return body


async def test_a_pool_is_not_ready_until_its_engines_are_taken_and_writes_nothing_meanwhile() -> None:
    cluster, network = a_cluster(), FakeNetwork()

    async def settle(cluster: FakeCluster) -> None:
        for _ in range(5):
            result = await reconcile_inferencepool(cluster, "default", "chat", OperatorSettings(), lambda: NOW, network)
            if not result.writes:
                return
        raise AssertionError("still writing")

    await settle(cluster)
    become_ready(cluster)
    for name in ("a", "b"):
        cluster.put(running(name))
    network.engines = {"b": REFUSED}
    await settle(cluster)
    assert conditions(cluster)["CacheAttached"] == conditions(cluster)["Ready"] == ("False", "EngineRefused")
    assert "the sidecar refused the engine of b: the connector speaks protocol 1" in message(cluster, "CacheAttached")
    before = len(cluster.writes)
    await settle(cluster)
    assert len(cluster.writes) == before
    network.engines = {}
    await settle(cluster)
    assert conditions(cluster)["Ready"] == ("True", "Succeeded")


@pytest.mark.parametrize("silent", ["says nothing", "starts again"])
async def test_what_a_sidecar_said_holds_while_it_is_silent(silent: str) -> None:
    cluster, network = a_cluster(), FakeNetwork()

    async def told() -> tuple[str, str]:
        for _ in range(3):
            await reconcile_inferencepool(cluster, "default", "chat", OperatorSettings(), lambda: NOW, network)
        return conditions(cluster)["CacheAttached"][1], message(cluster, "CacheAttached")

    for name in ("a", "b"):
        cluster.put(running(name))
    network.engines = {"b": REFUSED}
    refused = await told()
    assert refused[0] == "EngineRefused"
    before = len(cluster.writes)
    if silent == "starts again":
        cluster.put(pod("b", "", podIP="10.0.0.1"))
    network.engines = {"b": says("b", EngineState.UNREACHABLE, detail="no answer")}
    assert await told() == refused
    assert len(cluster.writes) == before
    cluster.remove(Ref(POD, "default", "b"))
    assert (await told())[0] == "Succeeded", "whoever it was about is gone"


def test_what_was_said_holds_for_those_whom_it_names_and_until_something_else_is_wrong() -> None:
    small, refused = (attachment_trouble(POOL, [], [each]) for each in (SMALL, REFUSED))
    assert still_said(refused, None, {"b"}) == refused
    assert still_said(refused, attachment_trouble(POOL, [], [replace(REFUSED, plane=SMALL.plane)]), {"b"}) == refused
    assert still_said(refused, None, {"c"}) is None
    assert still_said(refused, small, {"b"}) == small
    assert still_said(None, small, {"b"}) == small
    other = condition("CacheAttached", False, "PodsWithoutSidecar", "these pods run without the sidecar: b")
    assert still_said(other, None, {"b"}) is None, "that is not for sidecars to say"


async def test_only_sidecars_that_run_are_asked() -> None:
    cluster = a_cluster()
    cluster.put(pod("starts", ""))
    cluster.put(pod("without", injected=False, podIP="10.0.0.2"))
    await until_quiet(cluster)  # by the real network: nobody is there to answer
    assert Ref(POD, "default", "starts") in cluster.objects
    assert conditions(cluster)["CacheAttached"] == ("False", "PodsWithoutSidecar")


@asynccontextmanager
async def a_sidecar(answer: object, held: asyncio.Event | None = None) -> AsyncIterator[tuple[Plane, asyncio.Event]]:
    """Yield where something listens that says this, and what tells that it was asked; it answers once `held` is set."""
    asked = asyncio.Event()

    async def attachment(request: web.Request) -> web.Response:
        asked.set()
        if held is not None:
            await held.wait()
        if isinstance(answer, web.HTTPFound):
            raise answer
        return web.json_response(answer)

    async def elsewhere(request: web.Request) -> web.Response:
        return web.json_response(DOCUMENT)

    application = web.Application()
    application.router.add_get("/attachment", attachment)
    application.router.add_get("/elsewhere", elsewhere)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield Plane("a", f"127.0.0.1:{runner.addresses[0][1]}"), asked
    finally:
        await runner.cleanup()


PATIENT = PodNetwork(patience=60.0)
GOLDEN = Path(__file__).parents[2] / "dataplane_image/tests/fixtures/attachment.json"
"""What a sidecar answers, as its own tests hold it to."""
DOCUMENT: Json = json.loads(GOLDEN.read_text())


async def test_an_answer_is_passed_on() -> None:
    async with a_sidecar(DOCUMENT) as (plane, _):
        found = await PATIENT.attachments([plane])
    assert found == [SidecarSays(plane, EngineState.REFUSED, "why", 16, 524288, "0f", "14fcedabd7954972")]
    assert await PATIENT.attachments([]) == []


async def test_a_sidecar_of_an_older_release_is_understood() -> None:
    older = {key: value for key, value in DOCUMENT.items() if key != "settings"}
    async with a_sidecar(older) as (plane, _):
        [found] = await PATIENT.attachments([plane])
    assert (found.state, found.settings) == (EngineState.REFUSED, "")


async def test_of_what_a_pod_says_as_much_is_kept_as_fits_a_condition() -> None:
    async with a_sidecar({**DOCUMENT, "detail": "a\nline " + "x" * 40_000}) as (plane, _):
        [found] = await PATIENT.attachments([plane])
    assert found.state is EngineState.REFUSED
    assert found.detail.startswith("a line xxx")
    assert len(found.detail) <= 500


_NO_SIDECARS = [
    ["a list"],
    {},
    {**DOCUMENT, "state": "Later"},
    {**DOCUMENT, "chunks": "many"},
    {**DOCUMENT, "detail": "x" * 100_000},
    web.HTTPFound("/elsewhere"),
]


@pytest.mark.parametrize("answer", _NO_SIDECARS)
async def test_what_is_no_sidecar_is_unreachable(answer: object) -> None:
    async with a_sidecar(answer) as (plane, _):
        [found] = await PATIENT.attachments([plane])
    assert (found.state, "no sidecar" in found.detail) == (EngineState.UNREACHABLE, True)


async def test_sidecars_that_say_nothing_do_not_hold_up_the_reconcile() -> None:
    never = asyncio.Event()
    async with a_sidecar(DOCUMENT, never) as (silent, _):
        gone = Plane("gone", f"127.0.0.1:{free_port()}")
        found = await PodNetwork(patience=0.2).attachments([silent, gone])
        never.set()
    assert [each.state for each in found] == [EngineState.UNREACHABLE] * 2
    assert found[0].detail == "no answer"


async def test_nobody_waits_for_the_answers_of_others() -> None:
    async with a_sidecar(DOCUMENT) as (last, asked), a_sidecar(DOCUMENT, asked) as (slow, _):
        found = await PATIENT.attachments([*[slow] * 40, last])
    assert {each.state for each in found} == {EngineState.REFUSED}, "the last is asked before the others have answered"
