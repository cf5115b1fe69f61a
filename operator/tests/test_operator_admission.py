"""Admission: pods that ask for a cache get the sidecar; nobody is refused; the reason of every skip is said."""

import json
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from fakes import FakeCluster

from shadowserve_crds import names
from shadowserve_crds.prefixcache import PrefixCache, PrefixCacheStatus
from shadowserve_operator.admission import finder
from shadowserve_operator.admission_server import AdmissionWebhook, ServingFiles, served
from shadowserve_operator.desired.admission import BadReview, CacheSeen, Verdict, decide, read_review
from shadowserve_operator.desired.config import config_map
from shadowserve_operator.desired.sidecar import inject
from shadowserve_operator.desired.terms import sidecar_terms
from shadowserve_operator.errors import ApiUnavailable, Forbidden, SettingsError
from shadowserve_operator.kinds import CONFIG_MAP, Json, Ref
from shadowserve_operator.settings import OperatorSettings


def cache(**spec: Any) -> PrefixCache:
    return PrefixCache.parse({"metadata": {"name": "shared", "namespace": "llm"}, "spec": spec})


TERMS = sidecar_terms(cache(), OperatorSettings())


def review(labels: dict[str, str] | None = None, **pod: Any) -> dict[str, Any]:
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "p-", **({"labels": labels} if labels else {})},
        "spec": {"containers": [{"name": "vllm", "image": "i"}]},
        **pod,
    }
    return {"kind": "AdmissionReview", "request": {"uid": "u-1", "namespace": "llm", "object": body}}


def patched(asked: dict[str, Any], verdict: Verdict) -> dict[str, Any]:
    """Return the pod as the API server would have it."""
    pod: dict[str, Any] = json.loads(json.dumps(asked["request"]["object"]))
    for change in json.loads(b64decode(verdict.response["response"].get("patch", "W10="))):
        *parents, last = change["path"].strip("/").split("/")
        holder = pod
        for parent in parents:
            holder = holder[parent]
        holder[last] = change["value"]
    return pod


def test_a_pod_that_asks_for_a_cache_gets_the_sidecar() -> None:
    asked = review({names.CACHE_LABEL: "shared"})
    verdict = decide(read_review(asked), TERMS)
    assert verdict.injected
    assert verdict.response["response"]["uid"] == "u-1"
    by_function = inject(asked["request"]["object"], TERMS)
    assert patched(asked, verdict) == getattr(by_function, "pod", None), "webhook and pools render alike"


def test_other_pods_pass_untouched() -> None:
    verdict = decide(read_review(review()), None)
    assert verdict.response["response"] == {"uid": "u-1", "allowed": True}
    assert verdict == Verdict(verdict.response)


def test_a_second_review_of_an_injected_pod_changes_nothing() -> None:
    asked = review({names.CACHE_LABEL: "shared"})
    once = patched(asked, decide(read_review(asked), TERMS))
    again = decide(read_review({"request": {"uid": "u-2", "namespace": "llm", "object": once}}), TERMS)
    assert again.response["response"] == {"uid": "u-2", "allowed": True}
    assert not again.skipped


@pytest.mark.parametrize(
    ("containers", "terms", "said"),
    [
        ([{"name": "vllm", "image": "i"}], "there is no PrefixCache shared", "there is no PrefixCache shared"),
        ([{"name": "a", "image": "i"}, {"name": "b", "image": "i"}], TERMS, "the pod has 2 containers"),
        ([{"name": "v", "image": "i", "command": ["sh", "-c", "vllm"]}], TERMS, "runs a shell"),
    ],
)
def test_what_cannot_be_injected_is_admitted_with_the_reason(containers: Any, terms: Any, said: str) -> None:
    asked = review({names.CACHE_LABEL: "shared"}, spec={"containers": containers})
    verdict = decide(read_review(asked), terms)
    assert verdict.response["response"]["allowed"] is True
    assert said in verdict.skipped
    pod = patched(asked, verdict)
    assert said in pod["metadata"]["annotations"][names.SKIPPED_ANNOTATION]
    assert pod["spec"] == asked["request"]["object"]["spec"]


_HALF = {"request": {"uid": "u", "object": {"kind": "Pod", "metadata": {}}}}


@pytest.mark.parametrize("broken", [{}, {"request": None}, _HALF, [], review(kind="Job")])
def test_what_is_no_review_of_a_pod_is_said(broken: Any) -> None:
    with pytest.raises(BadReview):
        read_review(broken)


def test_a_sidecar_that_never_restores_needs_less() -> None:
    host = {"resources": {"cpu": 4}}
    only_cards = sidecar_terms(cache(placement={"order": ["DPU"], "host": host}), OperatorSettings())
    both = sidecar_terms(cache(placement={"host": host}), OperatorSettings())
    assert only_cards.cpu < both.cpu
    assert str(both.cpu) == "4"
    assert both.tls_secret == "shared-sidecar-tls"
    assert sidecar_terms(cache(security={"transport": "Plaintext"}), OperatorSettings()).tls_secret is None


class Caches:
    """The caches there are, and the answers that were counted; `find` does what `lookup` says."""

    def __init__(self) -> None:
        self.known = {("llm", "shared"): CacheSeen(cache())}
        self.error: Exception | None = None
        self.counted: list[str] = []

    async def find(self, namespace: str, name: str) -> CacheSeen | None:
        if self.error is not None:
            raise self.error
        return self.known.get((namespace, name))


@pytest.fixture
def caches() -> Caches:
    return Caches()


async def answered(caches: Caches, body: Any) -> tuple[int, dict[str, Any]]:
    webhook = AdmissionWebhook(caches.find, OperatorSettings(), caches.counted.append)
    async with TestClient(TestServer(webhook.application())) as client, client.post("/inject", json=body) as response:
        return response.status, await response.json() if response.status == 200 else {}


async def test_the_webhook_injects_by_the_cache_of_the_pods_namespace(caches: Caches) -> None:
    status, body = await answered(caches, review({names.CACHE_LABEL: "shared"}))
    assert (status, body["response"]["patchType"]) == (200, "JSONPatch")
    assert caches.counted == ["injected"]


async def test_a_pod_is_stamped_with_the_settings_that_are_written(caches: Caches) -> None:
    written = config_map(cache())
    written["metadata"]["annotations"][names.CONFIG_ANNOTATION] = "as another version computes it"
    caches.known["llm", "shared"] = CacheSeen(cache(), written)
    asked = review({names.CACHE_LABEL: "shared"})
    pod = patched(asked, Verdict((await answered(caches, asked))[1]))
    assert pod["metadata"]["annotations"][names.CONFIG_ANNOTATION] == "as another version computes it"


class OfOlderRoles(FakeCluster):
    """A cluster whose roles for the webhook are of a release that read no ConfigMaps."""

    async def get(self, ref: Ref) -> Json | None:
        if ref.kind == CONFIG_MAP:
            raise Forbidden("configmaps is forbidden")
        return await super().get(ref)


async def test_roles_of_an_older_release_leave_no_pod_without_the_sidecar() -> None:
    cluster = OfOlderRoles("llm")
    metadata = {"name": "shared", "namespace": "llm"}
    cluster.put({"apiVersion": names.API_VERSION, "kind": "PrefixCache", "metadata": metadata, "spec": {}})
    asked = review({names.CACHE_LABEL: "shared"})
    counted: list[str] = []
    webhook = AdmissionWebhook(finder(cluster), OperatorSettings(), counted.append)
    async with TestClient(TestServer(webhook.application())) as client, client.post("/inject", json=asked) as response:
        pod = patched(asked, Verdict(await response.json()))
    assert counted == ["injected"]
    assert pod["metadata"]["annotations"][names.CONFIG_ANNOTATION] == "", "the operator finds out what it reads"


async def test_no_pod_waits_for_a_secret_that_somebody_has_yet_to_make(caches: Caches) -> None:
    said = {"type": "StoreReady", "status": "False", "reason": "SecretNotFound", "message": "Secret a: create it"}
    known = cache()
    lacking = known.model_copy(update={"status": PrefixCacheStatus.model_validate({"conditions": [said]})})
    asked = review({names.CACHE_LABEL: "shared"})
    caches.known["llm", "shared"] = CacheSeen(lacking, config_map(known))
    await answered(caches, asked)
    caches.known["llm", "shared"] = CacheSeen(lacking)
    pod = patched(asked, Verdict((await answered(caches, asked))[1]))
    told = "PrefixCache shared has no settings yet: Secret a: create it, then make the pod anew"
    assert pod["metadata"]["annotations"][names.SKIPPED_ANNOTATION] == told
    assert caches.counted == ["injected", "skipped"], "what is written counts for as long as it is there"


_REFUSED = (ApiUnavailable("refused"), "cannot be looked up now (refused)")


@pytest.mark.parametrize(("error", "said"), [(None, "there is no PrefixCache other"), _REFUSED])
async def test_a_cache_that_cannot_be_found_never_holds_a_pod_back(
    caches: Caches, error: Exception | None, said: str
) -> None:
    caches.error = error
    asked = review({names.CACHE_LABEL: "other"})
    status, body = await answered(caches, asked)
    assert (status, body["response"]["allowed"]) == (200, True)
    assert said in patched(asked, Verdict(body))["metadata"]["annotations"][names.SKIPPED_ANNOTATION]
    assert caches.counted == ["skipped"]


async def test_what_is_no_review_is_a_bad_request(caches: Caches) -> None:
    assert (await answered(caches, {"not": "a review"}))[0] == 400
    assert caches.counted == ["failed"]


async def test_a_webhook_without_a_certificate_says_which_file(caches: Caches, tmp_path: Path) -> None:
    webhook = AdmissionWebhook(caches.find, OperatorSettings(), caches.counted.append)
    files = ServingFiles(tmp_path / "tls.crt", tmp_path / "tls.key")
    with pytest.raises(SettingsError, match=r"tls\.crt"):
        async with served(webhook, "127.0.0.1", 0, files):
            pytest.fail("it serves")
