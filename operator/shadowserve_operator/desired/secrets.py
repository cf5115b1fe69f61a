"""Passwords and salts of one PrefixCache. Made once and kept: what is there already is never replaced.

Chance is an argument: `fresh` is what a new Secret would hold.
"""

import hashlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from shadowserve_crds.prefixcache import PrefixCache
from shadowserve_crds.store import StoreType
from shadowserve_operator.desired.config import admin_secret_name, secret_name, sidecar_user
from shadowserve_operator.desired.labels import labels_of, rendered
from shadowserve_operator.kinds import Json

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
        """Return what the Secrets' `data` (base64, taken together) hold, and fresh values for what they lack."""
        return cls(
            sidecar_password=_text(data, "store-password", fresh.sidecar_password),
            admin_password=_text(data, "admin-password", fresh.admin_password),
            salt=b64decode(data["salt"]) if data.get("salt") else fresh.salt,
        )

    def are_in(self, data: Mapping[str, str]) -> bool:
        """Return whether the Secret that sidecars and data planes mount, `data`, holds these values already."""
        shared = {"store-password": self.sidecar_password.encode(), "salt": self.salt}
        return all(data.get(key) == _base64(value) for key, value in shared.items())


def secret_manifests(cache: PrefixCache, values: SecretValues, more: Mapping[str, bytes] | None = None) -> list[Json]:
    """Return the Secret that sidecars and data planes mount, and for a managed store the one that only it mounts.

    They are two, because whoever could read the second could run every command of the store. `more` is added to the
    first, for example the authority of an external store.
    """
    shared = {
        "store-password": values.sidecar_password.encode(),
        "store-password-quoted": quote(values.sidecar_password, safe="").encode(),  # for the data planes' URL
        "salt": values.salt,
        **(more or {}),
    }
    bodies = [_secret(cache, secret_name(cache), shared)]
    if cache.spec.store.type is StoreType.MANAGED:
        private = {
            "admin-password": values.admin_password.encode(),
            "users.acl": access_list(values).encode(),
            "replication.conf": f"masteruser {ADMIN_USER}\nmasterauth {values.admin_password}\n".encode(),
        }
        bodies.append(_secret(cache, admin_secret_name(cache), private))
    return [rendered(cache, body) for body in bodies]


def _secret(cache: PrefixCache, name: str, values: Mapping[str, bytes]) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {"name": name, "labels": labels_of(cache.name, "secrets")},
        "data": {key: _base64(value) for key, value in values.items()},
    }


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
