"""What the operator asks of pods directly, past the Kubernetes API: data planes and stores.

`tests/fakes.py` has the other implementation. Nobody may be asked for long: a reconcile waits for the answers.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Protocol

import aiohttp

from shadowserve_operator.desired.attachment import EngineState, SidecarSays
from shadowserve_operator.desired.external_store import EndpointSeen
from shadowserve_operator.desired.round_trip import Answer, Plane, Word
from shadowserve_operator.desired.shard_views import Member
from shadowserve_operator.desired.sharding import StoreSeen, Wish
from shadowserve_operator.store_admin import Access, ExternalAccess, StoreTrouble, find_out, shard

_CONNECT_SECONDS = 1.0
_ANSWER_SECONDS = 5.0
"""A round trip may take three seconds."""
_AGAIN_SECONDS = 1.2
"""A data plane makes no more than one round trip a second: so long until it makes the one that is asked for."""
_ATTACHMENT_SECONDS = 2.0
"""They answer from memory, and what is silent must hold nobody up."""
_AT_ONCE = 16
_ANSWER_BYTES = 64 * 1024
_DETAIL_CHARACTERS = 500


class Network(Protocol):
    """What can be asked."""

    async def round_trips(self, planes: Sequence[Plane], change: str) -> list[Answer]:
        """Return what these data planes say of a round trip after `change`, in that order; raises nothing."""

    async def attachments(self, sidecars: Sequence[Plane]) -> list[SidecarSays]:
        """Return what these sidecars say of their engines, in that order, within seconds; raises nothing."""

    async def shards(self, members: Sequence[Member], access: Access, wish: Wish, seconds: float) -> StoreSeen:
        """Bring the servers of a store closer to what is wished, for that time, 0 = only look; raises nothing."""

    async def external(self, endpoints: Sequence[str], access: ExternalAccess) -> list[EndpointSeen]:
        """Return what is at these endpoints of a store that somebody else runs; raises nothing."""


class PodNetwork:
    """The real one. `patience` is for how many seconds all sidecars of a pool together may think about an answer."""

    def __init__(self, patience: float = _ATTACHMENT_SECONDS) -> None:
        self._patience = patience

    async def round_trips(self, planes: Sequence[Plane], change: str) -> list[Answer]:
        """See `Network`."""
        if not planes:
            return []
        limits = aiohttp.ClientTimeout(total=_ANSWER_SECONDS, sock_connect=_CONNECT_SECONDS)
        connector = aiohttp.TCPConnector(limit=_AT_ONCE)
        async with aiohttp.ClientSession(timeout=limits, connector=connector) as session:
            return list(await asyncio.gather(*(_asked(session, plane, change) for plane in planes)))

    async def attachments(self, sidecars: Sequence[Plane]) -> list[SidecarSays]:
        """See `Network`."""
        if not sidecars:
            return []
        limits = aiohttp.ClientTimeout(total=self._patience, sock_connect=self._patience)
        connector = aiohttp.TCPConnector(limit=0)  # all at once: those that are silent must not keep others waiting
        async with aiohttp.ClientSession(timeout=limits, connector=connector) as session:
            return list(await asyncio.gather(*(_attached(session, each) for each in sidecars)))

    async def shards(self, members: Sequence[Member], access: Access, wish: Wish, seconds: float) -> StoreSeen:
        """See `Network`."""
        try:
            return await shard(members, access, wish, seconds)
        except StoreTrouble as trouble:
            seen = await shard(members, access, wish, 0.0)
            return replace(seen, trouble=str(trouble))

    async def external(self, endpoints: Sequence[str], access: ExternalAccess) -> list[EndpointSeen]:
        """See `Network`."""
        return await find_out(endpoints, access)


async def _asked(session: aiohttp.ClientSession, plane: Plane, change: str) -> Answer:
    try:
        document = await _document(session, plane, change)
        if document.get("change") != change:
            await asyncio.sleep(_AGAIN_SECONDS)
            document = await _document(session, plane, change)
        word = Word(document["verdict"]) if document.get("change") == change else Word.PENDING
        return Answer(plane, word, _short(document.get("stage", "")), _short(document.get("detail", "")))
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        return Answer(plane, Word.UNREACHABLE, detail=_why(error))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return Answer(plane, Word.UNREACHABLE, detail=f"what answers there is no data plane: {error!r}")


async def _attached(session: aiohttp.ClientSession, sidecar: Plane) -> SidecarSays:
    try:
        found = await _document(session, sidecar, path="/attachment")
        return SidecarSays(
            sidecar,
            EngineState(found["state"]),
            _short(found["detail"]),
            int(found["chunks"]),
            int(found["wantedBytes"]),
            str(found["contract"]),
            str(found.get("settings", "")),  # sidecars of an older release do not tell it
        )
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        return SidecarSays(sidecar, EngineState.UNREACHABLE, _why(error))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return SidecarSays(sidecar, EngineState.UNREACHABLE, f"what answers there is no sidecar: {error!r}")


async def _document(
    session: aiohttp.ClientSession, plane: Plane, change: str = "", path: str = "/round-trip"
) -> Mapping[str, Any]:
    """Ask, and believe little of what a pod says: no redirect is followed, and no more read than an answer needs."""
    url, question = f"http://{plane.address}{path}", {"change": change}
    async with session.get(url, params=question, allow_redirects=False) as reply:
        reply.raise_for_status()
        if reply.status != HTTPStatus.OK:
            raise ValueError(f"HTTP {reply.status}")
        text = b""
        async for part in reply.content.iter_any():
            text += part
            if len(text) > _ANSWER_BYTES:
                raise ValueError(f"more than {_ANSWER_BYTES} bytes")
        document: Mapping[str, Any] = json.loads(text)
        return document


def _short(detail: object) -> str:
    """Return what a pod says as text that fits a condition."""
    return "".join(each if each.isprintable() else " " for each in str(detail)[:_DETAIL_CHARACTERS])


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or type(error.os_error).__name__
    if isinstance(error, aiohttp.ClientResponseError):
        return f"HTTP {error.status}"
    return str(error) or type(error).__name__
