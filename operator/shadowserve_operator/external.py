"""A store that somebody else runs, as one PrefixCache names it: its Secrets, and what is found at its endpoints."""

from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from shadowserve_crds.prefixcache import PrefixCache
from shadowserve_crds.store import ExternalStore
from shadowserve_operator.desired.external_store import EndpointSeen
from shadowserve_operator.desired.secrets import SecretValues
from shadowserve_operator.network import Network
from shadowserve_operator.observe import Snapshot
from shadowserve_operator.store_admin import ExternalAccess


@dataclass(frozen=True, slots=True)
class External:
    """What the Secrets that the user named say, and `missing`: those that do not exist, in words."""

    store: ExternalStore
    username: str | None = None
    password: str | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    @classmethod
    def of(cls, cache: PrefixCache, snapshot: Snapshot) -> "External | None":
        """Return what the snapshot shows; None for a managed store."""
        store = cache.spec.store.external
        if store is None:
            return None
        found, missing = cls(store), []
        credentials, authority = store.credentials_secret_ref, store.tls.ca_secret_ref if store.tls else None
        if credentials is not None:
            login = _decoded(snapshot, credentials.name)
            if "password" in login:
                name, password = login.get("username", b"").decode(), login["password"].decode()
                found = replace(found, username=name or None, password=password)
            else:
                missing.append(f"{credentials.name} with the key password")
        if authority is not None:
            held = _decoded(snapshot, authority.name)
            if "ca.crt" in held:
                found = replace(found, files={"store-ca.crt": held["ca.crt"]})
            else:
                missing.append(f"{authority.name} with the key ca.crt")
        return replace(found, missing=tuple(missing))

    def into(self, values: SecretValues) -> SecretValues:
        """Return the passwords with this store's."""
        return values if self.password is None else replace(values, sidecar_password=self.password)

    async def find_out(self, network: Network) -> list[EndpointSeen]:
        """Return what is at the endpoints; nothing while a Secret is missing."""
        if self.missing:
            return []
        encrypted = self.store.tls is not None
        access = ExternalAccess(self.username, self.password, encrypted, self.files.get("store-ca.crt"))
        return await network.external(self.store.endpoints, access)


def _decoded(snapshot: Snapshot, name: str) -> dict[str, bytes]:
    return {key: b64decode(value) for key, value in (snapshot.secrets or {}).get(name, {}).items()}
