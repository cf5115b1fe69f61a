"""The cluster: the one place that speaks to the Kubernetes API, behind a protocol of eight calls.

The real client is thin: server-side apply with our field manager, conditional deletes, merge patches of annotations.
`tests/fakes.py` has the other one; both pass `tests/test_operator_cluster.py`.
"""

import asyncio
import json
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol
from urllib.parse import quote

import aiohttp
from kubernetes.aio import client, config

from shadowserve_crds import names
from shadowserve_operator.errors import (
    ApiUnavailable,
    Conflict,
    Forbidden,
    ImpossibleCall,
    NotServed,
    OperatorError,
    Refused,
)
from shadowserve_operator.kinds import LEASE, Json, Kind, Ref, ref_of

_TIMEOUT = 15.0
"""Seconds that one call may take, with the retries that the API server asks for (Retry-After)."""
_APPLY, _MERGE, _JSON = "application/apply-patch+yaml", "application/merge-patch+json", "application/json"


class Cluster(Protocol):
    """What the operator does with a cluster. Every call may raise `ApiUnavailable`, `Conflict` or `Refused`."""

    async def get(self, ref: Ref) -> Json | None:
        """Return the object, None when there is none."""

    async def list(self, kind: Kind, namespace: str = "", labels: Mapping[str, str] | None = None) -> tuple[Json, ...]:
        """Return all objects of a kind, in the order of their names; `labels` are all required ("" = any value)."""

    async def apply(self, manifest: Json) -> Json:
        """Make the object be as the manifest says; what it does not name is left alone. Returns what is now."""

    async def overwrite(self, manifest: Json) -> Json:
        """Make lists be as the manifest says, too, where somebody else added entries: `apply` never takes those away.

        For an object that exists, and for what it holds, not its metadata. Returns what is now.
        """

    async def delete(self, ref: Ref, uid: str = "") -> None:
        """Delete the object and what it owns; with `uid` only that very one. Gone already is fine."""

    async def write_status(self, ref: Ref, status: Json) -> None:
        """Make `status` be this. An object that is gone meanwhile is fine."""

    async def annotate(self, ref: Ref, annotations: Mapping[str, str | None]) -> None:
        """Set annotations, None removes one. An object that is gone meanwhile is fine."""

    async def create_event(self, event: Json) -> None:
        """Record an event."""


def checked(manifest: Json) -> Ref:
    """Return what the manifest names. Raises `ImpossibleCall` for one that the operator may never apply."""
    try:
        ref = ref_of(manifest)
    except KeyError as error:
        raise ImpossibleCall(
            f"{manifest.get('kind')} {manifest.get('metadata')}: {error} is missing or unknown"
        ) from error
    metadata = manifest["metadata"]
    if metadata.get("labels", {}).get(names.MANAGED_BY_LABEL) != names.MANAGED_BY:
        raise ImpossibleCall(f"{ref}: has no label {names.MANAGED_BY_LABEL}, nobody could tell that it is ours")
    if ref.kind.namespaced and not ref.namespace:
        raise ImpossibleCall(f"{ref}: has no namespace")
    if ref.kind.namespaced and ref.kind is not LEASE and not metadata.get("ownerReferences"):
        raise ImpossibleCall(f"{ref}: has no owner, it would outlive what it was made for")
    if not ref.kind.namespaced and metadata.get("ownerReferences"):
        raise ImpossibleCall(f"{ref}: belongs to no namespace, so nothing of a namespace can own it")
    if "status" in manifest:
        raise ImpossibleCall(f"{ref}: the status is written apart")
    return ref


class ApiCluster:
    """The real cluster. Use it in `async with`; credentials are those of the pod, else of the kubeconfig.

    A kubeconfig or a context that is named goes before the pod's credentials.
    """

    def __init__(self, kubeconfig: str | None = None, context: str | None = None) -> None:
        self._kubeconfig, self._context = kubeconfig, context
        self._api: client.ApiClient | None = None

    async def __aenter__(self) -> "ApiCluster":
        settings = client.Configuration()
        settings.client_go_retries = True
        try:
            if self._kubeconfig is not None or self._context is not None:
                await config.load_kube_config(self._kubeconfig, self._context, client_configuration=settings)
            else:
                try:
                    config.load_incluster_config(client_configuration=settings)
                except config.ConfigException:
                    await config.load_kube_config(client_configuration=settings)
        except (config.ConfigException, OSError) as error:
            raise ApiUnavailable(f"no cluster: {error}; set KUBECONFIG, or run inside a pod") from error
        self._api = client.ApiClient(settings)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._api is not None:
            await self._api.close()

    async def get(self, ref: Ref) -> Json | None:
        """See `Cluster`."""
        return await self._call("GET", ref.path, missing_is_fine=True)

    async def list(self, kind: Kind, namespace: str = "", labels: Mapping[str, str] | None = None) -> tuple[Json, ...]:
        """See `Cluster`."""
        wanted = ",".join(f"{key}={value}" if value else key for key, value in (labels or {}).items())
        answer = await self._call("GET", kind.path(namespace), query={"labelSelector": wanted} if wanted else {})
        assert answer is not None
        about = {"apiVersion": kind.api_version, "kind": kind.name}
        return tuple(sorted(({**about, **item} for item in answer["items"]), key=_place))

    async def apply(self, manifest: Json) -> Json:
        """See `Cluster`."""
        query = {"fieldManager": names.FIELD_MANAGER, "force": "true"}
        answer = await self._call("PATCH", checked(manifest).path, manifest, _APPLY, query)
        assert answer is not None
        return answer

    async def overwrite(self, manifest: Json) -> Json:
        """See `Cluster`."""
        contents = {key: value for key, value in manifest.items() if key not in ("apiVersion", "kind", "metadata")}
        answer = await self._call(
            "PATCH", checked(manifest).path, contents, _MERGE, {"fieldManager": names.FIELD_MANAGER}
        )
        assert answer is not None
        return answer

    async def delete(self, ref: Ref, uid: str = "") -> None:
        """See `Cluster`."""
        body: Json = {"propagationPolicy": "Background"}
        if uid:
            body["preconditions"] = {"uid": uid}
        await self._call("DELETE", ref.path, body, missing_is_fine=True)

    async def write_status(self, ref: Ref, status: Json) -> None:
        """See `Cluster`."""
        metadata = {"name": ref.name, **({"namespace": ref.namespace} if ref.namespace else {})}
        body = {"apiVersion": ref.kind.api_version, "kind": ref.kind.name, "metadata": metadata, "status": status}
        query = {"fieldManager": names.FIELD_MANAGER, "force": "true"}
        await self._call("PATCH", f"{ref.path}/status", body, _APPLY, query, missing_is_fine=True)

    async def annotate(self, ref: Ref, annotations: Mapping[str, str | None]) -> None:
        """See `Cluster`."""
        body = {"metadata": {"annotations": dict(annotations)}}
        await self._call("PATCH", ref.path, body, _MERGE, {"fieldManager": names.FIELD_MANAGER}, missing_is_fine=True)

    async def create_event(self, event: Json) -> None:
        """See `Cluster`."""
        path = ref_of(event).kind.path(event["metadata"]["namespace"])
        await self._call("POST", path, event, query={"fieldManager": names.FIELD_MANAGER})

    async def ask(self, path: str, question: Json | None = None, query: Mapping[str, str] | None = None) -> Json:
        """Return what the API server says at a path, or to a question that is posted there: nothing is kept of it."""
        method = "GET" if question is None else "POST"
        answer = await self._call(method, path, question, query=query)
        assert answer is not None
        return answer

    async def _call(
        self,
        method: str,
        path: str,
        body: Any = None,
        content: str = _JSON,
        query: Mapping[str, str] | None = None,
        missing_is_fine: bool = False,
    ) -> Json | None:
        assert self._api is not None, "use it in `async with`"
        request = await self._api.param_serialize(
            method,
            quote(path),
            query_params=list((query or {}).items()),
            header_params={"Accept": _JSON, "Content-Type": content},
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            async with asyncio.timeout(_TIMEOUT):
                response = await self._api.call_api(*request, _request_timeout=_TIMEOUT)
                text = await response.read()
        except (TimeoutError, client.ApiException, aiohttp.ClientError, OSError) as error:
            raise ApiUnavailable(f"{method} {path}: {error or type(error).__name__}") from error
        if response.status == 404 and missing_is_fine:
            return None
        if response.status >= 400:
            raise _refusal(response.status, f"{method} {path}", text)
        answer: Json = json.loads(text)
        return answer


def _refusal(status: int, what: str, text: bytes) -> OperatorError:
    try:
        message = str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        message = text[:300].decode("utf-8", "replace")
    if status == 409:
        return Conflict(f"{what}: {message}")
    if status in (408, 429) or status >= 500:
        return ApiUnavailable(f"{what}: {message}")
    kinds: dict[int, type[Refused]] = {403: Forbidden, 404: NotServed}
    return kinds.get(status, Refused)(message)


def _place(manifest: Json) -> tuple[str, str]:
    return manifest["metadata"].get("namespace", ""), manifest["metadata"]["name"]
