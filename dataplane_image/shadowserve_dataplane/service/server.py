"""The gRPC face of a data plane: sidecars attach, ask for chunks, and hear what became of each."""

import asyncio
import itertools
import logging
import secrets
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import grpc
import grpc.aio

from shadowserve_dataplane import __version__
from shadowserve_dataplane.errors import Cancelled, ChunkOutcome
from shadowserve_dataplane.fetch.generated import dataplane_pb2 as wire
from shadowserve_dataplane.fetch.generated.dataplane_pb2_grpc import DataPlaneServicer
from shadowserve_dataplane.fetch.pipeline import Pipeline
from shadowserve_dataplane.fetch.remote import PROTOCOL
from shadowserve_dataplane.fetch.report import ChunkResult
from shadowserve_dataplane.place.tcp import TcpTarget
from shadowserve_dataplane.service.requests import BadRequest, Bounds, parse_attach, parse_fetch

MAX_ATTACHMENTS = 1024
"""Sidecars known at once; the one that attached longest ago is forgotten first, and attaches again when it asks."""
_log = logging.getLogger(__name__)

Context = Any
"""`grpc.aio.ServicerContext`, whose type parameters differ from call to call."""


@dataclass(slots=True)
class _Attachment:
    sidecar: str
    target: TcpTarget
    jobs: dict[int, int] = field(default_factory=dict)


class DataPlaneService(DataPlaneServicer):
    """Serves the calls of dataplane.proto with one pipeline; all methods run on one event loop."""

    def __init__(self, pipeline: Pipeline, bounds: Bounds, tls: ssl.SSLContext | None = None) -> None:
        """`tls` is what placement streams are made with; None: plaintext."""
        self._pipeline = pipeline
        self._bounds = bounds
        self._tls = tls
        self._attachments: dict[int, _Attachment] = {}
        self._numbers = itertools.count(1)

    async def Attach(self, request: wire.AttachRequest, context: Context) -> wire.AttachReply:
        """Remember a sidecar and where it wants its chunks."""
        try:
            target = replace(parse_attach(request, _peer_host(context.peer())), tls=self._tls)
        except BadRequest as error:
            await _refuse(context, error)
        number = secrets.randbits(63)
        while len(self._attachments) >= MAX_ATTACHMENTS:
            del self._attachments[next(iter(self._attachments))]
        self._attachments[number] = _Attachment(request.sidecar, target)
        _log.info("sidecar %s attached, placement to %s:%d", request.sidecar, target.host, target.port)
        return wire.AttachReply(protocol=PROTOCOL, attachment=number, version=__version__)

    async def Fetch(self, request: wire.FetchRequest, context: Context) -> AsyncIterator[wire.ChunkResults]:
        """Restore the chunks of one job; a caller that hangs up cancels it."""
        number = next(self._numbers)
        results: asyncio.Queue[ChunkResult] = asyncio.Queue()
        try:
            attachment = self._attached(request.attachment)
            if request.job in attachment.jobs:
                raise BadRequest(grpc.StatusCode.ALREADY_EXISTS, f"job {request.job} is under way")
            job = parse_fetch(request, number, self._bounds)
            self._pipeline.submit(job, attachment.target, _into(results))
        except BadRequest as error:
            await _refuse(context, error)
        except Cancelled as error:
            await _refuse(context, BadRequest(grpc.StatusCode.UNAVAILABLE, str(error)))
        attachment.jobs[request.job] = number
        try:
            left = len(job.chunks)
            while left:
                told = await worth_telling(results, left)
                left -= len(told)
                yield wire.ChunkResults(results=map(_message, told))
        finally:
            if attachment.jobs.get(request.job) == number:
                del attachment.jobs[request.job]
            self._pipeline.cancel(number)

    async def Cancel(self, request: wire.CancelRequest, context: Context) -> wire.CancelReply:
        """Stop a job, if it is still under way."""
        attachment = self._attachments.get(request.attachment)
        if attachment is not None and request.job in attachment.jobs:
            self._pipeline.cancel(attachment.jobs[request.job])
        return wire.CancelReply()

    def _attached(self, number: int) -> _Attachment:
        attachment = self._attachments.get(number)
        if attachment is None:
            raise BadRequest(grpc.StatusCode.NOT_FOUND, "this data plane does not know that attachment: attach again")
        return attachment


def _into(results: "asyncio.Queue[ChunkResult]") -> Callable[[ChunkResult], None]:
    """Return what the pipeline's threads call to put a result into a queue of this event loop."""
    loop = asyncio.get_running_loop()

    def put(result: ChunkResult) -> None:
        loop.call_soon_threadsafe(results.put_nowait, result)

    return put


async def worth_telling(results: "asyncio.Queue[ChunkResult]", left: int) -> list[ChunkResult]:
    """Return the next results, `left` at most: until one is a failure, which nobody has told the sidecar yet."""
    told: list[ChunkResult] = []
    while len(told) < left:
        told.append(await results.get())
        if told[-1].outcome is not ChunkOutcome.LANDED:
            break
    return told


def _message(result: ChunkResult) -> wire.ChunkResult:
    return wire.ChunkResult(
        index=result.index,
        outcome=result.outcome.value,
        encoded_bytes=result.encoded_bytes,
        values_bytes=result.values_bytes,
        detail=result.detail,
    )


async def _refuse(context: Context, error: BadRequest) -> NoReturn:
    await context.abort(error.code, str(error))
    raise error  # abort has raised already


def _peer_host(peer: str) -> str:
    """Return the host of gRPC's `ipv4:1.2.3.4:567` or `ipv6:%5Bfd00::1%5D:567`."""
    address = peer.partition(":")[2].rpartition(":")[0]
    return address.replace("%5B", "").replace("%5D", "").strip("[]")
