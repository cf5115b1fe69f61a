"""Batches at a data plane on another machine: jobs and results by gRPC, bytes by its placement into our landing buffer.

A chunk has landed when the placement stream said so behind its last byte, not when gRPC does: the two are separate
connections. What gRPC says of failures counts at once.
"""

import asyncio
import logging
import secrets
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc

from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.errors import ChunkOutcome, SettingsError, ShadowServeError
from shadowserve_dataplane.fetch.plan import FetchJob
from shadowserve_dataplane.fetch.remote import PlacementAddress, RemoteDataPlane
from shadowserve_dataplane.fetch.report import ChunkResult
from shadowserve_dataplane.landing import LandingBuffer, SlotRef
from shadowserve_dataplane.place.receiver import TcpPlacementReceiver
from shadowserve_dataplane.sidecar.data_plane import OnLost
from shadowserve_dataplane.sidecar.runners import Report
from shadowserve_dataplane.sidecar.settings import Placement, TlsFiles, server_context

_TOKEN_BYTES = 32
_MARGIN = 0.1
_LONGEST_MARGIN = 0.2
"""The data plane gets this share of a deadline less (seconds at most), so that one that lives answers in time."""

_log = logging.getLogger(__name__)

CountBytes = Callable[[int, int], None]
"""Takes encoded bytes and values' bytes of a chunk that landed."""


@dataclass(slots=True)
class _RemoteBatch:
    """Chunks without a report, by index, and those of them that gRPC has told of."""

    unreported: dict[int, SlotRef]
    told: set[int] = field(default_factory=set)


class RemoteAttachment:
    """One attached data plane. Reports come from event-loop callbacks of their own."""

    def __init__(self, plane: RemoteDataPlane, report: Report, count: CountBytes, on_lost: OnLost) -> None:
        self._plane = plane
        self._report = report
        self._count = count
        self._on_lost = on_lost
        self._batches: dict[int, _RemoteBatch] = {}
        self._chunks: dict[SlotRef, tuple[int, int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._watcher = self._loop.create_task(self._watch())

    @property
    def endpoint(self) -> str:
        """Where it is."""
        return self._plane.endpoint

    @property
    def busy(self) -> bool:
        """Whether a batch has chunks without a report."""
        return bool(self._batches)

    def submit(self, batch: FetchJob) -> None:
        """Start a batch."""
        self._batches[batch.job] = _RemoteBatch({chunk.index: chunk.ref for chunk in batch.chunks})
        self._chunks.update({chunk.ref: (batch.job, chunk.index) for chunk in batch.chunks})
        self._start(self._fetch(with_margin(batch)))

    def cancel(self, batch: int) -> None:
        """Stop a batch; nothing is reported of it any more."""
        if self._forget(batch):
            self._start(self._cancel(batch))

    def silent(self, batch: int) -> bool:
        """Whether some chunk of the batch was not heard of at all."""
        entry = self._batches.get(batch)
        return entry is not None and bool(entry.unreported.keys() - entry.told)

    def finished(self, ref: SlotRef) -> None:
        """The placement stream says that a chunk is whole; refs of others are ignored."""
        if ref in self._chunks:
            batch, index = self._chunks[ref]
            self._settle(ChunkResult(batch, index, ChunkOutcome.LANDED))

    def break_off(self, reason: str) -> None:
        """Report every chunk under way as failed, a moment later; nothing is reported after that."""
        lost = [ChunkResult(*chunk, ChunkOutcome.PLACE_ERROR, detail=reason) for chunk in self._chunks.values()]
        self._batches.clear()
        self._chunks.clear()
        for result in lost:
            self._loop.call_soon(self._report, result)

    async def close(self) -> None:
        """Hang up."""
        self._watcher.cancel()
        await self._plane.close()
        await asyncio.wait([self._watcher, *self._tasks])

    async def _watch(self) -> None:
        await self._plane.lost()
        self._on_lost(self, "the connection broke")

    async def _fetch(self, batch: FetchJob) -> None:
        try:
            async for result in self._plane.fetch(batch):
                self._heard(result)
        except ShadowServeError as error:
            if batch.job in self._batches:
                self._on_lost(self, str(error))
            return
        entry = self._batches.get(batch.job)
        for index in entry.unreported.keys() - entry.told if entry else ():
            self._settle(ChunkResult(batch.job, index, ChunkOutcome.PLACE_ERROR, detail="the data plane said nothing"))

    def _heard(self, result: ChunkResult) -> None:
        if result.outcome is ChunkOutcome.LANDED:
            self._count(result.encoded_bytes, result.values_bytes)
            if entry := self._batches.get(result.job):
                entry.told.add(result.index)
        else:
            self._settle(result)

    def _settle(self, result: ChunkResult) -> None:
        entry = self._batches.get(result.job)
        ref = entry.unreported.pop(result.index, None) if entry else None
        if entry is None or ref is None:
            return
        del self._chunks[ref]
        if not entry.unreported:
            del self._batches[result.job]
        self._report(result)

    def _forget(self, batch: int) -> bool:
        entry = self._batches.pop(batch, None)
        for ref in entry.unreported.values() if entry else ():
            del self._chunks[ref]
        return entry is not None

    async def _cancel(self, batch: int) -> None:
        try:
            await self._plane.cancel(batch)
        except ShadowServeError as error:
            _log.debug("batch %d could not be cancelled: %s", batch, error)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class RemoteAttach:
    """Attaches to data planes; owns the receiver that they place into. `report` is called on the event loop."""

    def __init__(self, settings: Placement, landing: LandingBuffer, report: Report, count: CountBytes) -> None:
        self._settings = settings
        self._landing = landing
        self._report = report
        self._count = count
        self._token = secrets.token_bytes(_TOKEN_BYTES)
        self._receiver: TcpPlacementReceiver | None = None
        self._attachments: list[RemoteAttachment] = []
        self._loop = asyncio.get_running_loop()

    async def __call__(self, endpoint: str, on_lost: OnLost) -> RemoteAttachment:
        """Attach to the data plane at `endpoint`. Raises `NetworkError`, `PeerProtocolError` or `SettingsError`."""
        tls = self._settings.tls
        receiver = self._listen()
        credentials = channel_credentials(tls) if tls else None
        plane = RemoteDataPlane(endpoint, credentials, server_name=self._settings.server_name)
        try:
            address = PlacementAddress(
                self._settings.advertised_host or "", receiver.port, self._token, receiver.local_name
            )
            await plane.attach(socket.gethostname(), address)
        except BaseException:
            await plane.close()
            raise
        attachment = RemoteAttachment(plane, self._report, self._count, on_lost)
        self._attachments = [other for other in self._attachments if other.busy] + [attachment]
        return attachment

    async def close(self) -> None:
        """Stop receiving; attachments are closed by whoever has them."""
        if self._receiver is not None:
            await self._loop.run_in_executor(None, self._receiver.close)

    def _listen(self) -> TcpPlacementReceiver:
        if self._receiver is None:
            where = (self._settings.receiver_host, self._settings.receiver_port)
            tls = self._settings.tls
            context = server_context(tls, "placement.tls") if tls else None
            try:
                self._receiver = TcpPlacementReceiver(
                    self._landing, where, self._token, self._finished_on_thread, context
                )
            except OSError as error:
                raise SettingsError(
                    f"placement.receiverHost, receiverPort: cannot listen on {where[0]}:{where[1]}: {error.strerror}"
                ) from error
        return self._receiver

    def _finished_on_thread(self, ref: SlotRef) -> None:
        self._loop.call_soon_threadsafe(self._finished, ref)

    def _finished(self, ref: SlotRef) -> None:
        for attachment in self._attachments:
            attachment.finished(ref)


def with_margin(batch: FetchJob) -> FetchJob:
    """Return the batch with the deadline that the data plane is told: a little earlier than ours."""
    margin = min(_MARGIN * batch.deadline.remaining(), _LONGEST_MARGIN)
    return replace(batch, deadline=Deadline(batch.deadline.at - margin, batch.deadline.clock))


def channel_credentials(files: TlsFiles) -> grpc.ChannelCredentials:
    """Return what gRPC needs for (mutual) TLS. Raises `SettingsError`."""
    try:
        authority, key, certificate = (
            Path(name).read_bytes() if name else None
            for name in (files.authority_file, files.key_file, files.certificate_file)
        )
    except OSError as error:
        raise SettingsError(f"placement.tls: {error}; the files must be readable PEM") from error
    return grpc.ssl_channel_credentials(authority, key, certificate)
