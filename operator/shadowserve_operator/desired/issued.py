"""Certificates that cert-manager issues: what it is asked for, and what `CertificatesReady` says meanwhile. Pure.

Its Secrets are adopted as soon as they are there, so that they go with the PrefixCache.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from shadowserve_crds.conditions import Condition, Reason, condition
from shadowserve_crds.prefixcache import PrefixCache, PrefixCacheCondition
from shadowserve_operator.desired.certificates import CERTIFICATE_LIFE, Certificate, Wanted
from shadowserve_operator.desired.labels import labels_of, rendered
from shadowserve_operator.kinds import CERTIFICATE, SECRET, Json

_RENEW_BEFORE = CERTIFICATE_LIFE / 3


@dataclass(frozen=True, slots=True)
class Issued:
    """What is there of cert-manager's: its issuer, and by Secret what it issued and what its Certificate says."""

    issuer_exists: bool = True
    secrets: Mapping[str, Json] = field(default_factory=dict)
    certificates: Mapping[str, Json] = field(default_factory=dict)


def certificate_manifest(cache: PrefixCache, wanted: Wanted) -> Json:
    """Return the Certificate that asks for one."""
    issuer, labels = cache.spec.security.issuer_ref, labels_of(cache.name, "certificates")
    assert issuer is not None, "nobody else asks cert-manager"
    body = {
        "apiVersion": CERTIFICATE.api_version,
        "kind": CERTIFICATE.name,
        "metadata": {"name": wanted.secret, "labels": labels},
        "spec": {
            "secretName": wanted.secret,
            "secretTemplate": {"labels": labels},
            "commonName": wanted.secret[:64],
            "dnsNames": list(wanted.names),
            "usages": ["digital signature", "server auth", "client auth"],
            "duration": _hours(CERTIFICATE_LIFE),
            "renewBefore": _hours(_RENEW_BEFORE),
            "privateKey": {"algorithm": "ECDSA", "size": 256, "encoding": "PKCS8", "rotationPolicy": "Always"},
            "issuerRef": {"group": CERTIFICATE.api_version.split("/")[0], "kind": issuer.kind, "name": issuer.name},
        },
    }
    return rendered(cache, body)


def adopted(cache: PrefixCache, secret: str) -> Json:
    """Return what makes cert-manager's Secret go with the cache; its content is nobody's but cert-manager's."""
    labels = labels_of(cache.name, "certificates")
    body = {"apiVersion": SECRET.api_version, "kind": SECRET.name, "metadata": {"name": secret, "labels": labels}}
    return rendered(cache, body)


def issued_condition(cache: PrefixCache, issued: Issued, read: Mapping[str, Certificate | None]) -> Condition:
    """Return `CertificatesReady`; `read` is what each Secret holds, None for what is no certificate with its key."""
    kind, issuer = PrefixCacheCondition.CERTIFICATES_READY, cache.spec.security.issuer_ref
    assert issuer is not None, "nobody else asks cert-manager"
    if not issued.issuer_exists:
        where = f" in {cache.namespace}" if issuer.kind == "Issuer" else ""
        message = (
            f"{issuer.kind} {issuer.name} does not exist{where}, or cert-manager is not installed: create it, or "
            "correct security.issuerRef"
        )
        return condition(kind, False, "IssuerNotFound", message)
    for secret, content in sorted(read.items()):
        if secret not in issued.secrets:
            said = _said(issued.certificates.get(secret))
            message = f"{issuer.kind} {issuer.name} has not issued {secret} yet{said}"
            return condition(kind, False, Reason.PENDING, message)
        if content is None:
            message = f"Secret {secret} lacks a certificate with an EC key and its authority: tls.crt, tls.key, ca.crt"
            return condition(kind, False, Reason.ERROR, f"{message}; use an issuer that tells its authority")
    return condition(kind, True, Reason.SUCCEEDED, f"{len(read)} certificates of {issuer.kind} {issuer.name} are valid")


def _said(certificate: Json | None) -> str:
    for each in (certificate or {}).get("status", {}).get("conditions") or ():
        if each.get("type") == "Ready" and each.get("status") != "True":
            return f": {each.get('message', each.get('reason', ''))}"
    return ""


def _hours(life: timedelta) -> str:
    return f"{int(life.total_seconds()) // 3600}h0m0s"
