"""The managed store of a PrefixCache: Valkey as a StatefulSet, with configuration, Services, disruption budget."""

from shadowserve_crds import names
from shadowserve_crds.prefixcache import PrefixCache, Transport
from shadowserve_crds.quantities import Quantity
from shadowserve_crds.sections import ComputeResources
from shadowserve_crds.store import Eviction, ManagedStore, StoreType
from shadowserve_operator.desired.config import STORE, admin_secret_name, store_service_name, tls_secret_name
from shadowserve_operator.desired.labels import digest, labels_of, rendered, selector_of
from shadowserve_operator.desired.pods import fixed, restricted, tolerant_anti_affinity
from shadowserve_operator.desired.secrets import ADMIN_USER
from shadowserve_operator.kinds import Json
from shadowserve_operator.settings import OperatorSettings

STORE_PORT_NAME = "valkey"
"""What the pods' port for clients is called."""
_CONFIG_FOLDER, _SECRETS_FOLDER, _DATA_FOLDER = "/etc/valkey", "/etc/valkey/secrets", "/data"
_POLICIES = {Eviction.LEAST_FREQUENTLY_USED: "allkeys-lfu", Eviction.LEAST_RECENTLY_USED: "allkeys-lru"}
_POLICY = "maxmemory-policy"
_OVERHEAD_PARTS = 4
"""A quarter more than the chunks: replies under way, fragmentation, the server itself."""
_USER = 999
_RENEWAL_SECONDS = 30


def store_objects(cache: PrefixCache, settings: OperatorSettings, servers: int | None = None) -> list[Json]:
    """Return everything of the managed store; nothing for an external one.

    `servers` is how many there have to be now, if that is more than the cache asks for: some still have slots.
    """
    if cache.spec.store.type is not StoreType.MANAGED:
        return []
    managed = managed_store(cache)
    bodies = [
        _configuration(cache, managed),
        _headless_service(cache),
        _client_service(cache),
        _stateful_set(cache, managed, settings, max(servers or 0, servers_wanted(managed))),
    ]
    if managed.shards > 1 or managed.replicas_per_shard:
        bodies.append(_disruption_budget(cache))
    return [rendered(cache, body) for body in bodies]


def managed_store(cache: PrefixCache) -> ManagedStore:
    """Return how the managed store should be; defaults where nothing is said."""
    return cache.spec.store.managed or ManagedStore()


def servers_wanted(managed: ManagedStore) -> int:
    """Return how many servers the store is to have."""
    return managed.shards * (1 + managed.replicas_per_shard)


def eviction_policy(managed: ManagedStore) -> str:
    """Return the server's name for which chunks it gives up first."""
    return _POLICIES[managed.eviction]


def member_host(cache: PrefixCache, pod: str) -> str:
    """Return the name of one server, as DNS and its certificate have it."""
    return f"{pod}.{store_service_name(cache)}-members.{cache.namespace}.svc"


def configuration_text(cache: PrefixCache, managed: ManagedStore) -> str:
    """Return valkey.conf. It does not depend on the number of shards: a change would restart all servers, empty."""
    lines = [
        f"port {0 if _encrypted(cache) else names.STORE_PORT}",
        f"maxmemory {int(managed.memory_per_shard)}",
        f"{_POLICY} {eviction_policy(managed)}",
        f"dir {_DATA_FOLDER}",
        'save ""',
        f"appendonly {'yes' if managed.storage else 'no'}",
        f"aclfile {_SECRETS_FOLDER}/users.acl",
        f"include {_SECRETS_FOLDER}/replication.conf",
        "cluster-enabled yes",
        "cluster-config-file nodes.conf",
        "cluster-node-timeout 5000",
        "cluster-require-full-coverage no",  # a lost shard loses its part of the cache, and nothing else
        "cluster-allow-replica-migration no",  # who follows whom is the operator's plan
        "cluster-preferred-endpoint-type hostname",
    ]
    if _encrypted(cache):
        lines += [
            f"tls-port {names.STORE_PORT}",
            f"tls-cert-file {names.TLS_FOLDER}/tls.crt",
            f"tls-key-file {names.TLS_FOLDER}/tls.key",
            f"tls-ca-cert-file {names.TLS_FOLDER}/ca.crt",
            "tls-auth-clients yes",
            "tls-cluster yes",
            "tls-replication yes",
        ]
    return "\n".join(lines) + "\n"


def _configuration(cache: PrefixCache, managed: ManagedStore) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{cache.name}-store-config", "labels": labels_of(cache.name, STORE)},
        "data": {"valkey.conf": configuration_text(cache, managed)},
    }


def _headless_service(cache: PrefixCache) -> Json:
    members = {"clusterIP": "None", "publishNotReadyAddresses": True}  # a cluster forms before it is ready
    return _service(cache, f"{store_service_name(cache)}-members", members)


def _client_service(cache: PrefixCache) -> Json:
    return _service(cache, store_service_name(cache), {})


def _service(cache: PrefixCache, name: str, more: Json) -> Json:
    ports = [{"name": "valkey", "port": names.STORE_PORT, "targetPort": "valkey", "protocol": "TCP"}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": labels_of(cache.name, STORE)},
        "spec": {"selector": selector_of(cache.name, STORE), "ports": ports, **more},
    }


def _disruption_budget(cache: PrefixCache) -> Json:
    selector = {"matchLabels": selector_of(cache.name, STORE)}
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": store_service_name(cache), "labels": labels_of(cache.name, STORE)},
        "spec": {"maxUnavailable": 1, "selector": selector},
    }


def _stateful_set(cache: PrefixCache, managed: ManagedStore, settings: OperatorSettings, servers: int) -> Json:
    selector = selector_of(cache.name, STORE)
    # a change of the configuration has to restart the server, which reads it once; but the policy is set while it runs
    fixed_lines = [line for line in configuration_text(cache, managed).splitlines() if _POLICY not in line]
    restart = {"shadowserve.io/configuration": digest(fixed_lines)}
    template = {
        "metadata": {"labels": labels_of(cache.name, STORE), "annotations": restart},
        "spec": _pod(cache, managed, settings),
    }
    spec: Json = {
        "replicas": servers,
        "serviceName": f"{store_service_name(cache)}-members",
        "podManagementPolicy": "Parallel",
        "selector": {"matchLabels": selector},
        "template": template,
    }
    if managed.storage is not None:
        claim: Json = {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": str(managed.storage.size)}},
        }
        if managed.storage.storage_class_name is not None:
            claim["storageClassName"] = managed.storage.storage_class_name
        # it is a cache; and a server that comes back must not believe in the slots that it had
        spec["persistentVolumeClaimRetentionPolicy"] = {"whenDeleted": "Delete", "whenScaled": "Delete"}
        spec["volumeClaimTemplates"] = [{"metadata": {"name": "data"}, "spec": claim}]
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": store_service_name(cache), "labels": labels_of(cache.name, STORE)},
        "spec": spec,
    }


def _pod(cache: PrefixCache, managed: ManagedStore, settings: OperatorSettings) -> Json:
    volumes: list[Json] = [
        {"name": "config", "configMap": {"name": f"{cache.name}-store-config"}},
        {"name": "secrets", "secret": {"secretName": admin_secret_name(cache)}},
    ]
    mounts: list[Json] = [
        {"name": "config", "mountPath": _CONFIG_FOLDER, "readOnly": True},
        {"name": "secrets", "mountPath": _SECRETS_FOLDER, "readOnly": True},
        {"name": "data", "mountPath": _DATA_FOLDER},
    ]
    if managed.storage is None:
        volumes.append({"name": "data", "emptyDir": {}})
    if _encrypted(cache):
        volumes.append({"name": "tls", "secret": {"secretName": tls_secret_name(cache, STORE)}})
        mounts.append({"name": "tls", "mountPath": names.TLS_FOLDER, "readOnly": True})
    resources = managed.resources or _derived(managed.memory_per_shard)
    amounts = {"cpu": str(resources.cpu), "memory": str(resources.memory)}
    container = {
        "name": "valkey",
        "image": managed.image or settings.store_image,
        "command": [
            *("valkey-server", f"{_CONFIG_FOLDER}/valkey.conf"),
            *("--cluster-announce-ip", "$(POD_IP)", "--cluster-announce-hostname", member_host(cache, "$(POD_NAME)")),
        ],
        "env": [_about_pod("POD_IP", "status.podIP"), _about_pod("POD_NAME", "metadata.name")],
        "ports": [
            {"name": STORE_PORT_NAME, "containerPort": names.STORE_PORT},
            {"name": "bus", "containerPort": names.STORE_BUS_PORT},
        ],
        "readinessProbe": {"tcpSocket": {"port": STORE_PORT_NAME}, "periodSeconds": 5, "timeoutSeconds": 2},
        "resources": fixed(amounts),
        "securityContext": restricted(_USER),
        "volumeMounts": mounts,
    }
    containers = [container, _renewal(container)] if _encrypted(cache) else [container]
    return {
        "affinity": tolerant_anti_affinity(selector_of(cache.name, STORE)),
        "automountServiceAccountToken": False,
        "containers": containers,
        "securityContext": {"fsGroup": _USER},
        "volumes": volumes,
    }


def _about_pod(name: str, path: str) -> Json:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def renewal_script(client: str, seconds: int) -> str:
    """Return a shell script that has the server read its certificate again whenever the file has changed.

    Valkey reads it once; a restart would empty the cache. `client` is the command line client.
    """
    files = [f"{names.TLS_FOLDER}/{name}" for name in ("tls.crt", "tls.key", "ca.crt")]
    login = f"--tls --cert {files[0]} --key {files[1]} --cacert {files[2]} --user {ADMIN_USER} -p {names.STORE_PORT}"
    change = f"config set tls-cert-file {files[0]} tls-key-file {files[1]} tls-ca-cert-file {files[2]}"
    return (
        "trap 'exit 0' TERM\n"  # the first process of a container ignores the signal otherwise
        f"seen=$(cksum {' '.join(files)})\n"
        "echo watching the certificate\n"
        f"while sleep {seconds} & wait $!; do\n"
        f"  now=$(cksum {' '.join(files)})\n"
        '  [ "$now" = "$seen" ] && continue\n'
        f"  export REDISCLI_AUTH=$(cat {_SECRETS_FOLDER}/admin-password)\n"
        f'  [ "$({client} -h localhost {login} {change})" = OK ] && seen=$now && echo certificate read again\n'
        "done\n"
    )


def _renewal(server: Json) -> Json:
    """Return the container that runs the script, beside the server's and with the same files."""
    amounts = {"cpu": "10m", "memory": "16Mi"}
    return {
        "name": "certificates",
        "image": server["image"],
        "command": ["sh", "-c", renewal_script("valkey-cli", _RENEWAL_SECONDS)],
        "resources": fixed(amounts),
        "securityContext": restricted(_USER),
        "volumeMounts": [mount for mount in server["volumeMounts"] if mount["name"] in ("secrets", "tls")],
    }


def _derived(memory: Quantity) -> ComputeResources:
    whole = int(memory) + int(memory) // _OVERHEAD_PARTS
    return ComputeResources(cpu=Quantity("1"), memory=Quantity(str(whole)))


def _encrypted(cache: PrefixCache) -> bool:
    return cache.spec.security.transport is Transport.MUTUAL_TLS
