"""What `shadowserve doctor` makes of what it found."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_pictures import NOW, cache, condition, hook, lease, nodes, picture

from shadowserve_cli.doctor_checks import Check, Diagnosis, Verdict, diagnosis
from shadowserve_cli.doctor_facts import OPERATOR, Facts, probe_pods, watched_namespaces
from shadowserve_crds import names
from shadowserve_crds.generate import KINDS
from shadowserve_crds.schema import definition
from shadowserve_operator import pki
from shadowserve_operator.desired.certificates import Wanted
from shadowserve_operator.desired.pairing import Node
from shadowserve_operator.kinds import Json
from shadowserve_operator.webhook_identity import WEBHOOK

MANIFESTS = Path(__file__).parents[2] / "manifests"


def definitions(**changes: Any) -> dict[str, Json | None]:
    said = {"conditions": [{"type": "Established", "status": "True"}]}
    found: dict[str, Json | None] = {
        f"{kind.plural}.{names.GROUP}": {**definition(kind), "status": said} for kind in KINDS
    }
    return found | changes


def deployment(name: str, ready: int = 2, replicas: int = 2) -> Json:
    environment = [{"name": "SHADOWSERVE_WATCH_NAMESPACES", "value": "default, chat"}]
    template = {"spec": {"containers": [{"name": "operator", "env": environment}]}}
    metadata = {"name": name, "namespace": "shadowserve-system"}
    return {
        "metadata": metadata,
        "spec": {"replicas": replicas, "template": template},
        "status": {"readyReplicas": ready},
    }


POLICIES = tuple(
    each
    for each in yaml.safe_load_all((MANIFESTS / "components/watch-namespace/network-policies.yaml").read_text())
    if each["kind"] == "NetworkPolicy"
)


def facts(**changes: Any) -> Facts:
    found: dict[str, Any] = {
        "version": "v1.36.3",
        "definitions": definitions(),
        "installed": True,
        "deployments": {name: deployment(name) for name in (OPERATOR, WEBHOOK)},
        "missing_rights": (),
        "namespaces": {"default": {"pod-security.kubernetes.io/enforce": "restricted"}},
        "probe": {names.SKIPPED_ANNOTATION: "there is no PrefixCache shadowserve-doctor in namespace default"},
        "policies": {"default": POLICIES},
        "picture": picture(),
        **changes,
    }
    return Facts(**found)


def check(found: Diagnosis, name: str) -> Check:
    return next(each for each in found.checks if each.name == name)


def certificate(days: float) -> Any:
    issued = NOW - timedelta(days=90 - days)
    return pki.issue(Wanted("x", ("x",)), pki.make_authority("a", issued), issued)


def test_a_cluster_in_order() -> None:
    found = diagnosis(facts(certificates={"default/kv-store-tls": certificate(80)}), NOW)
    assert {each.verdict for each in found.checks} == {Verdict.OK}, found.checks
    assert "restricted" in check(found, "our pods are admitted").found
    assert "in 80 days" in check(found, "certificates").found


def test_before_install_the_cluster_is_judged_by_whether_it_is_fit() -> None:
    bare = Facts(version="v1.36.3", definitions=dict.fromkeys(definitions()), namespaces={"default": {}}, probe={})
    found = diagnosis(bare, NOW)
    assert not found.wrong, found.checks
    assert check(found, "webhook answers").verdict is Verdict.NOT_YET
    poor = diagnosis(Facts(version="v1.29.0", may_not_install=("create namespaces",)), NOW)
    assert check(poor, "API server").verdict is Verdict.WRONG
    assert "you may not create namespaces" in check(poor, "your rights").found


def _other_schema() -> dict[str, Json | None]:
    name = f"prefixcaches.{names.GROUP}"
    body = definitions()[name] or {}
    return {name: {**body, "spec": {**body["spec"], "versions": []}}}


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("custom resources", {"definitions": definitions(**{f"prefixcaches.{names.GROUP}": None})}, "not installed"),
        ("custom resources", {"definitions": definitions(**_other_schema())}, "of another version: spec.versions"),
        (OPERATOR, {"deployments": {OPERATOR: None, WEBHOOK: deployment(WEBHOOK)}}, "not there"),
        (WEBHOOK, {"deployments": {OPERATOR: deployment(OPERATOR), WEBHOOK: deployment(WEBHOOK, 0)}}, "none of 2"),
        (WEBHOOK, {"deployments": {OPERATOR: deployment(OPERATOR), WEBHOOK: deployment(WEBHOOK, 0, 0)}}, "scaled to 0"),
        ("operator acts", {"picture": picture(lease=lease(600))}, "has not renewed it for 600 s"),
        ("operator's rights", {"missing_rights": ("create secrets in chat",)}, "may not create secrets in chat"),
        ("webhook's configuration", {"picture": picture(hook=None)}, "not there"),
        ("webhook's configuration", {"picture": picture(hook=hook(clientConfig={}))}, "caBundle"),
        ("webhook answers", {"probe": {}}, "was not shown to it"),
        (
            "webhook answers",
            {"probe": {names.SKIPPED_ANNOTATION: "PrefixCache x cannot be looked up now (forbidden)"}},
            "it is reached, but",
        ),
        ("certificates", {"certificates": {"default/kv-store-tls": certificate(-1)}}, "expired or damaged"),
        ("certificates", {"certificates": {"default/kv-store-tls": None}}, "expired or damaged"),
        ("namespaces", {"namespaces": {"nowhere": None}}, "do not exist: nowhere"),
        ("our pods are admitted", {"refused": ("store in default: violates PodSecurity",)}, "violates PodSecurity"),
        ("nodes", {"picture": picture(nodes=())}, "none seen"),
        ("pairing", {"picture": picture(nodes=nodes()[:1])}, "which is no node"),
    ],
)
def test_what_is_wrong_is_said_with_its_fix(name: str, changes: dict[str, Any], says: str) -> None:
    found = diagnosis(facts(**changes), NOW)
    assert found.wrong
    assert check(found, name).verdict is Verdict.WRONG
    assert says in check(found, name).found
    assert check(found, name).fix


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        (OPERATOR, {"deployments": {OPERATOR: deployment(OPERATOR, 1), WEBHOOK: deployment(WEBHOOK)}}, "1 of 2"),
        ("certificates", {"certificates": {"default/kv-store-tls": certificate(0.5)}}, "in 0 days"),
        ("resources", {"picture": picture(caches=(cache(condition("Ready", "False")),))}, "PrefixCache default/kv"),
        ("nodes", {"picture": picture(nodes=nodes(ready=False))}, "silent: card-0"),
        (
            "nodes",
            {
                "picture": picture(
                    nodes=(Node("a", {"feature.node.kubernetes.io/pci-0200_15b3.present": "true"}, True),)
                )
            },
            "NFD found BlueField cards",
        ),
        ("webhook's configuration", {"picture": picture(hook=hook(failurePolicy="Fail"))}, "hold pods back"),
        ("network policies", {"policies": {"default": ()}}, "reach the data planes of default, stores of default"),
        ("network policies", {"policies": {"default": POLICIES[:1]}}, "reach the data planes of default"),
    ],
)
def test_what_deserves_a_look_is_no_failure(name: str, changes: dict[str, Any], says: str) -> None:
    found = diagnosis(facts(**changes), NOW)
    assert not found.wrong
    assert check(found, name).verdict is Verdict.WARNING
    assert says in check(found, name).found
    assert check(found, name).fix


def test_policies_of_the_users_own_guard_as_well_and_a_cache_on_hosts_needs_less() -> None:
    everything = {"spec": {"podSelector": {}, "policyTypes": ["Ingress"]}}
    assert check(diagnosis(facts(policies={"default": (everything,)}), NOW), "network policies").verdict is Verdict.OK
    leaving = {"spec": {"podSelector": {}, "policyTypes": ["Egress"]}}
    found = check(diagnosis(facts(policies={"default": (leaving,)}), NOW), "network policies")
    assert found.verdict is Verdict.WARNING
    on_hosts = picture(caches=(cache(placement={"order": ["Host"]}),))
    assert (
        check(diagnosis(facts(policies={"default": POLICIES[:1]}, picture=on_hosts), NOW), "network policies").verdict
        is Verdict.OK
    )


def _block(cidr: str) -> Json:
    return {"ipBlock": {"cidr": cidr}}


def _expression(key: str, operator: str, *values: str) -> Json:
    return {"matchExpressions": [{"key": key, "operator": operator, **({"values": list(values)} if values else {})}]}


ALL_PODS: Json = {"podSelector": {}, "policyTypes": ["Ingress"]}


@pytest.mark.parametrize(
    ("rule", "exposed"),
    [
        ({}, True),
        ({"from": [{"namespaceSelector": {}}]}, True),
        ({"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}, True),
        ({"ports": [{"protocol": "TCP"}]}, True),
        ({"ports": [{"port": 6000, "endPort": 7000}]}, True),
        ({"ports": [{"port": names.STORE_PORT, "protocol": "UDP"}]}, False),
        ({"ports": [{"port": 80}]}, False),
        ({"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "a"}}}]}, False),
        ({"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}]}, False),
        ({"ports": [{"port": "valkey"}]}, True),
        ({"ports": [{"port": "bus"}]}, False),
        ({"from": [{"ipBlock": {"cidr": "0.0.0.0/1"}}, {"ipBlock": {"cidr": "128.0.0.0/1"}}]}, True),
        ({"from": [{"ipBlock": {"cidr": "0.0.0.0/1"}}, {"ipBlock": {"cidr": "128.0.0.0/2"}}]}, False),
        ({"from": [{"ipBlock": {"cidr": "::/1"}}, {"ipBlock": {"cidr": "8000::/1"}}]}, True),
        ({"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}, _block("10.0.0.0/8")]}, True),
        ({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["0.0.0.0/0"]}}]}, False),
        ({"from": [{"namespaceSelector": {"matchLabels": {}, "matchExpressions": []}}]}, True),
        ({"from": [{"namespaceSelector": _expression("kubernetes.io/metadata.name", "Exists")}]}, True),
        ({"from": [{"namespaceSelector": _expression("team", "NotIn", "blue")}]}, True),
        ({"from": [{"namespaceSelector": {}, "podSelector": _expression("app", "DoesNotExist")}]}, True),
        ({"from": [{"namespaceSelector": _expression("team", "In", "blue")}]}, False),
        ({"from": [{"namespaceSelector": {}, "podSelector": _expression("app", "Exists")}]}, False),
        ({"from": [{"podSelector": {}}]}, False),
    ],
)
def test_a_policy_that_admits_everybody_to_a_store_undoes_what_the_others_guard(rule: Json, exposed: bool) -> None:
    opened = {"metadata": {"name": "open"}, "spec": {**ALL_PODS, "ingress": [rule]}}
    found = check(diagnosis(facts(policies={"default": (*POLICIES, opened)}), NOW), "network policies")
    assert (found.verdict is Verdict.WARNING) is exposed
    assert ("stores of default" in found.found) is exposed
    assert ("network policy open of default" in found.fix) is exposed


def test_halves_of_all_addresses_in_two_rules_are_all_addresses() -> None:
    rules = [{"from": [_block("0.0.0.0/1")]}, {"from": [_block("128.0.0.0/1")], "ports": [{"port": names.STORE_PORT}]}]
    opened = {"metadata": {"name": "open"}, "spec": {**ALL_PODS, "ingress": rules}}
    found = check(diagnosis(facts(policies={"default": (*POLICIES, opened)}), NOW), "network policies")
    assert found.found == "every pod may try to reach the stores of default", "the second rule is of stores only"


@pytest.mark.parametrize(
    ("policies", "begins"),
    [
        ({"chat": ()}, "kubectl -n default get"),
        ({"chat": (), "default": POLICIES}, "kubectl -n default get"),
        ({"chat": (), "default": (), "prod": POLICIES}, "kubectl -n prod get"),
        (
            {"chat": (), "default": ()},
            "apply what you installed again: kubectl apply --server-side -k <your overlay>, "
            "or -f manifests/install.yaml; then kubectl -n default get",
        ),
    ],
)
def test_missing_policies_are_copied_from_where_they_are(policies: dict[str, Any], begins: str) -> None:
    in_chat = cache()
    in_chat = in_chat.model_copy(update={"metadata": in_chat.metadata.model_copy(update={"namespace": "chat"})})
    fix = check(diagnosis(facts(policies=policies, picture=picture(caches=(in_chat,))), NOW), "network policies").fix
    assert fix.startswith(begins)
    source = begins.rpartition("-n ")[2].partition(" ")[0]
    assert f"s/namespace: {source}$/namespace: chat/" in fix


def test_what_may_not_be_read_is_unknown_not_wrong() -> None:
    hidden = facts(
        missing_rights=None,
        definitions=dict.fromkeys(definitions()),
        deployments=dict.fromkeys((OPERATOR, WEBHOOK)),
        picture=picture(hook=None, lease=None, unreadable=("MutatingWebhookConfiguration shadowserve", "Lease x")),
        unreadable=("custom resource definitions: no", "Deployments of shadowserve-system: no"),
    )
    found = diagnosis(hidden, NOW)
    assert not found.wrong, [each for each in found.checks if each.verdict is Verdict.WRONG]


def test_the_namespaces_are_those_that_the_operator_watches() -> None:
    assert watched_namespaces(deployment(OPERATOR)) == ("default", "chat")
    assert watched_namespaces(None) == ()


def test_the_pods_that_are_tried_are_those_that_the_operator_makes() -> None:
    pods = probe_pods("default")
    assert pods["store"]["spec"]["containers"][0]["name"] == "valkey"
    assert pods["engine"]["metadata"]["labels"] == {names.CACHE_LABEL: "shadowserve-doctor"}
