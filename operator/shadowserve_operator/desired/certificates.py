"""Which certificates a PrefixCache needs, and when they are issued anew. Pure: what signs them is `pki.py`.

An authority of the cache's own, in a Secret that nothing mounts; one certificate each for store, data planes and
sidecars. A certificate is renewed when a third of its life is left; so is the authority, by `succession`.
"""

from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType

from shadowserve_crds.placement import PlaceName
from shadowserve_crds.prefixcache import PrefixCache, Transport
from shadowserve_crds.store import StoreType
from shadowserve_operator.desired.config import (
    DATA_PLANE,
    SIDECAR,
    STORE,
    data_plane_name,
    store_service_name,
    tls_secret_name,
)
from shadowserve_operator.desired.labels import labels_of, rendered
from shadowserve_operator.kinds import Json

CERTIFICATES = "certificates"
"""The component that their Secrets belong to."""
AUTHORITY_LIFE = timedelta(days=3650)
CERTIFICATE_LIFE = timedelta(days=90)
_RENEW_AT = 1 / 3
"""Part of its life that is left when a certificate is renewed."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A certificate: the Secret that holds it, and the DNS names in it."""

    secret: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Certificate:
    """PEM of a certificate, its key and the authorities to trust; with what matters of its content."""

    certificate: bytes
    key: bytes
    authority: bytes
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    signed_by_authority: bool = True


@dataclass(frozen=True, slots=True)
class Due:
    """A certificate that has to be issued, and why."""

    wanted: Wanted
    reason: str


def authority_secret_name(cache: PrefixCache) -> str:
    """Return the name of the Secret with the authority's key."""
    return f"{cache.name}-authority"


def wanted_certificates(cache: PrefixCache) -> tuple[Wanted, ...]:
    """Return the certificates that are needed; the operator issues them, or cert-manager if there is an issuerRef."""
    if cache.spec.security.transport is not Transport.MUTUAL_TLS:
        return ()
    found = [Wanted(tls_secret_name(cache, SIDECAR), (f"sidecar.{cache.name}.{cache.namespace}.svc",))]
    if cache.spec.store.type is StoreType.MANAGED:
        service = store_service_name(cache)
        members = f"{service}-members.{cache.namespace}.svc"
        hosts = (f"{service}.{cache.namespace}.svc", service, members, f"*.{members}", "localhost")
        found.append(Wanted(tls_secret_name(cache, STORE), hosts))
    if PlaceName.DPU in cache.spec.placement.order:
        found.append(Wanted(tls_secret_name(cache, DATA_PLANE), (data_plane_name(cache),)))
    return tuple(found)


def authority_due(authority: Certificate | None, now: datetime) -> str | None:
    """Return why the authority has to be made, None while it is good."""
    if authority is None:
        return "it does not exist, or cannot be read"
    return _ageing(authority, now)


def certificates_due(
    wanted: tuple[Wanted, ...], existing: Mapping[str, Certificate | None], now: datetime
) -> tuple[Due, ...]:
    """Return what has to be issued; `existing` is by Secret, None for one that cannot be read."""
    found = [(each, _why(each, existing.get(each.secret), now)) for each in wanted]
    return tuple(Due(each, reason) for each, reason in found if reason is not None)


def expired(existing: Mapping[str, Certificate | None], now: datetime) -> tuple[str, ...]:
    """Return the Secrets whose certificates are not valid any more."""
    return tuple(sorted(name for name, each in existing.items() if each is not None and each.not_after <= now))


def tls_secret(
    cache: PrefixCache, name: str, content: Certificate, more: Mapping[str, str] = MappingProxyType({})
) -> Json:
    """Return the Secret of a certificate, as `kubernetes.io/tls` with `ca.crt` beside it, and `more` of data."""
    body = {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": name, "labels": labels_of(cache.name, CERTIFICATES)},
        "data": {**secret_data(content), **more},
    }
    return rendered(cache, body)


def secret_data(content: Certificate) -> dict[str, str]:
    """Return what such a Secret holds; `files_of` reads it."""
    files = {"tls.crt": content.certificate, "tls.key": content.key, "ca.crt": content.authority}
    return {key: b64encode(value).decode() for key, value in files.items()}


def files_of(secret: Mapping[str, Mapping[str, str]]) -> tuple[bytes, bytes, bytes] | None:
    """Return certificate, key and authority of a Secret; None when one is missing."""
    data = secret.get("data") or {}
    try:
        return b64decode(data["tls.crt"]), b64decode(data["tls.key"]), b64decode(data["ca.crt"])
    except (KeyError, ValueError):
        return None


def _why(wanted: Wanted, existing: Certificate | None, now: datetime) -> str | None:
    if existing is None:
        return "it does not exist, or cannot be read"
    if existing.names != wanted.names:
        return "its names changed"
    if not existing.signed_by_authority:
        return "the authority changed"
    return _ageing(existing, now)


def _ageing(certificate: Certificate, now: datetime) -> str | None:
    life = certificate.not_after - certificate.not_before
    if now >= certificate.not_after:
        return f"it expired on {certificate.not_after:%Y-%m-%d}"
    if certificate.not_after - now <= life * _RENEW_AT:
        return f"it expires on {certificate.not_after:%Y-%m-%d}"
    return None
