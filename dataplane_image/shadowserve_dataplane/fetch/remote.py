"""The client of a data plane in another process: attach, fetch, cancel, over gRPC."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from shadowserve_dataplane.errors import ChunkOutcome, NetworkError, PeerProtocolError
from shadowserve_dataplane.fetch.generated import dataplane_pb2 as wire
from shadowserve_dataplane.fetch.generated.dataplane_pb2_grpc import DataPlaneStub
from shadowserve_dataplane.fetch.plan import FetchJob
from shadowserve_dataplane.fetch.report import ChunkResult

PROTOCOL = 2
ATTACH_SECONDS = 3.0
CANCEL_SECONDS = 2.0
SLACK_SECONDS = 1.0
"""A fetch's stream is given up this long after the job's own deadline: then the data plane hangs."""
KEEPALIVE_SECONDS = 2.0
"""Between pings, and for each answer: a data plane that is silent for twice that is lost."""
_CHANNEL_OPTIONS = (
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.client_idle_timeout_ms", 2**31 - 1),
    ("grpc.enable_http_proxy", 0),  # engines' pods often name one for the way out of the cluster
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
_PING_OPTIONS = ("grpc.keepalive_time_ms", "grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms")
"""The last one is what a peer that hangs while its kernel answers is found by; its default is a minute."""


@dataclass(frozen=True, slots=True)
class PlacementAddress:
    """Where the data plane shall place: a `TcpPlacementReceiver`, and its `local_name`.

    Empty `host`: where the Attach call comes from.
    """

    host: str
    port: int
    token: bytes
    local: str = ""


class RemoteDataPlane:
    """One attachment to the data plane at `endpoint` (`host:port`). Not thread-safe: for one event loop.

    With `credentials` its certificate has to be of `server_name`; without that name, of the endpoint's host.
    """

    def __init__(
        self,
        endpoint: str,
        credentials: grpc.ChannelCredentials | None = None,
        keepalive: float = KEEPALIVE_SECONDS,
        server_name: str | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.version = ""
        pause = round(keepalive * 1000)
        options: tuple[tuple[str, Any], ...] = (*_CHANNEL_OPTIONS, *((name, pause) for name in _PING_OPTIONS))
        if server_name is not None:
            options += (("grpc.ssl_target_name_override", server_name),)
        self._channel = (
            grpc.aio.insecure_channel(endpoint, options=options)
            if credentials is None
            else grpc.aio.secure_channel(endpoint, credentials, options=options)
        )
        self._stub: Any = DataPlaneStub(self._channel)  # type: ignore[no-untyped-call]
        self._attachment = 0
        self._closed = asyncio.Event()

    async def attach(self, sidecar: str, address: PlacementAddress) -> None:
        """Introduce this sidecar. Raises `NetworkError`, or `PeerProtocolError` when the versions do not match."""
        placement = wire.TcpPlacement(host=address.host, port=address.port, token=address.token, local=address.local)
        request = wire.AttachRequest(protocol=PROTOCOL, sidecar=sidecar, tcp=placement)
        try:
            reply = await self._stub.Attach(request, timeout=ATTACH_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise _translated(self.endpoint, error) from error
        if reply.protocol != PROTOCOL:
            raise PeerProtocolError(f"data plane {self.endpoint} speaks protocol {reply.protocol}, not {PROTOCOL}")
        self._attachment, self.version = reply.attachment, reply.version

    async def fetch(self, job: FetchJob) -> AsyncIterator[ChunkResult]:
        """Yield one result a chunk. Raises `NetworkError` when the data plane is lost, refuses, or hangs."""
        left = job.deadline.remaining()
        shape = job.shape
        request = wire.FetchRequest(
            attachment=self._attachment,
            job=job.job,
            deadline_ms=round(left * 1000),
            landing=job.mode.value,
            shape=wire.Shape(
                layers=shape.layers,
                kv_heads=shape.kv_heads,
                head_dim=shape.head_dim,
                tokens=shape.tokens,
                dtype=shape.dtype.value,
            ),
            chunks=[wire.Chunk(index=c.index, key=c.key, slot=c.ref.slot, lease=c.ref.lease) for c in job.chunks],
        )
        call = self._stub.Fetch(request, timeout=left + SLACK_SECONDS)
        try:
            async for message in call:
                for result in message.results:
                    yield _parsed(job.job, result)
        except grpc.aio.AioRpcError as error:
            raise _translated(self.endpoint, error) from error
        except asyncio.CancelledError as error:
            if _is_cancelled():
                raise
            raise NetworkError(f"data plane {self.endpoint}: hung up") from error  # `close` cancels its calls
        finally:
            call.cancel()  # also when the caller has heard enough

    async def cancel(self, job: int) -> None:
        """Stop a job. Raises `NetworkError`."""
        request = wire.CancelRequest(attachment=self._attachment, job=job)
        try:
            await self._stub.Cancel(request, timeout=CANCEL_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise _translated(self.endpoint, error) from error

    async def lost(self) -> None:
        """Return when the connection that `attach` was made over is no more, or was closed; at once if it is so now.

        A new connection of the same channel does not count: whoever is behind it does not know this attachment.
        Nothing is sent but keepalive pings, so a data plane that hangs is lost after two `keepalive` times.
        """
        if self._closed.is_set() or self._channel.get_state() is not grpc.ChannelConnectivity.READY:
            return
        changed = self._channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
        ends = [asyncio.ensure_future(end) for end in (changed, self._closed.wait())]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)

    async def close(self) -> None:
        """Hang up; fetches under way end with `NetworkError`."""
        self._closed.set()
        await self._channel.close(None)


def _is_cancelled() -> bool:
    """Whether it is this task that somebody wants to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _parsed(job: int, result: wire.ChunkResult) -> ChunkResult:
    try:
        outcome = ChunkOutcome(result.outcome)
    except ValueError as error:
        raise PeerProtocolError(f"a data plane reports outcome {result.outcome!r}, which is none") from error
    return ChunkResult(job, result.index, outcome, result.encoded_bytes, result.values_bytes, result.detail)


def _translated(endpoint: str, error: grpc.aio.AioRpcError) -> NetworkError | PeerProtocolError:
    message = f"data plane {endpoint}: {error.code().name.lower()}: {error.details()}"
    if error.code() in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNIMPLEMENTED):
        return PeerProtocolError(message)
    return NetworkError(message)
