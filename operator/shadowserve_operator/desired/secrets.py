"""Passwords and salts of one PrefixCache. Made once and kept: what is there already is never replaced.

Chance is an argument: `fresh` is what a new Secret would hold.
"""

import hashlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass

from shadowserve_crds.prefixcache import PrefixCache
from shadowserve_operator.desired.config import secret_name, sidecar_user
from shadowserve_operator.desired.labels import Json, labels_of, rendered

ADMIN_USER = "shadowserve-operator"
_ALLOWED = "+get +set +exists +ping +hello +auth +asking +readonly +cluster|slots"


@dataclass(frozen=True, slots=True)
class SecretValues:
    """Passwords of the store's two users, and the salt of all cache keys."""

    sidecar_password: str
    admin_password: str
    salt: bytes

    @classmethod
    def read(cls, data: Mapping[str, str], fresh: "SecretValues") -> "SecretValues":
        """Return what a Secret's `data` (base64) holds, and fresh values for what it lacks."""
        return cls(
            sidecar_password=_text(data, "store-password", fresh.sidecar_password),
            admin_password=_text(data, "admin-password", fresh.admin_password),
            salt=b64decode(data["salt"]) if data.get("salt") else fresh.salt,
        )


def secret(cache: PrefixCache, values: SecretValues) -> Json:
    """Return the Secret that sidecars and data planes mount."""
    body = {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {"name": secret_name(cache), "labels": labels_of(cache.name, "secrets")},
        "data": {
            "store-password": _base64(values.sidecar_password.encode()),
            "admin-password": _base64(values.admin_password.encode()),
            "salt": _base64(values.salt),
            "users.acl": _base64(access_list(values).encode()),
        },
    }
    return rendered(cache, body)


def access_list(values: SecretValues) -> str:
    """Return the store's ACL file: nobody without a name; sidecars read and write chunks and can do nothing else."""
    return (
        "user default off\n"
        f"user {sidecar_user()} on #{_sha256(values.sidecar_password)} ~shadowserve:* resetchannels -@all {_ALLOWED}\n"
        f"user {ADMIN_USER} on #{_sha256(values.admin_password)} ~* &* +@all\n"
    )


def _text(data: Mapping[str, str], key: str, otherwise: str) -> str:
    return b64decode(data[key]).decode() if data.get(key) else otherwise


def _base64(value: bytes) -> str:
    return b64encode(value).decode()


def _sha256(password: str) -> str:
    return hashlib.sha256(password.encode()).hexdigest()
