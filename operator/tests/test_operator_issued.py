"""A PrefixCache whose certificates cert-manager issues, from a missing issuer to a switch back."""

from base64 import b64encode
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cache_on_a_cluster import CACHE, NOW, SETTINGS, a_cluster, become_ready, cache, conditions, message, until_quiet
from fakes import FakeCluster, FakeNetwork

from shadowserve_operator import pki
from shadowserve_operator.desired.certificates import Wanted, secret_data
from shadowserve_operator.errors import Unfinished
from shadowserve_operator.kinds import CERTIFICATE, DAEMON_SET, ISSUER, SECRET, Json, Ref
from shadowserve_operator.reconcile import forget_prefixcache

COMPONENTS = ("store", "data-plane", "sidecar")


def with_issuer(kind: str = "Issuer") -> FakeCluster:
    cluster = a_cluster()
    cluster.put(cache(security={"issuerRef": {"name": "ours", "kind": kind}}))
    return cluster


def issuer() -> Json:
    metadata = {"name": "ours", "namespace": "default"}
    return {"apiVersion": ISSUER.api_version, "kind": ISSUER.name, "metadata": metadata, "spec": {}}


def issue(cluster: FakeCluster, *components: str, **changed: Any) -> None:
    """Do what cert-manager does."""
    authority = pki.make_authority("cert-manager", NOW)
    for component in components:
        name = f"kv-{component}-issued"
        asked = cluster.objects[Ref(CERTIFICATE, "default", name)]["spec"]
        made = pki.issue(Wanted(name, tuple(asked["dnsNames"])), authority, NOW)
        data = secret_data(replace(made, **changed))
        metadata = {"name": asked["secretName"], "namespace": "default", "labels": asked["secretTemplate"]["labels"]}
        secret = {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": metadata}
        cluster.put(secret | {"data": data})


async def test_a_missing_issuer_is_named_and_heals() -> None:
    cluster = with_issuer()
    await until_quiet(cluster)
    assert conditions(cluster)["CertificatesReady"] == ("False", "IssuerNotFound")
    assert "Issuer ours does not exist in default" in message(cluster, "CertificatesReady")
    cluster.put(issuer())
    await until_quiet(cluster)
    assert conditions(cluster)["CertificatesReady"] == ("False", "Pending")
    assert "Issuer ours has not issued kv-data-plane-issued yet" in message(cluster, "CertificatesReady")


async def test_an_issuer_that_is_not_ready_says_why_itself() -> None:
    cluster = with_issuer()
    said = {"type": "Ready", "status": "False", "message": 'secret "root" not found'}
    cluster.put({**issuer(), "status": {"conditions": [said]}})
    await until_quiet(cluster)
    assert conditions(cluster)["CertificatesReady"] == ("False", "IssuerNotReady")
    assert message(cluster, "CertificatesReady") == (
        'Issuer ours is not ready: secret "root" not found; see kubectl -n default describe Issuer ours'
    )
    cluster.put(issuer())
    await until_quiet(cluster)
    assert conditions(cluster)["CertificatesReady"] == ("False", "Pending")


async def test_an_issuer_whose_certificates_do_not_trust_each_other_is_told() -> None:
    cluster = with_issuer()
    cluster.put(issuer())
    await until_quiet(cluster)
    for component in COMPONENTS:
        issue(cluster, component)
    await until_quiet(cluster)
    assert conditions(cluster)["CertificatesReady"] == ("False", "Error")
    assert "is selfSigned, use one of type ca" in message(cluster, "CertificatesReady")
    issue(cluster, *COMPONENTS)
    await until_quiet(cluster)
    assert conditions(cluster)["CertificatesReady"] == ("True", "Succeeded")


async def test_a_renewed_certificate_is_tried_out_at_once() -> None:
    cluster, network = with_issuer(), FakeNetwork()
    cluster.put(issuer())
    await until_quiet(cluster)
    issue(cluster, *COMPONENTS)
    await until_quiet(cluster, network=network)
    before = network.changes[-1]
    issue(cluster, *COMPONENTS)
    await until_quiet(cluster, network=network)
    assert network.changes[-1] != before


async def test_what_cert_manager_made_goes_after_what_asked_for_it() -> None:
    """Else it would be made anew in between, for nobody."""
    cluster = with_issuer()
    cluster.put(issuer())
    await until_quiet(cluster)
    issue(cluster, *COMPONENTS)
    await until_quiet(cluster)
    for component in COMPONENTS:
        name = f"kv-{component}-issued"
        asked = cluster.objects[Ref(CERTIFICATE, "default", name)]["metadata"]
        [owner] = cluster.objects[Ref(SECRET, "default", name)]["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"]) == ("Certificate", asked["uid"])
        assert [each["kind"] for each in asked["ownerReferences"]] == ["PrefixCache"]


async def test_certificates_are_asked_for_and_used_as_they_come() -> None:
    cluster = with_issuer()
    cluster.put(issuer())
    await until_quiet(cluster)
    asked = cluster.objects[Ref(CERTIFICATE, "default", "kv-store-issued")]["spec"]
    assert asked["issuerRef"] == {"group": "cert-manager.io", "kind": "Issuer", "name": "ours"}
    assert "*.kv-store-members.default.svc" in asked["dnsNames"]
    assert (asked["duration"], asked["renewBefore"]) == ("2160h0m0s", "720h0m0s")
    certificate = cluster.objects[Ref(CERTIFICATE, "default", "kv-data-plane-issued")]
    said = {"type": "Ready", "status": "False", "message": "the order is being validated"}
    cluster.put({**certificate, "status": {"conditions": [said]}})
    await until_quiet(cluster)
    told = "kv-data-plane-issued yet: the order is being validated; see kubectl -n default describe certificate kv-"
    assert told in message(cluster, "CertificatesReady")
    issue(cluster, *COMPONENTS)
    become_ready(cluster)
    await until_quiet(cluster)
    assert conditions(cluster)["Ready"] == ("True", "Succeeded")
    assert message(cluster, "CertificatesReady") == "3 certificates of Issuer ours are valid"
    volumes = cluster.objects[Ref(DAEMON_SET, "default", "kv-data-plane")]["spec"]["template"]["spec"]["volumes"]
    assert {"name": "tls", "secret": {"secretName": "kv-data-plane-issued"}} in volumes


async def test_what_cert_manager_made_keeps_its_content_and_goes_with_the_cache() -> None:
    cluster = with_issuer()
    cluster.put(issuer())
    await until_quiet(cluster)
    issue(cluster, *COMPONENTS)
    secret = Ref(SECRET, "default", "kv-store-issued")
    before = cluster.objects[secret]["data"]
    await until_quiet(cluster)
    assert cluster.objects[secret]["data"] == before
    cluster.remove(CACHE)
    assert not [ref for ref in cluster.objects if ref.kind in (SECRET, CERTIFICATE)]


async def test_a_certificate_that_nobody_renewed_is_expired() -> None:
    cluster = with_issuer()
    cluster.put(issuer())
    await until_quiet(cluster)
    issue(cluster, *COMPONENTS)
    await until_quiet(cluster, NOW + timedelta(days=100))
    assert conditions(cluster)["CertificatesReady"] == ("False", "Expired")


async def test_an_issuer_that_does_not_tell_its_authority_is_told() -> None:
    cluster = with_issuer()
    cluster.put(issuer())
    await until_quiet(cluster)
    issue(cluster, *COMPONENTS)
    secret = cluster.objects[Ref(SECRET, "default", "kv-sidecar-issued")]
    cluster.put({**secret, "data": {"tls.crt": b64encode(b"x").decode()}})
    await until_quiet(cluster)
    assert conditions(cluster)["CertificatesReady"] == ("False", "Error")
    assert "ca.crt" in message(cluster, "CertificatesReady")


async def test_switching_back_leaves_nothing_of_cert_manager() -> None:
    cluster = with_issuer()
    cluster.put(issuer())
    await until_quiet(cluster)
    issue(cluster, *COMPONENTS)
    await until_quiet(cluster)
    cluster.put(cache())
    await until_quiet(cluster)
    left = [ref.name for ref in cluster.objects if ref.name.endswith("-issued")]
    assert left == []
    assert conditions(cluster)["CertificatesReady"] == ("True", "Succeeded")


async def test_switching_back_removes_what_nobody_had_adopted_yet() -> None:
    cluster = with_issuer()
    cluster.put(issuer())
    await until_quiet(cluster)
    issue(cluster, "store")
    cluster.put(cache())
    await until_quiet(cluster)
    assert [ref.name for ref in cluster.objects if ref.name.endswith("-issued")] == []


async def test_a_cache_that_is_deleted_while_cert_manager_issues_leaves_nothing() -> None:
    cluster = with_issuer()
    cluster.put(issuer())
    await until_quiet(cluster)
    issue(cluster, "store")
    secret = cluster.objects[Ref(SECRET, "default", "kv-store-issued")]
    with pytest.raises(Unfinished, match="asked for 3 certificates"):
        await forget_prefixcache(cluster, "default", "kv", SETTINGS)
    cluster.put(secret)  # as one who has not noticed yet
    await forget_prefixcache(cluster, "default", "kv", SETTINGS)
    cluster.remove(CACHE)
    assert [ref.name for ref in cluster.objects if ref.name.endswith("-issued")] == []
