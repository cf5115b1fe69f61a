"""The servers of one PrefixCache's managed store: whom to speak to, with what, and what to bring about."""

from base64 import b64decode
from dataclasses import dataclass

from shadowserve_crds.prefixcache import PrefixCache, Transport
from shadowserve_crds.store import StoreType
from shadowserve_operator.desired.certificates import files_of
from shadowserve_operator.desired.config import STORE, admin_secret_name, tls_secret_name
from shadowserve_operator.desired.secrets import ADMIN_USER
from shadowserve_operator.desired.shard_views import Member
from shadowserve_operator.desired.sharding import ShardPlan, StoreSeen, Wish, plan_shards
from shadowserve_operator.desired.store import eviction_policy, managed_store, member_host
from shadowserve_operator.kinds import Json
from shadowserve_operator.network import Network
from shadowserve_operator.observe import Snapshot
from shadowserve_operator.store_admin import Access


@dataclass(frozen=True, slots=True)
class Shards:
    """`wish` is None for a store that somebody else runs, `access` while there are no passwords or certificates yet."""

    wish: Wish | None
    members: tuple[Member, ...] = ()
    access: Access | None = None

    @classmethod
    def of(cls, cache: PrefixCache, snapshot: Snapshot) -> "Shards":
        """Return what the snapshot shows."""
        if cache.spec.store.type is not StoreType.MANAGED:
            return cls(None)
        managed, pods = managed_store(cache), snapshot.store_pods
        found = tuple(_member(cache, pod) for pod in pods if pod.get("status", {}).get("podIP"))
        wish = Wish(managed.shards, managed.replicas_per_shard, len(pods), eviction_policy(managed))
        return cls(wish, found, _access(cache, snapshot))

    async def bring(self, network: Network, seconds: float) -> StoreSeen:
        """Bring the servers closer to what is wished, for that time; 0 = only look."""
        if self.wish is None:
            return StoreSeen(ShardPlan())
        if not self.members or self.access is None:
            return StoreSeen(plan_shards(self.wish, ()))
        return await network.shards(self.members, self.access, self.wish, seconds)


def _member(cache: PrefixCache, pod: Json) -> Member:
    name = pod["metadata"]["name"]
    return Member(name, int(name.rpartition("-")[2]), pod["status"]["podIP"], member_host(cache, name))


def _access(cache: PrefixCache, snapshot: Snapshot) -> Access | None:
    users = snapshot.child("Secret", admin_secret_name(cache))
    password = (users or {}).get("data", {}).get("admin-password")
    if password is None:
        return None
    files = None
    if cache.spec.security.transport is Transport.MUTUAL_TLS:
        name = tls_secret_name(cache, STORE)
        issued = snapshot.issued.secrets.get(name) if snapshot.issued else None
        files = files_of(issued or snapshot.child("Secret", name) or {})
        if files is None:
            return None
    return Access(ADMIN_USER, b64decode(password).decode(), files)
