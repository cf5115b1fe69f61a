"""The data planes of a PrefixCache: one DaemonSet on the cards' nodes."""

from urllib.parse import quote

from shadowserve_crds import names
from shadowserve_crds.placement import PlaceName, RdmaMode
from shadowserve_crds.prefixcache import PrefixCache, Transport
from shadowserve_operator.desired.config import DATA_PLANE, Login, secret_name, store_section, tls_secret_name
from shadowserve_operator.desired.labels import labels_of, rendered, selector_of
from shadowserve_operator.desired.pods import UNPRIVILEGED_USER, fixed, restricted
from shadowserve_operator.kinds import Json
from shadowserve_operator.settings import OperatorSettings

DATA_PLANE_PORT_NAME = "grpc"
"""What the pods' port for sidecars is called."""


def data_plane_workload(cache: PrefixCache) -> str:
    """Return the name of the DaemonSet."""
    return f"{cache.name}-data-plane"


def dataplane_objects(cache: PrefixCache, settings: OperatorSettings, login: Login = Login()) -> list[Json]:
    """Return the DaemonSet; nothing when no card may be used. Another `login` is another template: it is read once."""
    if PlaceName.DPU not in cache.spec.placement.order:
        return []
    selector = selector_of(cache.name, DATA_PLANE)
    body = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": data_plane_workload(cache), "labels": labels_of(cache.name, DATA_PLANE)},
        "spec": {
            "selector": {"matchLabels": selector},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
            "template": {
                "metadata": {
                    "labels": labels_of(cache.name, DATA_PLANE),
                    "annotations": {names.LOGIN_ANNOTATION: login.digest()},
                },
                "spec": _pod(cache, settings, login.username),
            },
        },
    }
    return [rendered(cache, body)]


def _pod(cache: PrefixCache, settings: OperatorSettings, username: str | None) -> Json:
    dpu = cache.spec.placement.dpu
    volumes: list[Json] = [{"name": "secrets", "secret": {"secretName": secret_name(cache)}}]
    mounts: list[Json] = [{"name": "secrets", "mountPath": names.SECRETS_FOLDER, "readOnly": True}]
    command = ["shadowserve-dataplane", "serve", "--workers", str(max(1, int(dpu.resources.cpu.amount)))]
    if cache.spec.security.transport is Transport.MUTUAL_TLS:
        volumes.append({"name": "tls", "secret": {"secretName": tls_secret_name(cache, DATA_PLANE)}})
        mounts.append({"name": "tls", "mountPath": names.TLS_FOLDER, "readOnly": True})
        command += ["--tls-certificate", f"{names.TLS_FOLDER}/tls.crt", "--tls-key", f"{names.TLS_FOLDER}/tls.key"]
        command += ["--tls-authority", f"{names.TLS_FOLDER}/ca.crt"]
    external = cache.spec.store.external
    if external is not None and external.tls is not None and external.tls.ca_secret_ref is not None:
        command += ["--store-authority", f"{names.SECRETS_FOLDER}/store-ca.crt"]
    container: Json = {
        "name": "data-plane",
        "image": settings.dataplane_image,
        "command": command,
        "env": _environment(cache, username),
        "ports": [
            {"name": DATA_PLANE_PORT_NAME, "containerPort": names.DATA_PLANE_PORT},
            {"name": "metrics", "containerPort": names.DATA_PLANE_METRICS_PORT},
        ],
        "readinessProbe": {"tcpSocket": {"port": DATA_PLANE_PORT_NAME}, "periodSeconds": 2, "timeoutSeconds": 2},
        "resources": _resources(cache),
        "securityContext": restricted(UNPRIVILEGED_USER),
        "volumeMounts": mounts,
    }
    return {
        "automountServiceAccountToken": False,
        "affinity": _on_cards(cache),
        "containers": [container],
        "terminationGracePeriodSeconds": 30,
        "tolerations": [toleration.dump() for toleration in dpu.tolerations],
        "volumes": volumes,
    }


def _on_cards(cache: PrefixCache) -> Json:
    """Return the affinity to card nodes: those with the selector's labels, else all that name their host."""
    dpu = cache.spec.placement.dpu
    wanted = [{"key": key, "operator": "In", "values": [value]} for key, value in (dpu.node_selector or {}).items()]
    terms = wanted or [{"key": dpu.host_label_key, "operator": "Exists"}]
    required = {"nodeSelectorTerms": [{"matchExpressions": terms}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}


def _environment(cache: PrefixCache, username: str | None) -> list[Json]:
    """Return the variables; the password comes before the URL that is made of it."""
    store = store_section(cache, username)
    variables: list[Json] = []
    login = ""
    if store.get("passwordFile"):
        source = {"secretKeyRef": {"name": secret_name(cache), "key": "store-password-quoted"}}
        variables.append({"name": "STORE_PASSWORD", "valueFrom": source})
        login = f"{quote(store.get('username', ''), safe='')}:$(STORE_PASSWORD)@"
    scheme = "valkeys" if "tls" in store else "valkey"
    query = f"?topology={store['topology']}" if store["topology"] != "Standalone" else ""
    variables.append({"name": "SHADOWSERVE_STORE", "value": f"{scheme}://{login}{','.join(store['endpoints'])}{query}"})
    return variables


def _resources(cache: PrefixCache) -> Json:
    dpu = cache.spec.placement.dpu
    amounts = {"cpu": str(dpu.resources.cpu), "memory": str(dpu.resources.memory)}
    amounts |= {name: str(amount) for name, amount in dpu.extended_resources.items()}
    if dpu.hugepages is not None:
        amounts[f"hugepages-{dpu.hugepages.page_size}"] = str(dpu.hugepages.size)
    if dpu.rdma.mode is not RdmaMode.NONE and dpu.rdma.resource_name is not None:
        amounts[dpu.rdma.resource_name] = "1"
    return fixed(amounts)
