"""What `manifests` installs: in one file, selected as the code expects, with metrics that exist."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from shadowserve_crds import names
from shadowserve_dataplane.landing import SlotState
from shadowserve_dataplane.service.metrics import DataPlaneMetrics
from shadowserve_dataplane.sidecar.metrics import LookupResult, SidecarMetrics
from shadowserve_operator.desired.labels import labels_of
from shadowserve_operator.install import install_text
from shadowserve_operator.install import parts as parts_of
from shadowserve_operator.metrics import InjectionMetrics, OperatorMetrics
from shadowserve_operator.readiness import PATH
from shadowserve_operator.webhook_identity import AUTHORITY_SECRET, CONFIGURATION, HOOK, SERVING_SECRET, WEBHOOK

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "manifests"
OBJECTS: list[dict[str, Any]] = [each for each in yaml.safe_load_all(install_text()) if each]
SYSTEM = "shadowserve-system"


def found(kind: str, name: str) -> dict[str, Any]:
    return next(each for each in OBJECTS if (each["kind"], each["metadata"]["name"]) == (kind, name))


def test_install_yaml_is_what_the_base_says() -> None:
    assert (MANIFESTS / "install.yaml").read_text() == install_text()


def test_no_object_is_installed_twice() -> None:
    keys = [(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in OBJECTS]
    assert len(keys) == len(set(keys))


def test_the_webhook_is_asked_only_about_pods_that_want_a_cache_and_blocks_nothing() -> None:
    (hook,) = found("MutatingWebhookConfiguration", CONFIGURATION)["webhooks"]
    assert (hook["name"], hook["failurePolicy"], hook["sideEffects"]) == (HOOK, "Ignore", "None")
    wanted = {"key": names.CACHE_LABEL, "operator": "Exists"}
    ours = {"key": names.MANAGED_BY_LABEL, "operator": "NotIn", "values": [names.MANAGED_BY]}
    assert hook["objectSelector"]["matchExpressions"] == [wanted, ours]
    assert hook["clientConfig"]["service"]["name"] == WEBHOOK
    volumes = found("Deployment", WEBHOOK)["spec"]["template"]["spec"]["volumes"]
    assert [each["secret"]["secretName"] for each in volumes] == [SERVING_SECRET]


@pytest.mark.parametrize("name", ["shadowserve-operator", WEBHOOK])
def test_our_own_pods_run_twice_and_keep_the_restricted_standard(name: str) -> None:
    spec = found("Deployment", name)["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    security = container["securityContext"]
    assert spec["replicas"] == 2
    assert security["runAsNonRoot"]
    assert not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert found("Namespace", SYSTEM)["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize(
    ("name", "ready", "alive"),
    [("shadowserve-operator", PATH, "/metrics"), (WEBHOOK, "/healthz", "/healthz")],
)
def test_our_own_pods_are_asked_whether_they_are_ready_and_whether_they_live(name: str, ready: str, alive: str) -> None:
    (container,) = found("Deployment", name)["spec"]["template"]["spec"]["containers"]
    probes = container["readinessProbe"], container["livenessProbe"]
    assert [each["httpGet"]["path"] for each in probes] == [ready, alive]
    assert {each["httpGet"]["port"] for each in probes} <= {each["name"] for each in container["ports"]}
    patience = [each["periodSeconds"] * each.get("failureThreshold", 3) for each in probes]
    assert patience[0] < patience[1], "what is busy gets no work before it is killed"


def emitted() -> set[str]:
    pipeline = CollectorRegistry()
    DataPlaneMetrics(pipeline).round_trip(True)
    sidecar = SidecarMetrics(lambda: dict.fromkeys(SlotState, 0))
    registries = [pipeline, sidecar.registry, OperatorMetrics().registry, InjectionMetrics().registry]
    families = [family for registry in registries for family in registry.collect()]
    suffixes = {"counter": ("_total",), "summary": ("_sum", "_count"), "histogram": ("_sum", "_count", "_bucket")}
    return {family.name + end for family in families for end in suffixes.get(family.type, ("",))}


def rules() -> list[dict[str, Any]]:
    text = (MANIFESTS / "components/monitoring/alerts.yaml").read_text()
    return [rule for group in yaml.safe_load(text)["spec"]["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((MANIFESTS / "components/monitoring/dashboard.json").read_text())
    return found


@pytest.mark.parametrize("file", ["alerts.yaml", "dashboard.json"])
def test_alerts_and_dashboard_ask_for_metrics_that_are_emitted(file: str) -> None:
    if file.endswith(".json"):
        asked = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
        asked += [variable["query"]["query"] for variable in dashboard()["templating"]["list"] if "refresh" in variable]
    else:
        asked = [rule["expr"] for rule in rules()]
    named = set(re.findall(r"\bshadowserve_\w+", " ".join(asked)))
    assert named
    assert named <= emitted()


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_every_alert_says_what_is_so_and_what_to_do_and_waits_before_it_wakes_anybody(rule: dict[str, Any]) -> None:
    assert set(rule["annotations"]) == {"summary", "description"}
    of_a_moment = "[" not in rule["expr"] and "expiry" not in rule["expr"]
    assert "for" in rule or not of_a_moment


def test_alerts_about_our_own_pods_ask_for_the_jobs_that_prometheus_makes_of_them() -> None:
    monitors = yaml.safe_load_all((MANIFESTS / "components/monitoring/monitors.yaml").read_text())
    monitor = next(each["spec"] for each in monitors if each["metadata"]["name"] == "shadowserve-operator")
    templates = [found("Deployment", name)["spec"]["template"] for name in ("shadowserve-operator", WEBHOOK)]
    jobs = {each["metadata"]["labels"][monitor["jobLabel"]] for each in templates}
    (selector,) = monitor["selector"]["matchExpressions"]
    assert set(selector["values"]) == jobs
    assert set(re.findall(r'job="([^"]+)"', " ".join(rule["expr"] for rule in rules()))) == jobs
    ports = [port["name"] for each in templates for port in each["spec"]["containers"][0]["ports"]]
    assert ports.count(monitor["podMetricsEndpoints"][0]["port"]) == len(jobs)


_OF_THE_TARGET = {"namespace", "pod", "container", "endpoint", "instance", "job"}
"""Labels that Prometheus writes over those of a metric, unless the monitor honours the metric's."""


def _told_by_the_operator() -> CollectorRegistry:
    metrics = OperatorMetrics()
    metrics.reconciled("PrefixCache", "settled", 0.1, 1)
    metrics.say("PrefixCache", "llm", "kv", {"Ready": "True"})
    metrics.expires("llm", "kv", datetime(2030, 1, 1, tzinfo=UTC))
    return metrics.registry


def _told_by_data_planes_and_sidecars() -> CollectorRegistry:
    metrics = SidecarMetrics(lambda: dict.fromkeys(SlotState, 0))
    DataPlaneMetrics(metrics.registry).round_trip(True)
    metrics.looked_up(LookupResult.HIT, 0.1)
    return metrics.registry


@pytest.mark.parametrize(
    ("monitor", "told"),
    [("shadowserve-operator", _told_by_the_operator()), ("shadowserve", _told_by_data_planes_and_sidecars())],
    ids=["operator", "pods of caches"],
)
def test_labels_of_our_metrics_are_kept_by_prometheus(monitor: str, told: CollectorRegistry) -> None:
    monitors = yaml.safe_load_all((MANIFESTS / "components/monitoring/monitors.yaml").read_text())
    (endpoint,) = next(each for each in monitors if each["metadata"]["name"] == monitor)["spec"]["podMetricsEndpoints"]
    labels = {label for family in told.collect() for sample in family.samples for label in sample.labels}
    assert endpoint.get("honorLabels", False) == bool(labels & _OF_THE_TARGET)


@pytest.mark.parametrize("panel", dashboard()["panels"], ids=lambda panel: panel["title"])
def test_every_panel_is_of_the_namespace_that_was_chosen_or_says_that_it_is_of_all(panel: dict[str, Any]) -> None:
    assert "namespace" in {variable["name"] for variable in dashboard()["templating"]["list"]}
    asked = " ".join(target["expr"] for target in panel["targets"])
    named = re.findall(r"\bshadowserve_\w+", asked)
    chosen = re.findall(r'\b(shadowserve_\w+)\{namespace=~"\$namespace"', asked)
    if chosen != named:
        assert not chosen
        assert panel["description"].startswith("Of all namespaces")
    # what the operator tells without one gets its own namespace from Prometheus: nobody's resources are there
    samples = [sample for family in _told_by_the_operator().collect() for sample in family.samples]
    assert all("namespace" in sample.labels for sample in samples if sample.name in chosen)


def test_the_certificate_secrets_are_the_only_ones_of_the_own_namespace_that_the_operator_may_read() -> None:
    rules = found("Role", "shadowserve-operator-own")["rules"]
    (secrets,) = [rule for rule in rules if "secrets" in rule["resources"]]
    assert set(secrets["resourceNames"]) == {AUTHORITY_SECRET, SERVING_SECRET}


def _selected(labels: dict[str, str], selector: dict[str, Any]) -> bool:
    exist = [each["key"] for each in selector.get("matchExpressions", ()) if each["operator"] == "Exists"]
    return selector.get("matchLabels", {}).items() <= labels.items() and set(exist) <= set(labels)


def _reached(policy: str, who: dict[str, str]) -> set[int]:
    """Return the ports that a pod of the same namespace with these labels may reach."""
    ports: set[int] = set()
    for rule in found("NetworkPolicy", policy)["spec"]["ingress"]:
        allowed = [each["podSelector"] for each in rule.get("from", ()) if "namespaceSelector" not in each]
        if "from" not in rule or any(_selected(who, selector) for selector in allowed):
            ports |= {each["port"] for each in rule["ports"]}
    return ports


@pytest.mark.parametrize(
    ("policy", "component", "engines", "servers", "strangers"),
    [
        ("shadowserve-stores", "store", {names.STORE_PORT}, {names.STORE_PORT, names.STORE_BUS_PORT}, set()),
        (
            "shadowserve-data-planes",
            "data-plane",
            {names.DATA_PLANE_PORT, names.DATA_PLANE_METRICS_PORT},
            {names.DATA_PLANE_PORT, names.DATA_PLANE_METRICS_PORT},
            {names.DATA_PLANE_METRICS_PORT},
        ),
    ],
)
def test_stores_and_data_planes_are_reached_by_pods_of_caches_only(
    policy: str, component: str, engines: set[int], servers: set[int], strangers: set[int]
) -> None:
    ours = labels_of("kv", component)
    assert _selected(ours, found("NetworkPolicy", policy)["spec"]["podSelector"])
    assert _reached(policy, {names.CACHE_LABEL: "kv"}) == engines
    assert _reached(policy, labels_of("kv", "store")) == servers
    assert _reached(policy, {"app": "stranger"}) == strangers


def test_the_overlay_for_other_namespaces_watches_those_that_it_gives_rights_in() -> None:
    overlay = MANIFESTS / "overlays/namespaces"
    parts = yaml.safe_load((overlay / "kustomization.yaml").read_text())
    (patch,) = (yaml.safe_load(each["patch"]) for each in parts["patches"])
    (variable,) = patch["spec"]["template"]["spec"]["containers"][0]["env"]
    folders = [each for each in parts["resources"] if not each.startswith("..")]
    given = [yaml.safe_load((overlay / each / "kustomization.yaml").read_text())["namespace"] for each in folders]
    assert variable == {"name": "SHADOWSERVE_WATCH_NAMESPACES", "value": ",".join(["default", *given])}


def test_what_a_watched_namespace_needs_is_of_one_namespace() -> None:
    bodies = [
        body
        for path in parts_of(MANIFESTS / "components/watch-namespace")
        for body in yaml.safe_load_all(path.read_text())
    ]
    assert {body["metadata"]["namespace"] for body in bodies} == {"default"}
    assert {body["kind"] for body in bodies} == {"Role", "RoleBinding", "NetworkPolicy"}


def test_the_operator_reaches_stores_to_administer_them() -> None:
    rules = found("NetworkPolicy", "shadowserve-stores")["spec"]["ingress"]
    (operator,) = [each for rule in rules for each in rule["from"] if "namespaceSelector" in each]
    template = found("Deployment", "shadowserve-operator")["spec"]["template"]
    assert _selected(template["metadata"]["labels"], operator["podSelector"])
    assert operator["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": SYSTEM}
