"""What `shadowserve doctor` makes of the facts: pure, one function a check. Every complaint comes with its fix."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from shadowserve_cli.doctor_facts import OPERATOR, OTHER_POOL, Facts
from shadowserve_cli.guarding import Port, guarded, mended, opened_by
from shadowserve_cli.status_report import operator_says
from shadowserve_crds import names
from shadowserve_crds.conditions import READY, ConditionStatus
from shadowserve_crds.generate import KINDS
from shadowserve_crds.inferencepool import InferencePool
from shadowserve_crds.placement import PlaceName
from shadowserve_crds.prefixcache import PrefixCache
from shadowserve_crds.schema import definition
from shadowserve_crds.store import StoreType
from shadowserve_operator.desired.config import DATA_PLANE, STORE
from shadowserve_operator.desired.dataplane import DATA_PLANE_PORT_NAME
from shadowserve_operator.desired.labels import labels_of
from shadowserve_operator.desired.pairing import is_card, resolve
from shadowserve_operator.desired.store import STORE_PORT_NAME
from shadowserve_operator.desired.wording import first_few
from shadowserve_operator.plan import first_difference
from shadowserve_operator.webhook_identity import HOOK, WEBHOOK

OLDEST = (1, 30)
"""Kubernetes that has native sidecars, CEL rules and the `sleep` hook without a feature gate."""
INSTALL = "kubectl apply --server-side -k <your overlay>, or -f manifests/install.yaml"
_APPLY = f"apply what you installed again: {INSTALL}"
_ADD = "add the namespace to your overlay as docs/namespaces.md says, and apply it"
_STORE_PORT = Port(names.STORE_PORT, STORE_PORT_NAME)
_DATA_PLANE_PORT = Port(names.DATA_PLANE_PORT, DATA_PLANE_PORT_NAME)
_MOST = 3
_POD_SECURITY = "pod-security.kubernetes.io/enforce"


class Verdict(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"
    UNKNOWN = "unknown"
    """It could not be looked at."""
    NOT_YET = "not installed"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: what was found, and the fix where there is something to fix."""

    name: str
    verdict: Verdict
    found: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All checks. `installed`: whether anything of ShadowServe is there."""

    installed: bool
    checks: tuple[Check, ...]

    @property
    def wrong(self) -> bool:
        """Whether something has to be fixed."""
        return any(each.verdict is Verdict.WRONG for each in self.checks)


def diagnosis(facts: Facts, now: datetime) -> Diagnosis:
    """Return what the facts mean."""
    before = [_api_server(facts), *([] if facts.installed else [_installer(facts)]), _other_pool(facts)]
    after = [
        _definitions(facts),
        *(_deployment(facts, name) for name in (OPERATOR, WEBHOOK)),
        _lease(facts, now),
        _rights(facts),
        _webhook_configuration(facts),
        _webhook_answers(facts),
        _certificates(facts, now),
        _policies(facts),
        _resources(facts),
    ]
    around = [_namespaces(facts), _pods_admitted(facts), _nodes(facts), _pairing(facts)]
    if not facts.installed:
        after = [Check(each.name, Verdict.NOT_YET, "", INSTALL) for each in after]
    unreadable = [Check("looked at", Verdict.UNKNOWN, each, "run it as an administrator") for each in facts.unreadable]
    return Diagnosis(facts.installed, (*before, *around, *after, *unreadable))


def _api_server(facts: Facts) -> Check:
    name, found = "API server", re.match(r"v(\d+)\.(\d+)", facts.version)
    wanted = ".".join(map(str, OLDEST))
    if found is None:
        return Check(name, Verdict.UNKNOWN, f"its version reads {facts.version!r}", f"at least {wanted} is needed")
    if (int(found[1]), int(found[2])) < OLDEST:
        return Check(name, Verdict.WRONG, f"Kubernetes {facts.version}", f"upgrade to {wanted} or newer")
    return Check(name, Verdict.OK, f"Kubernetes {facts.version}")


def _installer(facts: Facts) -> Check:
    if facts.may_not_install:
        listed = _some(facts.may_not_install)
        return Check("your rights", Verdict.WRONG, f"you may not {listed}", "install as an administrator")
    return Check("your rights", Verdict.OK, "you may install")


def _other_pool(facts: Facts) -> Check:
    if facts.other_pool:
        return Check("other InferencePool", Verdict.OK, f"{OTHER_POOL} is there too: say `kubectl get sspool` for ours")
    return Check("other InferencePool", Verdict.OK, "none")


def _definitions(facts: Facts) -> Check:
    name = "custom resources"
    missing = [each for each, body in facts.definitions.items() if body is None]
    if missing and any("definitions" in each for each in facts.unreadable):
        return Check(name, Verdict.UNKNOWN, "they may not be read")
    if missing:
        return Check(name, Verdict.WRONG, f"not installed: {', '.join(missing)}", _APPLY)
    for kind in KINDS:
        crd = f"{kind.plural}.{names.GROUP}"
        live = facts.definitions.get(crd) or {}
        said = {each["type"]: each["status"] for each in live.get("status", {}).get("conditions", ())}
        if said.get("Established") != "True":
            return Check(name, Verdict.WRONG, f"{crd} is not served", f"kubectl describe crd {crd}")
        if difference := first_difference(definition(kind)["spec"], live.get("spec"), "spec"):
            return Check(name, Verdict.WRONG, f"{crd} is of another version: {difference}", _APPLY)
    return Check(name, Verdict.OK, f"{len(KINDS)} kinds, current")


def _deployment(facts: Facts, wanted: str) -> Check:
    body = facts.deployments.get(wanted)
    if body is None:
        hidden = any(each.startswith("Deployments") for each in facts.unreadable)
        return Check(wanted, Verdict.UNKNOWN if hidden else Verdict.WRONG, "its Deployment is not there", _APPLY)
    namespace, status = body["metadata"]["namespace"], body.get("status", {})
    ready, replicas = status.get("readyReplicas", 0), body["spec"].get("replicas", 1)
    look = f"kubectl -n {namespace} describe pods -l app.kubernetes.io/name={wanted}"
    if not replicas:
        return Check(
            wanted, Verdict.WRONG, "scaled to 0", f"kubectl -n {namespace} scale deployment {wanted} --replicas=2"
        )
    if not ready:
        return Check(wanted, Verdict.WRONG, f"none of {replicas} pods is ready", look)
    verdict = Verdict.OK if ready >= replicas else Verdict.WARNING
    return Check(wanted, verdict, f"{ready} of {replicas} pods are ready", "" if verdict is Verdict.OK else look)


def _lease(facts: Facts, now: datetime) -> Check:
    who, idle = operator_says(facts.picture, now)
    if idle:
        look = f"kubectl -n {facts.system} logs -l app.kubernetes.io/name={OPERATOR} --all-pods"
        return Check("operator acts", Verdict.WRONG, who, look)
    return Check("operator acts", Verdict.UNKNOWN if who.startswith("unknown") else Verdict.OK, who)


def _rights(facts: Facts) -> Check:
    name = "operator's rights"
    if facts.missing_rights is None:
        return Check(name, Verdict.UNKNOWN, "you may not ask what others may do", "run it as an administrator")
    if facts.missing_rights:
        fix = f"{_APPLY}; a namespace that is not in it: {_ADD}"
        return Check(name, Verdict.WRONG, f"it may not {_some(facts.missing_rights)}", fix)
    return Check(name, Verdict.OK, f"all it needs in {', '.join(_there(facts))}")


def _webhook_configuration(facts: Facts) -> Check:
    name, hook = "webhook's configuration", facts.picture.hook
    if hook is None:
        hidden = any("WebhookConfiguration" in each for each in facts.picture.unreadable)
        return Check(name, Verdict.UNKNOWN if hidden else Verdict.WRONG, "not there, or may not be read", _APPLY)
    ours = next((each for each in hook.get("webhooks", ()) if each["name"] == HOOK), None)
    if ours is None:
        return Check(name, Verdict.WRONG, f"it has no {HOOK}", _APPLY)
    if not ours.get("clientConfig", {}).get("caBundle"):
        fix = "the leading operator writes it within a minute: see the check `operator acts`"
        return Check(name, Verdict.WRONG, "the API server was not told the webhook's authority (caBundle)", fix)
    if ours.get("failurePolicy") != "Ignore":
        return Check(name, Verdict.WARNING, "failurePolicy is not Ignore: an outage would hold pods back", _APPLY)
    return Check(name, Verdict.OK, "the API server knows its authority, and an outage holds no pod back")


def _webhook_answers(facts: Facts) -> Check:
    name = "webhook answers"
    if facts.probe is None:
        return Check(name, Verdict.UNKNOWN, "no pod could be tried", "see the check `our pods are admitted`")
    skipped = facts.probe.get(names.SKIPPED_ANNOTATION, "")
    if "cannot be looked up" in skipped:
        fix = f"{_ADD}; or look at the webhook's log"
        return Check(name, Verdict.WRONG, f"it is reached, but {skipped}", fix)
    if not skipped:
        fix = (
            f"kubectl -n {facts.system} logs -l app.kubernetes.io/name={WEBHOOK} --all-pods; let the API server "
            f"reach its port 8443 (NetworkPolicies, firewall)"
        )
        return Check(name, Verdict.WRONG, "a pod that asks for a cache was not shown to it (dry run)", fix)
    return Check(name, Verdict.OK, "it saw a pod that asks for a cache (dry run)")


def _certificates(facts: Facts, now: datetime) -> Check:
    name, fix = "certificates", "delete its Secret, and the operator issues a new one; see the check `operator acts`"
    unreadable = sorted(each for each, one in facts.certificates.items() if one is None)
    expired = sorted(each for each, one in facts.certificates.items() if one is not None and one.not_after <= now)
    if unreadable or expired:
        return Check(name, Verdict.WRONG, f"expired or damaged: {_some([*expired, *unreadable])}", fix)
    good = [(one.not_after, each) for each, one in facts.certificates.items() if one is not None]
    if not good:
        return Check(name, Verdict.OK, "none is needed yet")
    when, first = min(good)
    left = when - now
    verdict = Verdict.OK if left.days >= 1 else Verdict.WARNING
    found = f"{len(good)} valid; {first} is the first to expire, in {left.days} days"
    return Check(name, verdict, found, "" if verdict is Verdict.OK else fix)


def _policies(facts: Facts) -> Check:
    """Judge policies by what they do, not by their names: they may be the user's own."""
    name = "network policies"
    exposed = {f"{each.part} of {each.namespace}": each for each in _exposed(facts)}
    if exposed:
        first = exposed[min(exposed, key=lambda said: (exposed[said].namespace, said))]
        fix = mended(facts.policies, first.namespace, _APPLY)
        if first.opened_by:
            fix = f"narrow or delete network policy {first.opened_by[0]} of {first.namespace}: it admits everybody"
        return Check(name, Verdict.WARNING, f"every pod may try to reach the {_some(sorted(exposed))}", fix)
    if not facts.policies:
        return Check(name, Verdict.OK, "there is no PrefixCache yet, or they may not be read")
    return Check(name, Verdict.OK, f"stores and data planes are guarded in {_some(sorted(facts.policies))}")


@dataclass(frozen=True, slots=True)
class _Exposed:
    """Pods of a cache that no policy guards from the others; `opened_by` are policies that undo what guards them."""

    part: str
    namespace: str
    opened_by: tuple[str, ...]


def _exposed(facts: Facts) -> Iterable[_Exposed]:
    for cache in facts.picture.caches:
        policies = facts.policies.get(cache.namespace)
        if policies is None:
            continue
        parts = {"stores": (STORE, _STORE_PORT)} if cache.spec.store.type is StoreType.MANAGED else {}
        if PlaceName.DPU in cache.spec.placement.order:
            parts |= {"data planes": (DATA_PLANE, _DATA_PLANE_PORT)}
        for part, (component, port) in parts.items():
            labels = labels_of(cache.name, component)
            if not guarded(policies, labels, port):
                yield _Exposed(part, cache.namespace, tuple(opened_by(policies, labels, port)))


def _resources(facts: Facts) -> Check:
    everything: tuple[PrefixCache | InferencePool, ...] = (*facts.picture.caches, *facts.picture.pools)
    bad = [
        f"{each.kind_name} {each.namespace}/{each.name}"
        for each in everything
        if not any(one.type == READY and one.status is ConditionStatus.TRUE for one in each.status.conditions)
    ]
    if bad:
        return Check("resources", Verdict.WARNING, f"not ready: {_some(bad)}", "shadowserve status -A")
    return Check("resources", Verdict.OK, f"{len(everything)} resources, all ready" if everything else "none yet")


def _namespaces(facts: Facts) -> Check:
    absent = sorted(each for each, labels in facts.namespaces.items() if labels is None)
    if absent:
        fix = f"kubectl create namespace {absent[0]}, or take it out of your overlay (SHADOWSERVE_WATCH_NAMESPACES)"
        return Check("namespaces", Verdict.WRONG, f"do not exist: {', '.join(absent)}", fix)
    return Check("namespaces", Verdict.OK, ", ".join(_there(facts)))


def _pods_admitted(facts: Facts) -> Check:
    name = "our pods are admitted"
    if facts.refused:
        fix = "all our pods keep the restricted Pod Security Standard: adapt the policy or quota that refuses them"
        return Check(name, Verdict.WRONG, facts.refused[0], fix)
    levels = {
        each: labels.get(_POD_SECURITY, "none") for each, labels in facts.namespaces.items() if labels is not None
    }
    listed = ", ".join(f"{each} enforces {level}" for each, level in levels.items())
    return Check(name, Verdict.OK, f"store, data plane and engine, by a dry run (Pod Security: {listed})")


def _nodes(facts: Facts) -> Check:
    name, nodes = "nodes", facts.picture.nodes
    if not nodes:
        hidden = not facts.installed or any(each.startswith("nodes") for each in facts.picture.unreadable)
        return Check(name, Verdict.UNKNOWN if hidden else Verdict.WRONG, "none seen", "let a node join")
    silent = [node.name for node in nodes if not node.ready]
    if len(silent) == len(nodes):
        return Check(name, Verdict.WRONG, "none is ready", "kubectl get nodes")
    cards = sorted(
        {node.name for cache in _card_users(facts) for node in nodes if is_card(node, cache.spec.placement.dpu)}
    )
    said = f"{len(nodes) - len(silent)} of {len(nodes)} are ready, {len(cards)} of them cards"
    if silent:
        return Check(name, Verdict.WARNING, f"{said}; silent: {_some(silent)}", "kubectl get nodes")
    if not cards and any(_discovered(node.labels) for node in nodes):
        fix = f"label the cards' nodes: kubectl label node CARD {names.DEFAULT_HOST_LABEL}=HOST"
        return Check(name, Verdict.WARNING, f"{said}, but NFD found BlueField cards", fix)
    return Check(name, Verdict.OK, said)


def _discovered(labels: Mapping[str, str]) -> bool:
    """Return whether NFD saw a network card of the vendor of BlueField (PCI vendor 15b3)."""
    return any(key.startswith("feature.node.kubernetes.io/pci-") and "15b3" in key for key in labels)


def _pairing(facts: Facts) -> Check:
    name, nodes, bindings = "pairing", facts.picture.nodes, facts.picture.bindings
    pairings = [resolve(nodes, bindings, each.spec.placement.dpu) for each in _card_users(facts)]
    if unpaired := sorted({each.message for pairing in pairings for each in pairing.unpaired}):
        return Check(name, Verdict.WRONG, unpaired[0], "the message says it; then `kubectl get dpub`")
    paired = {pair.card for pairing in pairings for pair in pairing.pairs}
    return Check(name, Verdict.OK, f"{len(paired)} cards have their host" if paired else "no cards: hosts restore")


def _card_users(facts: Facts) -> list[PrefixCache]:
    """Return the PrefixCaches that use cards; one with all defaults when there is none yet."""
    caches = facts.picture.caches or (PrefixCache.parse({"metadata": {"name": "any"}}),)
    return [each for each in caches if PlaceName.DPU in each.spec.placement.order]


def _there(facts: Facts) -> list[str]:
    return [each for each, labels in facts.namespaces.items() if labels is not None]


def _some(words: Iterable[str]) -> str:
    return first_few(words, _MOST)
