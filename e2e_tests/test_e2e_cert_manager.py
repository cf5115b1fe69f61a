"""Certificates by `security.issuerRef`, issued by the real cert-manager on a real API server: no node runs."""

import json
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cert_manager_story import SYSTEM, cert_manager_running, issuer, make_authority, make_root, renew
from operator_story import cache, condition, create, get, node, operator_running, wait
from shadowserve_crds import names
from shadowserve_operator import pki
from shadowserve_operator.desired.certificates import Certificate, files_of
from shadowserve_testbed.api_server import ApiServer

pytestmark = pytest.mark.timeout(1800)  # the first time, the API server and cert-manager are built
_COMPONENTS = ("store", "data-plane", "sidecar")
_READY = "CertificatesReady"
_HEALED = 75.0
"""A little more than the operator lets drift last: nothing tells it when an issuer appears."""
_ROUNDS = 10


@pytest.fixture
def operator(api: ApiServer, tmp_path: Path) -> Iterator[Path]:
    log = tmp_path / "operator.log"
    create(api, node("host-0"), node("card-0", **{names.DEFAULT_HOST_LABEL: "host-0"}))
    with operator_running(api, log):
        yield log
        api.kubectl("delete", "pfc", "--all", "--timeout=90s")
    api.kubectl("delete", "node", "host-0", "card-0")
    ours = f"{names.MANAGED_BY_LABEL}={names.MANAGED_BY}"
    api.kubectl("delete", "configmap,secret,service,statefulset,daemonset,pdb", "-l", ours)


@pytest.fixture
def cert_manager(api: ApiServer, operator: Path, tmp_path: Path) -> Iterator[None]:
    """cert-manager, and the Issuer `ours` with an authority; what it made goes with it."""
    with cert_manager_running(api, tmp_path):
        make_authority(api, "root")
        create(api, issuer("ours", ca={"secretName": "root"}))
        yield
        api.kubectl("delete", "pfc", "--all", "--timeout=90s")
    api.kubectl("delete", "secret", "root")


def _issued(by: str = "ours", kind: str = "Issuer") -> dict[str, Any]:
    return cache("kv", security={"issuerRef": {"name": by, "kind": kind}})


def _told(api: ApiServer, words: str) -> bool:
    return words in condition(api, "pfc/kv", _READY, "message")


def _secret(component: str) -> str:
    return f"kv-{component}-issued"


def _read(api: ApiServer) -> dict[str, Certificate]:
    """Return by component what the Secrets hold; nothing unless all of them can be read."""
    found = {each: pki.read(files_of(get(api, "secret", _secret(each)) or {})) for each in _COMPONENTS}
    good = {each: content for each, content in found.items() if content is not None}
    return good if len(good) == len(found) else {}


def _uids(api: ApiServer, kind: str) -> list[str]:
    return [(get(api, kind, _secret(each)) or {"metadata": {"uid": ""}})["metadata"]["uid"] for each in _COMPONENTS]


def _left(api: ApiServer) -> list[str]:
    """Return what there is of the cache's certificates, whoever made it."""
    kinds = "certificates.cert-manager.io,certificaterequests.cert-manager.io,secrets,configmaps,statefulsets"
    listed = api.kubectl("get", kinds, "-o", "name").split()
    return [each for each in listed if "/kv-" in each]


def _owned(api: ApiServer) -> bool:
    """Whether every Secret belongs to its Certificate."""
    listed = [(get(api, "secret", _secret(each)) or {"metadata": {}})["metadata"] for each in _COMPONENTS]
    owners = [owner["uid"] for each in listed for owner in each.get("ownerReferences", ())]
    return owners == _uids(api, "certificate")


def _idle(api: ApiServer) -> bool:
    """Whether cert-manager is done with every certificate: it clears `Issuing` only after the Secret is written."""
    for each in _COMPONENTS:
        told = (get(api, "certificate", _secret(each)) or {}).get("status", {}).get("conditions") or ()
        if {one["type"]: one["status"] for one in told} != {"Ready": "True"}:
            return False
    return True


def _others(api: ApiServer, than: dict[str, Certificate]) -> list[str]:
    """Return the components whose certificates are others than they were."""
    return [each for each, content in _read(api).items() if content.certificate != than[each].certificate]


def _built(api: ApiServer) -> list[Any]:
    """Return what pods are made of."""
    workloads = [get(api, "statefulset", "kv-store"), get(api, "daemonset", "kv-data-plane")]
    config = get(api, "configmap", "kv-config") or {}
    return [*((each or {})["spec"]["template"] for each in workloads), config["data"]]


def _versions(api: ApiServer) -> dict[str, str]:
    listed = json.loads(api.kubectl("get", "pfc,certificates,certificaterequests,secrets", "-o", "json"))["items"]
    return {f"{each['kind']}/{each['metadata']['name']}": each["metadata"]["resourceVersion"] for each in listed}


def _settled(api: ApiServer, seconds: float) -> bool:
    before = _versions(api)
    time.sleep(seconds)
    return _versions(api) == before


def _context(side: ssl.Purpose, content: Certificate, folder: Path) -> ssl.SSLContext:
    files = {"tls.crt": content.certificate, "tls.key": content.key, "ca.crt": content.authority}
    for name, text in files.items():
        (folder / name).write_bytes(text)
    context = ssl.create_default_context(side, cafile=str(folder / "ca.crt"))
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def _meet(client: Certificate, server: Certificate, name: str, folder: Path) -> None:
    """Let both shake hands as a sidecar and a store do, each asking for the other's certificate. Raises `SSLError`."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    calling = _context(ssl.Purpose.SERVER_AUTH, client, folder).wrap_bio(back, there, server_hostname=name)
    answering = _context(ssl.Purpose.CLIENT_AUTH, server, folder).wrap_bio(there, back, server_side=True)
    waiting = [calling, answering]
    for _ in range(_ROUNDS):
        for each in tuple(waiting):
            try:
                each.do_handshake()
                waiting.remove(each)
            except ssl.SSLWantReadError:
                continue
    assert not waiting


def test_a_cache_waits_for_cert_manager_its_issuer_and_the_issuers_key(
    api: ApiServer, operator: Path, tmp_path: Path
) -> None:
    create(api, _issued())
    wait(operator, "not installed", lambda: _told(api, "or cert-manager is not installed"))
    assert condition(api, "pfc/kv", _READY) == "IssuerNotFound"
    with cert_manager_running(api, tmp_path):
        create(api, issuer("ours", ca={"secretName": "root"}))
        wait(operator, "not ready", lambda: condition(api, "pfc/kv", _READY) == "IssuerNotReady", _HEALED)
        assert '"root" not found' in condition(api, "pfc/kv", _READY, "message")
        make_authority(api, "root")
        wait(operator, "issued", lambda: _told(api, "3 certificates of Issuer ours are valid"), _HEALED)
        api.kubectl("delete", "pfc", "kv", "--timeout=90s")
        wait(operator, "nothing left", lambda: not _left(api))
        api.kubectl("delete", "secret", "root")


@pytest.mark.usefixtures("cert_manager")
def test_what_is_issued_is_mounted_trusted_and_left_alone(api: ApiServer, operator: Path, tmp_path: Path) -> None:
    create(api, _issued())
    wait(operator, "issued", lambda: _told(api, "3 certificates of Issuer ours are valid"))
    found = _read(api)
    _meet(found["sidecar"], found["store"], "kv-store.default.svc", tmp_path)
    _meet(found["data-plane"], found["store"], "kv-store-0.kv-store-members.default.svc", tmp_path)
    _meet(found["sidecar"], found["data-plane"], "kv-data-plane.default.svc", tmp_path)
    mounted = json.dumps([get(api, "statefulset", "kv-store"), get(api, "daemonset", "kv-data-plane")])
    assert '"secretName": "kv-store-issued"' in mounted
    assert '"secretName": "kv-data-plane-issued"' in mounted
    wait(operator, "Secrets adopted", lambda: _owned(api))
    # longer than the operator waits for what is not ready: if the two quarrelled, it would never be so quiet
    wait(operator, "settled", lambda: _settled(api, 12), 3 * _HEALED)


@pytest.mark.usefixtures("cert_manager")
def test_renewed_certificates_take_the_place_of_the_old_ones_and_start_nothing_anew(
    api: ApiServer, operator: Path, tmp_path: Path
) -> None:
    create(api, _issued())
    wait(operator, "adopted", lambda: _told(api, "3 certificates of Issuer ours are valid") and _owned(api))
    wait(operator, "issued", lambda: _idle(api))
    first, secrets, built = _read(api), _uids(api, "secret"), _built(api)
    for component in _COMPONENTS:
        renew(api, _secret(component))
    wait(operator, "renewed", lambda: len(_others(api, first)) == len(first))
    second = _read(api)
    assert not {each.key for each in second.values()} & {each.key for each in first.values()}
    assert _uids(api, "secret") == secrets, "pods see the new content where the old one was"
    _meet(second["sidecar"], first["store"], "kv-store.default.svc", tmp_path)
    wait(operator, "settled", lambda: _idle(api) and _settled(api, 12), 3 * _HEALED)
    assert _built(api) == built, "whoever runs reads files again; nobody is started anew"

    api.kubectl("delete", "secret", _secret("store"))
    wait(operator, "issued anew", lambda: _read(api).get("store") not in (None, second["store"]))
    wait(operator, "adopted again", lambda: _owned(api) and _told(api, "3 certificates of Issuer ours are valid"))
    api.kubectl("delete", "certificate", _secret("sidecar"))
    wait(operator, "asked for again", lambda: get(api, "certificate", _secret("sidecar")) is not None)
    wait(operator, "adopted anew", lambda: bool(_read(api)) and _owned(api))


@pytest.mark.usefixtures("cert_manager")
def test_an_issuer_that_signs_every_certificate_by_itself_is_told_and_the_right_one_heals(
    api: ApiServer, operator: Path
) -> None:
    create(api, _issued("itself", "ClusterIssuer"))
    wait(operator, "told", lambda: _told(api, "ClusterIssuer itself is selfSigned, use one of type ca"))
    api.kubectl("patch", "pfc", "kv", "--type=merge", "-p", json.dumps({"spec": _issued()["spec"]}))
    wait(operator, "healed", lambda: _told(api, "3 certificates of Issuer ours are valid"), _HEALED)


@pytest.mark.usefixtures("cert_manager")
def test_an_issuer_of_the_cluster_serves_and_leaves_nothing_behind(api: ApiServer, operator: Path) -> None:
    api.kubectl("create", "namespace", SYSTEM)
    make_root(api, "clusters-root", SYSTEM)
    create(api, issuer("clusters", "ClusterIssuer", ca={"secretName": "clusters-root"}))
    create(api, _issued("clusters", "ClusterIssuer"))
    wait(operator, "issued", lambda: _told(api, "3 certificates of ClusterIssuer clusters are valid"))
    wait(operator, "adopted", lambda: _owned(api))
    api.kubectl("delete", "pfc", "kv", "--timeout=90s")
    wait(operator, "nothing left", lambda: not _left(api))


@pytest.mark.usefixtures("cert_manager")
def test_back_to_the_operators_own_certificates_and_deleted_half_made(api: ApiServer, operator: Path) -> None:
    create(api, _issued())
    wait(operator, "issued", lambda: _told(api, "3 certificates of Issuer ours are valid"))
    api.kubectl("patch", "pfc", "kv", "--type=json", "-p", '[{"op": "remove", "path": "/spec/security"}]')
    wait(operator, "own ones", lambda: _told(api, "3 certificates are valid"))
    wait(operator, "theirs are gone", lambda: not any("-issued" in each for each in _left(api)))
    api.kubectl("patch", "pfc", "kv", "--type=merge", "-p", json.dumps({"spec": _issued()["spec"]}))
    wait(operator, "asked", lambda: get(api, "certificate", _secret("store")) is not None)
    api.kubectl("delete", "pfc", "kv", "--timeout=90s")
    wait(operator, "nothing left", lambda: not _left(api))
