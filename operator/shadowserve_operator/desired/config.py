"""config.json of the sidecars of one PrefixCache, as `shadowserve_dataplane.sidecar.settings` reads it.

Sidecars read it once, when they start, and so they do the store's password. What a running one has to follow travels by
the pod's annotation: which card it uses, if any. So whether cards may be used is not in here, and a change of that is
none of config.json.
"""

import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import Any

from shadowserve_crds import names
from shadowserve_crds.placement import PlaceName
from shadowserve_crds.prefixcache import Isolation, PrefixCache, PrefixCacheCondition, Transport
from shadowserve_crds.store import StoreTopology, StoreType
from shadowserve_operator.desired.labels import labels_of, owner_reference, rendered
from shadowserve_operator.desired.wording import see
from shadowserve_operator.kinds import Json

STAGING_BYTES = 128 << 20
STORE, DATA_PLANE, SIDECAR, CONFIG = "store", "data-plane", "sidecar", "config"
"""Components, as in labels and names."""
SECRET_NOT_FOUND = "SecretNotFound"
"""Why a store is not ready whose Secrets are still to be made."""
_DIGEST_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Login:
    """How sidecars and data planes log in to the store; `username` is that of an external store, if it has users.

    `key` is a secret that lies beside the password: digests that anybody may read are keyed by it, so that nobody can
    guess a password by them.
    """

    username: str | None = None
    password: str = ""
    key: bytes = b""

    def digest(self, *more: object) -> str:
        """Return sixteen hex digits that change with user name, password and whatever else is given."""
        text = json.dumps([self.username, self.password, *more], sort_keys=True, separators=(",", ":"))
        return hmac.new(self.key, text.encode(), hashlib.sha256).hexdigest()[:_DIGEST_DIGITS]


def config_map_name(cache: PrefixCache) -> str:
    """Return the name of the ConfigMap."""
    return f"{cache.name}-config"


def secret_name(cache: PrefixCache) -> str:
    """Return the name of the Secret with the store's password and the tenants' salt."""
    return f"{cache.name}-secrets"


def admin_secret_name(cache: PrefixCache) -> str:
    """Return the name of the Secret with the store's access list, which no engine's pod mounts."""
    return f"{cache.name}-store-users"


def tls_secret_name(cache: PrefixCache, component: str) -> str:
    """Return the name of the Secret with a component's certificate; another one if cert-manager fills it."""
    return f"{cache.name}-{component}-{'tls' if cache.spec.security.issuer_ref is None else 'issued'}"


def store_service_name(cache: PrefixCache) -> str:
    """Return the name of the Service by which clients find the managed store."""
    return f"{cache.name}-store"


def data_plane_name(cache: PrefixCache) -> str:
    """Return the name in the certificates of data planes: they are reached by address, which changes."""
    return f"{cache.name}-data-plane.{cache.namespace}.svc"


def config_map(cache: PrefixCache, login: Login = Login()) -> Json:
    """Return the ConfigMap, annotated with the digest of all that sidecars read at their start."""
    config = sidecar_config(cache, login.username)
    settings = login.digest(config)
    config["settings"] = settings  # sidecars tell it: that is what they really read
    metadata = {
        "name": config_map_name(cache),
        "labels": labels_of(cache.name, CONFIG),
        "annotations": {
            names.GENERATION_ANNOTATION: str(cache.metadata.generation),
            names.CONFIG_ANNOTATION: settings,
        },
    }
    body = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": {"config.json": json.dumps(config, indent=2, sort_keys=True)},
    }
    return rendered(cache, body)


def written_settings(cache: PrefixCache, live: Json | None) -> str | None:
    """Return the digest of the settings that are written; None while there are none of this cache and of its spec.

    Whoever wants to know calls this and computes nothing: another version would render config.json its own way.
    """
    if live is None:
        return None
    metadata = live["metadata"]
    annotations = metadata.get("annotations") or {}
    ours = owner_reference(cache)["uid"] in {owner["uid"] for owner in metadata.get("ownerReferences") or ()}
    written = annotations.get(names.GENERATION_ANNOTATION, "")
    if ours and written.isdecimal() and int(written) >= cache.metadata.generation:
        return annotations.get(names.CONFIG_ANNOTATION)
    return None


def missing_secrets(cache: PrefixCache) -> str:
    """Return which Secrets the operator misses to write the settings, in its own words; nothing if it misses none."""
    if cache.status.observed_generation < cache.metadata.generation:
        return ""
    store = PrefixCacheCondition.STORE_READY
    said = [each for each in cache.status.conditions if each.type == store and each.reason == SECRET_NOT_FOUND]
    return said[0].message if said else ""


def unwritten(cache: PrefixCache) -> str:
    """Return what to tell of a cache whose settings are not written yet."""
    missing = missing_secrets(cache)
    return f"waits for the settings of PrefixCache {cache.name}: {missing or see('pfc', cache.name, cache.namespace)}"


def sidecar_user() -> str:
    """Return the store's user for sidecars and data planes: it reads and writes chunks, and nothing else."""
    return "shadowserve-sidecar"


def sidecar_config(cache: PrefixCache, username: str | None = None) -> Json:
    """Return the content of config.json."""
    spec = cache.spec
    limits: dict[str, Any] = {
        "lookupDeadlineMs": _milliseconds(spec.limits.lookup_deadline.seconds),
        "fetchDeadlineMs": _milliseconds(spec.limits.fetch_deadline.seconds),
        "maxInFlightChunks": spec.limits.max_in_flight_chunks,
    }
    if spec.limits.time_to_live is not None:
        limits["timeToLiveSeconds"] = spec.limits.time_to_live.seconds
    host = [str(PlaceName.HOST)] if PlaceName.HOST in spec.placement.order else []
    placement: Json = {
        "order": [str(PlaceName.DPU), *host],
        "workers": max(1, int(spec.placement.host.resources.cpu.amount)),
    }
    config: Json = {
        "store": store_section(cache, username),
        "tier": str(spec.codec.tier),
        "landing": str(spec.placement.landing),
        "landingBufferBytes": int(spec.placement.landing_buffer),
        "stagingBufferBytes": STAGING_BYTES,
        "limits": limits,
        "placement": placement,
        "isolation": str(spec.tenancy.isolation),
        "fileMode": "0666",  # the folder is seen by the pod's own containers only, whatever users they run as
        "metricsPort": names.SIDECAR_METRICS_PORT,
    }
    if spec.tenancy.isolation is not Isolation.SHARED:
        config["saltFile"] = f"{names.SECRETS_FOLDER}/salt"
    if spec.security.transport is Transport.MUTUAL_TLS:
        placement["tls"] = tls_files()
        placement["serverName"] = data_plane_name(cache)
    return config


def tls_files() -> Json:
    """Return the certificate files of an injected pod."""
    return {
        "authorityFile": f"{names.TLS_FOLDER}/ca.crt",
        "certificateFile": f"{names.TLS_FOLDER}/tls.crt",
        "keyFile": f"{names.TLS_FOLDER}/tls.key",
    }


def store_section(cache: PrefixCache, username: str | None = None) -> Json:
    """Return the part that says where the store is, and how it is spoken to."""
    store, transport = cache.spec.store, cache.spec.security.transport
    if store.type is StoreType.EXTERNAL:
        external = store.external
        assert external is not None, "the API server sees to that"
        section: Json = {"endpoints": list(external.endpoints), "topology": str(external.topology)}
        if external.credentials_secret_ref is not None:
            section["passwordFile"] = f"{names.SECRETS_FOLDER}/store-password"
            section |= {"username": username} if username else {}
        if external.tls is not None:
            authority = {"authorityFile": f"{names.SECRETS_FOLDER}/store-ca.crt"}
            section["tls"] = authority if external.tls.ca_secret_ref else {}
        return section
    section = {
        "endpoints": [f"{store_service_name(cache)}.{cache.namespace}.svc:{names.STORE_PORT}"],
        "topology": str(StoreTopology.CLUSTER),  # of one shard, too: growing changes no client
        "username": sidecar_user(),
        "passwordFile": f"{names.SECRETS_FOLDER}/store-password",
    }
    if transport is Transport.MUTUAL_TLS:
        section["tls"] = tls_files()
    return section


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
