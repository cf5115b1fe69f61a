"""A cluster in memory. It keeps what the API server promises: server-side apply by one manager, owners, statuses apart.

It refuses what can't be: unknown namespaces, objects without a name that DNS takes, patches of what was changed. It
counts calls, and fails at the one that a test names.
"""

import copy
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from shadowserve_operator.cluster import checked
from shadowserve_operator.desired.attachment import EngineState, SidecarSays
from shadowserve_operator.desired.external_store import EndpointSeen, Finding
from shadowserve_operator.desired.round_trip import Answer, Plane, Word
from shadowserve_operator.desired.shard_views import Member
from shadowserve_operator.desired.sharding import ShardPlan, StoreSeen, Wish
from shadowserve_operator.errors import Conflict, Forbidden, NotServed, Refused
from shadowserve_operator.kinds import EVENT, Json, Kind, Ref, ref_of
from shadowserve_operator.store_admin import Access, ExternalAccess

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
WRITES = ("apply", "overwrite", "delete", "write_status", "annotate", "create_event")


class Killed(BaseException):
    """The operator's process ended here."""


class FakeCluster:
    """Implements `Cluster`. `calls` are all calls made, as (method, object)."""

    def __init__(self, *namespaces: str) -> None:
        self.namespaces = set(namespaces) or {"default"}
        self.objects: dict[Ref, Json] = {}
        self.events: list[Json] = []
        self.calls: list[tuple[str, str]] = []
        self.die_at: int | None = None
        self.not_served: set[Kind] = set()
        self.unreadable: set[str] = set()
        self._applied: dict[Ref, Json] = {}
        self._numbers = itertools.count(1)

    @property
    def writes(self) -> list[tuple[str, str]]:
        """The calls that changed something."""
        return [call for call in self.calls if call[0] in WRITES]

    def put(self, manifest: Json) -> Json:
        """Put an object there as a user or a controller would; returns it as it is now."""
        ref = ref_of(manifest)
        self._check(ref)
        body = copy.deepcopy(manifest)
        before = self.objects.get(ref)
        metadata = body.setdefault("metadata", {})
        metadata["uid"] = before["metadata"]["uid"] if before else f"uid-{next(self._numbers)}"
        metadata.setdefault("generation", 1)
        self._store(ref, body)
        return copy.deepcopy(body)

    def remove(self, ref: Ref) -> None:
        """Delete an object and, as the garbage collector does, what it owns."""
        gone = self.objects.pop(ref, None)
        self._applied.pop(ref, None)
        if gone is None:
            return
        uid = gone["metadata"]["uid"]
        for each in list(self.objects):
            owners = self.objects[each]["metadata"].get("ownerReferences", []) if each in self.objects else []
            if any(owner["uid"] == uid for owner in owners):
                self.remove(each)

    async def get(self, ref: Ref) -> Json | None:
        self._called("get", ref)
        return copy.deepcopy(self.objects.get(ref))

    async def list(self, kind: Kind, namespace: str = "", labels: Mapping[str, str] | None = None) -> tuple[Json, ...]:
        self._called("list", kind.name)
        if kind in self.not_served:
            raise NotServed(f"{kind.plural} are not installed")
        if namespace in self.unreadable:
            raise Forbidden(f'cannot list resource "{kind.plural}" in the namespace "{namespace}"')
        found = [
            self.objects[ref]
            for ref in sorted(self.objects)
            if ref.kind == kind and (not namespace or ref.namespace == namespace)
        ]
        return tuple(copy.deepcopy(body) for body in found if _matches(body, labels or {}))

    async def apply(self, manifest: Json) -> Json:
        ref = checked(manifest)
        self._called("apply", ref)
        self._check(ref)
        before = self.objects.get(ref)
        seen = manifest["metadata"].get("resourceVersion")
        if seen is not None and (before is None or before["metadata"]["resourceVersion"] != seen):
            raise Conflict(f"{ref}: the object has been modified")
        owned = {key: value for key, value in manifest.items() if key != "metadata"}
        body = copy.deepcopy(before) if before else {"metadata": {"uid": f"uid-{next(self._numbers)}", "generation": 0}}
        _forget(body, self._applied.get(ref, {}), manifest)
        _merge(body, copy.deepcopy(manifest))
        if before is None or any(before.get(key) != body.get(key) for key in owned):
            body["metadata"]["generation"] = body["metadata"].get("generation", 0) + 1
        self._applied[ref] = copy.deepcopy(manifest)
        if body != before:
            self._store(ref, body)
        return copy.deepcopy(body)

    async def overwrite(self, manifest: Json) -> Json:
        ref = checked(manifest)
        self._called("overwrite", ref)
        body = copy.deepcopy(self.objects[ref])
        _merge(body, {key: value for key, value in copy.deepcopy(manifest).items() if key != "metadata"})
        if body != self.objects[ref]:
            self._store(ref, body)
        return copy.deepcopy(body)

    async def delete(self, ref: Ref, uid: str = "") -> None:
        self._called("delete", ref)
        there = self.objects.get(ref)
        if there is not None and uid and there["metadata"]["uid"] != uid:
            raise Conflict(f"{ref}: is another one by now")
        self.remove(ref)

    async def write_status(self, ref: Ref, status: Json) -> None:
        self._called("write_status", ref)
        if ref in self.objects:
            self._store(ref, {**self.objects[ref], "status": copy.deepcopy(status)})

    async def annotate(self, ref: Ref, annotations: Mapping[str, str | None]) -> None:
        self._called("annotate", ref)
        if ref in self.objects:
            now = self.objects[ref]["metadata"].setdefault("annotations", {})
            now.update({key: value for key, value in annotations.items() if value is not None})
            for key in [key for key, value in annotations.items() if value is None]:
                now.pop(key, None)

    async def create_event(self, event: Json) -> None:
        assert ref_of(event).kind == EVENT
        self._called("create_event", ref_of(event))
        if any(ref_of(each) == ref_of(event) for each in self.events):
            raise Conflict(f"{ref_of(event)}: already exists")
        self.events.append(copy.deepcopy(event))

    def _called(self, method: str, what: object) -> None:
        if self.die_at is not None and len(self.calls) >= self.die_at:
            raise Killed
        self.calls.append((method, str(what)))

    def _check(self, ref: Ref) -> None:
        if ref.kind.namespaced and ref.namespace not in self.namespaces:
            raise Refused(f'namespaces "{ref.namespace}" not found')
        if not _NAME.fullmatch(ref.name):
            raise Refused(f"{ref}: metadata.name is not a DNS subdomain")

    def _store(self, ref: Ref, body: Json) -> None:
        body["metadata"]["resourceVersion"] = str(next(self._numbers))
        self.objects[ref] = body


def _matches(body: Json, labels: Mapping[str, str]) -> bool:
    there = body["metadata"].get("labels", {})
    return all(key in there and (not value or there[key] == value) for key, value in labels.items())


def _merge(body: Json, manifest: Mapping[str, Any]) -> None:
    for key, value in manifest.items():
        if isinstance(value, Mapping) and isinstance(body.get(key), dict):
            _merge(body[key], value)
        else:
            body[key] = value


def _forget(body: Json, before: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
    """Remove what was applied before and is not any more."""
    for key, value in before.items():
        if key not in manifest:
            body.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(manifest[key], Mapping) and isinstance(body.get(key), dict):
            _forget(body[key], value, manifest[key])


class FakeNetwork:
    """Implements `Network`. Data planes say what `said` has under their address, and `Verified` otherwise.

    Sidecars say what `engines` has under their pod's name, and that the engine attached otherwise.

    The store is as it should be, unless `store` says otherwise; an external one has what `found` says at its endpoints.
    """

    def __init__(self) -> None:
        self.said: dict[str, tuple[Word, str, str]] = {}
        self.changes: list[str] = []
        self.engines: dict[str, SidecarSays] = {}
        self.store: StoreSeen | None = None
        self.found: dict[str, tuple[Finding, str]] = {}
        self.servers: list[tuple[int, Wish]] = []

    async def round_trips(self, planes: Sequence[Plane], change: str) -> list[Answer]:
        self.changes.append(change)
        return [Answer(plane, *self.said.get(plane.address, (Word.VERIFIED, "", ""))) for plane in planes]

    async def attachments(self, sidecars: Sequence[Plane]) -> list[SidecarSays]:
        attached = SidecarSays(Plane("", ""), EngineState.ATTACHED)
        return [replace(self.engines.get(each.name, attached), plane=each) for each in sidecars]

    async def shards(self, members: Sequence[Member], access: Access, wish: Wish, seconds: float) -> StoreSeen:
        self.servers.append((len(members), wish))
        if self.store is not None:
            return self.store
        return StoreSeen(ShardPlan(servers=wish.servers, serving=wish.shards), layout="settled")

    async def external(self, endpoints: Sequence[str], access: ExternalAccess) -> list[EndpointSeen]:
        return [EndpointSeen(each, *self.found.get(each, (Finding.STANDALONE, ""))) for each in endpoints]
