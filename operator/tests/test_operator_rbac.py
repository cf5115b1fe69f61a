"""What the installed roles allow, listed: whoever widens them has to change this list."""

from typing import Any

import pytest
import yaml

from shadowserve_operator.install import install_text
from shadowserve_operator.rights import IN_CLUSTER, IN_NAMESPACE, Right

OBJECTS: list[dict[str, Any]] = [each for each in yaml.safe_load_all(install_text()) if each]
READ, KEEP = "get list watch", "get list watch create patch delete"


def rights(kind: str, name: str) -> dict[str, str]:
    """Return verbs by resource; those that hold for some names only have the names behind them."""
    (role,) = [each for each in OBJECTS if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    found: dict[str, str] = {}
    for rule in role["rules"]:
        only = f" [{' '.join(rule['resourceNames'])}]" if "resourceNames" in rule else ""
        there = ".networking" if rule["apiGroups"] == ["inference.networking.k8s.io"] else ""
        found |= {resource + there: " ".join(rule["verbs"]) + only for resource in rule["resources"]}
    return found


def test_in_the_whole_cluster_the_operator_reads_nodes_and_keeps_bindings() -> None:
    assert rights("ClusterRole", "shadowserve-operator") == {
        "nodes": READ,
        "dpubindings": KEEP,
        "dpubindings/status": "patch",
        "namespaces": "list watch",
        "customresourcedefinitions": "list watch",
        "clusterissuers": "get",
        "mutatingwebhookconfigurations": "get patch [shadowserve]",
    }


def test_in_a_watched_namespace_the_operator_keeps_what_it_makes() -> None:
    made = ("configmaps", "secrets", "services", "daemonsets", "deployments", "statefulsets", "poddisruptionbudgets")
    assert rights("Role", "shadowserve-operator") == {
        "prefixcaches": "get list watch patch",
        "inferencepools": "get list watch patch",
        "prefixcaches/status": "patch",
        "inferencepools/status": "patch",
        "prefixcaches/finalizers": "update",
        "inferencepools/finalizers": "update",
        **dict.fromkeys(made, KEEP),
        "pods": "get list watch patch",
        "persistentvolumeclaims": "get",
        "certificates": KEEP,
        "inferencepools.networking": KEEP,
        "issuers": "get",
        "events": "create",
    }


@pytest.mark.parametrize(
    ("kind", "asked"), [("ClusterRole", IN_CLUSTER), ("Role", IN_NAMESPACE)], ids=["cluster", "namespace"]
)
def test_the_doctor_asks_for_what_the_roles_give(kind: str, asked: tuple[Right, ...]) -> None:
    given = {
        (verb, resource.removesuffix(".networking"))
        for resource, verbs in rights(kind, "shadowserve-operator").items()
        for verb in verbs.split(" [")[0].split()
    }
    found_by_the_framework = {"namespaces", "customresourcedefinitions", "mutatingwebhookconfigurations"}
    assert {each for each in given if each[1] not in found_by_the_framework} == {(e.verb, e.resource) for e in asked}


def test_in_its_own_namespace_the_operator_has_its_lease_and_the_webhooks_certificate() -> None:
    assert rights("Role", "shadowserve-operator-own") == {
        "leases": "get create patch [shadowserve-operator]",
        "deployments": "get [shadowserve-webhook]",
        "secrets": "get create patch [shadowserve-webhook-authority shadowserve-webhook-tls]",
    }


def test_the_webhook_reads_caches_and_their_settings_and_nothing_else() -> None:
    assert rights("Role", "shadowserve-webhook") == {"prefixcaches": "get", "configmaps": "get"}


@pytest.mark.parametrize("binding", [each for each in OBJECTS if each["kind"].endswith("RoleBinding")], ids=str)
def test_roles_are_bound_to_our_accounts_only(binding: dict[str, Any]) -> None:
    accounts = {
        (each["metadata"]["namespace"], each["metadata"]["name"])
        for each in OBJECTS
        if each["kind"] == "ServiceAccount"
    }
    assert {(each["namespace"], each["name"]) for each in binding["subjects"]} <= accounts


def test_no_role_has_a_wildcard_and_none_of_the_cluster_reaches_secrets() -> None:
    for role in (each for each in OBJECTS if each["kind"] in ("Role", "ClusterRole")):
        for rule in role["rules"]:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert role["kind"] == "Role" or "secrets" not in rule["resources"]
