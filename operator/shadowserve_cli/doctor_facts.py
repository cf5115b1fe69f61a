"""Looks a cluster over for `shadowserve doctor`: reads, and asks by dry runs; changes nothing, decides nothing."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from shadowserve_cli.connection import SYSTEM_NAMESPACE
from shadowserve_cli.picture import Picture, observe_picture
from shadowserve_crds import names
from shadowserve_crds.generate import KINDS
from shadowserve_crds.prefixcache import PrefixCache
from shadowserve_operator import pki
from shadowserve_operator.cluster import ApiCluster
from shadowserve_operator.desired.certificates import Certificate, files_of
from shadowserve_operator.desired.dataplane import dataplane_objects
from shadowserve_operator.desired.pods import UNPRIVILEGED_USER, restricted
from shadowserve_operator.desired.store import store_objects
from shadowserve_operator.errors import Forbidden, NotServed, Refused
from shadowserve_operator.kinds import DEPLOYMENT, SECRET, Json, Kind, Ref
from shadowserve_operator.rights import IN_CLUSTER, IN_NAMESPACE, TO_INSTALL, Right
from shadowserve_operator.settings import OperatorSettings
from shadowserve_operator.webhook_identity import WEBHOOK

OPERATOR = "shadowserve-operator"
OTHER_POOL = "inferencepools.inference.networking.k8s.io"
PROBE = "shadowserve-doctor"
"""Name of the pod that is made in a dry run, and of the PrefixCache that it asks for: there is none."""
_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_AUTHORIZATION = "/apis/authorization.k8s.io/v1"
_POLICY = Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")
_WATCHED = "SHADOWSERVE_WATCH_NAMESPACES"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is. Tuples of words say what is missing or refused; None: it could not be found out.

    `namespaces` are the labels of those that are looked at, None for one that does not exist. `probe` are the
    annotations of the pod of a dry run, None when the API server refused it: then `refused` says why. `policies` are
    the NetworkPolicies of every namespace with a PrefixCache in it where they may be read.
    """

    version: str = ""
    system: str = SYSTEM_NAMESPACE
    definitions: Mapping[str, Json | None] = field(default_factory=dict)
    other_pool: bool = False
    installed: bool = False
    may_not_install: tuple[str, ...] = ()
    deployments: Mapping[str, Json | None] = field(default_factory=dict)
    missing_rights: tuple[str, ...] | None = None
    namespaces: Mapping[str, Mapping[str, str] | None] = field(default_factory=dict)
    probe: Mapping[str, str] | None = None
    refused: tuple[str, ...] = ()
    certificates: Mapping[str, Certificate | None] = field(default_factory=dict)
    policies: Mapping[str, tuple[Json, ...]] = field(default_factory=dict)
    picture: Picture = field(default_factory=Picture)
    unreadable: tuple[str, ...] = ()


async def observe_facts(cluster: ApiCluster, namespace: str, system: str) -> Facts:
    """Return what is; `namespace` is looked at when the operator does not say which ones it watches."""
    version = str((await cluster.ask("/version"))["gitVersion"])
    unreadable: list[str] = []
    definitions = {
        name: await _definition(cluster, name, unreadable)
        for name in (f"{kind.plural}.{names.GROUP}" for kind in KINDS)
    }
    installed = any(definitions.values())
    deployments = {name: await _deployment(cluster, system, name, unreadable) for name in (OPERATOR, WEBHOOK)}
    watched = watched_namespaces(deployments[OPERATOR]) or (namespace,)
    namespaces = {name: await _namespace_labels(cluster, name) for name in watched}
    there = [name for name, labels in namespaces.items() if labels is not None]
    probe, refused = await _tried(cluster, there)
    picture = await observe_picture(cluster, "", system) if all(definitions.values()) else Picture()
    return Facts(
        version=version,
        system=system,
        definitions=definitions,
        other_pool=await _definition(cluster, OTHER_POOL, unreadable) is not None,
        installed=installed or any(deployments.values()),
        may_not_install=await _not_allowed(cluster, TO_INSTALL),
        deployments=deployments,
        missing_rights=await _missing_rights(cluster, system, there) if installed else None,
        namespaces=namespaces,
        probe=probe,
        refused=refused,
        certificates=await _certificates(cluster, [*there, system], unreadable) if installed else {},
        policies=await _policies(cluster, sorted({each.namespace for each in picture.caches}), unreadable),
        picture=picture,
        unreadable=tuple(dict.fromkeys(unreadable)),
    )


def watched_namespaces(deployment: Json | None) -> tuple[str, ...]:
    """Return the namespaces that the operator's Deployment names; none: all, or there is no Deployment."""
    containers = (deployment or {}).get("spec", {}).get("template", {}).get("spec", {}).get("containers", ())
    values = [each.get("value", "") for one in containers for each in one.get("env", ()) if each["name"] == _WATCHED]
    return tuple(name.strip() for value in values for name in value.split(",") if name.strip())


async def _definition(cluster: ApiCluster, name: str, unreadable: list[str]) -> Json | None:
    try:
        return await cluster.ask(f"{_CRDS}/{name}")
    except NotServed:
        return None
    except Forbidden:
        unreadable.append("custom resource definitions: you have no right to read them")
        return None


async def _deployment(cluster: ApiCluster, system: str, name: str, unreadable: list[str]) -> Json | None:
    try:
        return await cluster.get(Ref(DEPLOYMENT, system, name))
    except Forbidden:
        unreadable.append(f"Deployments of {system}: you have no right to read them")
        return None


async def _namespace_labels(cluster: ApiCluster, name: str) -> Mapping[str, str] | None:
    try:
        return dict((await cluster.ask(f"/api/v1/namespaces/{name}"))["metadata"].get("labels") or {})
    except NotServed:
        return None
    except Forbidden:
        return {}


async def _not_allowed(cluster: ApiCluster, wanted: Iterable[Right]) -> tuple[str, ...]:
    """Return which of the rights whoever runs this does not have."""
    return await _denied(cluster, "SelfSubjectAccessReview", wanted, "", {})


async def _missing_rights(cluster: ApiCluster, system: str, namespaces: Iterable[str]) -> tuple[str, ...] | None:
    """Return what the operator's account is not allowed to do, None when that may not be asked."""
    account = {
        "user": f"system:serviceaccount:{system}:{OPERATOR}",
        "groups": ["system:serviceaccounts", f"system:serviceaccounts:{system}", "system:authenticated"],
    }
    try:
        found = list(await _denied(cluster, "SubjectAccessReview", IN_CLUSTER, "", account))
        for name in namespaces:
            found += await _denied(cluster, "SubjectAccessReview", IN_NAMESPACE, name, account)
    except Forbidden:
        return None
    return tuple(found)


async def _denied(
    cluster: ApiCluster, kind: str, wanted: Iterable[Right], namespace: str, account: Json
) -> tuple[str, ...]:
    async def allowed(right: Right) -> bool:
        resource, _, subresource = right.resource.partition("/")
        about = {"verb": right.verb, "group": right.group, "resource": resource, "subresource": subresource}
        spec = {"resourceAttributes": {**about, "namespace": namespace}, **account}
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec}
        answer = await cluster.ask(f"{_AUTHORIZATION}/{kind.lower()}s", review)
        return bool(answer["status"].get("allowed"))

    listed = tuple(wanted)
    answers = await asyncio.gather(*(allowed(right) for right in listed))
    where = f" in {namespace}" if namespace else ""
    return tuple(f"{right}{where}" for right, good in zip(listed, answers, strict=True) if not good)


async def _tried(cluster: ApiCluster, namespaces: Iterable[str]) -> tuple[Mapping[str, str] | None, tuple[str, ...]]:
    """Return what the webhook wrote on a pod that asks for a cache, and which pods of ours would be refused."""
    annotations: Mapping[str, str] | None = None
    refused = []
    for namespace in namespaces:
        for what, pod in probe_pods(namespace).items():
            try:
                made = await cluster.ask(f"/api/v1/namespaces/{namespace}/pods", pod, {"dryRun": "All"})
            except Refused as error:
                refused.append(f"{what} in {namespace}: {error}")
            else:
                if what == "engine" and annotations is None:
                    annotations = made["metadata"].get("annotations") or {}
    return annotations, tuple(refused)


def probe_pods(namespace: str) -> dict[str, Json]:
    """Return pods as the operator makes them, and one that asks for a cache, by what they are."""
    cache = PrefixCache.parse({"metadata": {"name": PROBE, "namespace": namespace, "uid": "0"}})
    settings = OperatorSettings()
    workloads = [*store_objects(cache, settings), *dataplane_objects(cache, settings)]
    made = {
        body["kind"]: _pod(namespace, body["spec"]["template"]["spec"], {names.MANAGED_BY_LABEL: names.MANAGED_BY})
        for body in workloads
        if "template" in body.get("spec", {})
    }
    container = {"name": "engine", "image": "none", "securityContext": restricted(UNPRIVILEGED_USER)}
    engine = _pod(namespace, {"containers": [container]}, {names.CACHE_LABEL: PROBE})
    return {"store": made["StatefulSet"], "data plane": made["DaemonSet"], "engine": engine}


def _pod(namespace: str, spec: Json, labels: Mapping[str, str]) -> Json:
    metadata = {"name": PROBE, "namespace": namespace, "labels": dict(labels)}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


async def _policies(
    cluster: ApiCluster, namespaces: Iterable[str], unreadable: list[str]
) -> dict[str, tuple[Json, ...]]:
    found: dict[str, tuple[Json, ...]] = {}
    for namespace in namespaces:
        try:
            found[namespace] = await cluster.list(_POLICY, namespace)
        except Forbidden:
            unreadable.append(f"network policies of {namespace}: you have no right to read them")
    return found


async def _certificates(
    cluster: ApiCluster, namespaces: Iterable[str], unreadable: list[str]
) -> dict[str, Certificate | None]:
    """Return every certificate that the operator issued; None for one that cannot be read."""
    found: dict[str, Certificate | None] = {}
    for namespace in dict.fromkeys(namespaces):
        try:
            secrets = await cluster.list(SECRET, namespace, {names.MANAGED_BY_LABEL: names.MANAGED_BY})
        except Forbidden:
            unreadable.append(f"certificates in {namespace}: you have no right to read its Secrets")
            continue
        for body in secrets:
            if body.get("type") == "kubernetes.io/tls":
                found[f"{namespace}/{body['metadata']['name']}"] = pki.read(files_of(body))
    return found
