"""Certificates that cert-manager issues: what it is asked for, and what `CertificatesReady` says meanwhile. Pure.

Its Secrets are adopted as soon as they are there, so that they go with the PrefixCache: each belongs to its
Certificate, which belongs to the cache. If one went before its Certificate, cert-manager would make it anew.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from shadowserve_crds.conditions import Condition, Reason, condition
from shadowserve_crds.prefixcache import PrefixCache, PrefixCacheCondition
from shadowserve_operator.desired.certificates import CERTIFICATE_LIFE, CERTIFICATES, Certificate, Wanted
from shadowserve_operator.desired.labels import labels_of, rendered
from shadowserve_operator.desired.wording import see
from shadowserve_operator.kinds import CERTIFICATE, SECRET, Json

_RENEW_BEFORE = CERTIFICATE_LIFE / 3


@dataclass(frozen=True, slots=True)
class Issued:
    """What is there of cert-manager's: its issuer, and by Secret what it issued and what its Certificate says."""

    issuer: Json | None = None
    secrets: Mapping[str, Json] = field(default_factory=dict)
    certificates: Mapping[str, Json] = field(default_factory=dict)

    @property
    def adoptable(self) -> frozenset[str]:
        """Secrets that are there, like what they belong to."""
        return frozenset(self.secrets.keys() & self.certificates.keys())


def certificate_manifest(cache: PrefixCache, wanted: Wanted) -> Json:
    """Return the Certificate that asks for one."""
    issuer, labels = cache.spec.security.issuer_ref, labels_of(cache.name, CERTIFICATES)
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


def adopted(cache: PrefixCache, certificate: Json) -> Json:
    """Return what makes cert-manager's Secret go with its Certificate; its content is nobody's but cert-manager's.

    The owner is told as cert-manager itself tells it when it is started to do so: the two say the same.
    """
    name, labels = certificate["metadata"]["name"], labels_of(cache.name, CERTIFICATES)
    body = {"apiVersion": SECRET.api_version, "kind": SECRET.name, "metadata": {"name": name, "labels": labels}}
    owner = {"apiVersion": CERTIFICATE.api_version, "kind": CERTIFICATE.name, "name": name}
    owner |= {"uid": certificate["metadata"]["uid"], "controller": True, "blockOwnerDeletion": True}
    found = rendered(cache, body)
    return {**found, "metadata": {**found["metadata"], "ownerReferences": [owner]}}


def issued_condition(cache: PrefixCache, issued: Issued, read: Mapping[str, Certificate | None]) -> Condition:
    """Return `CertificatesReady`; `read` is what each Secret holds, None for what is no certificate with its key."""
    kind, issuer = PrefixCacheCondition.CERTIFICATES_READY, cache.spec.security.issuer_ref
    assert issuer is not None, "nobody else asks cert-manager"
    if issued.issuer is None:
        where = f" in {cache.namespace}" if issuer.kind == "Issuer" else ""
        message = (
            f"{issuer.kind} {issuer.name} does not exist{where}, or cert-manager is not installed: create it, or "
            "correct spec.security.issuerRef"
        )
        return condition(kind, False, "IssuerNotFound", message)
    for secret, content in sorted(read.items()):
        if secret not in issued.secrets:
            if unready := _unready(issued.issuer):
                space = cache.namespace if issuer.kind == "Issuer" else ""
                message = f"{issuer.kind} {issuer.name} is not ready: {unready}; {see(issuer.kind, issuer.name, space)}"
                return condition(kind, False, "IssuerNotReady", message)
            said = _said(issued.certificates.get(secret))
            message = f"{issuer.kind} {issuer.name} has not issued {secret} yet{said}"
            return condition(kind, False, Reason.PENDING, f"{message}; {see('certificate', secret, cache.namespace)}")
        if content is None:
            message = f"Secret {secret} lacks a certificate with an EC key and its authority: tls.crt, tls.key, ca.crt"
            return condition(kind, False, Reason.ERROR, f"{message}; use an issuer that tells its authority")
    if len({content.authority for content in read.values() if content}) > 1:
        message = (
            f"the Secrets {', '.join(sorted(read))} hold different authorities (ca.crt), so that their owners do not "
            f"trust each other. If {issuer.kind} {issuer.name} is selfSigned, use one of type ca; if its authority "
            "changed, have all of them issued anew: cmctl renew, or delete the Secrets"
        )
        return condition(kind, False, Reason.ERROR, message)
    return condition(kind, True, Reason.SUCCEEDED, f"{len(read)} certificates of {issuer.kind} {issuer.name} are valid")


def _said(certificate: Json | None) -> str:
    said = _unready(certificate or {})
    return f": {said}" if said else ""


def _unready(body: Json) -> str:
    """Return why something of cert-manager's says that it is not ready, nothing if it does not."""
    for each in body.get("status", {}).get("conditions") or ():
        if each.get("type") == "Ready" and each.get("status") != "True":
            return str(each.get("message") or each.get("reason", ""))
    return ""


def _hours(life: timedelta) -> str:
    return f"{int(life.total_seconds()) // 3600}h0m0s"
