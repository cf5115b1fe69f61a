"""What sidecars ask of a data plane, checked at the edge: protobuf in, exact types out, `BadRequest` for the rest."""

from dataclasses import dataclass

import grpc

from shadowserve_dataplane.chunks import KEY_BYTES, ChunkKey, KvDtype, KvShape
from shadowserve_dataplane.codec.tiers import LandingMode
from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.errors import ShadowServeError
from shadowserve_dataplane.fetch.generated import dataplane_pb2 as wire
from shadowserve_dataplane.fetch.plan import ChunkRequest, FetchJob
from shadowserve_dataplane.fetch.remote import PROTOCOL
from shadowserve_dataplane.landing import SlotRef
from shadowserve_dataplane.place.frames import TOKEN_BYTES
from shadowserve_dataplane.place.tcp import TcpTarget

MAX_CHUNKS = 65_536
_MAX_DEADLINE_MS = 3_600_000
_MOST_COMPRESSED = 16
"""No tier makes a chunk smaller than its values by more: one that could only be larger than a buffer is refused."""
_LONGEST_LOCAL = 100
"""Bytes; the kernel takes 107 (unix(7))."""
_LIMITS = {"layers": 1024, "kv_heads": 4096, "head_dim": 4096, "tokens": 4096}


class BadRequest(ShadowServeError):
    """A call that cannot be served; `code` is the gRPC status it ends with."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Bounds:
    """What this data plane can restore."""

    max_chunk_bytes: int


def parse_attach(request: wire.AttachRequest, peer_host: str) -> TcpTarget:
    """Return where that sidecar wants its chunks."""
    if request.protocol != PROTOCOL:
        words = f"this data plane speaks protocol {PROTOCOL}, the sidecar {request.protocol}; use matching versions"
        raise BadRequest(grpc.StatusCode.FAILED_PRECONDITION, words)
    if request.WhichOneof("placement") != "tcp" or not (request.tcp.host or peer_host):
        raise BadRequest(grpc.StatusCode.INVALID_ARGUMENT, "placement: this data plane knows only tcp, to a host")
    tcp = request.tcp
    if len(tcp.token) != TOKEN_BYTES:
        raise BadRequest(grpc.StatusCode.INVALID_ARGUMENT, f"tcp.token: {len(tcp.token)} bytes, not {TOKEN_BYTES}")
    if not 0 < tcp.port < 65_536:
        raise BadRequest(grpc.StatusCode.INVALID_ARGUMENT, f"tcp.port: {tcp.port}")
    if len(tcp.local.encode()) > _LONGEST_LOCAL or "\0" in tcp.local:
        raise BadRequest(grpc.StatusCode.INVALID_ARGUMENT, f"tcp.local: {tcp.local!r} is no name of a unix socket")
    return TcpTarget(tcp.host or peer_host, tcp.port, tcp.token, local=tcp.local)


def parse_fetch(request: wire.FetchRequest, job: int, bounds: Bounds) -> FetchJob:
    """Return the job to run, under the pipeline's own number `job`."""
    shape = _shape(request.shape)
    if shape.values_bytes > _MOST_COMPRESSED * bounds.max_chunk_bytes:
        words = f"shape: chunks of {shape.values_bytes} bytes; raise --max-chunk-bytes ({bounds.max_chunk_bytes})"
        raise BadRequest(grpc.StatusCode.INVALID_ARGUMENT, words)
    if request.landing not in set(LandingMode):
        raise BadRequest(grpc.StatusCode.INVALID_ARGUMENT, f"landing: {request.landing!r}, not Codes or Values")
    if not 0 <= request.deadline_ms <= _MAX_DEADLINE_MS:
        raise BadRequest(grpc.StatusCode.INVALID_ARGUMENT, f"deadline_ms: {request.deadline_ms}")
    chunks = _chunks(request)
    deadline = Deadline.after(request.deadline_ms / 1000)
    return FetchJob(job, shape, LandingMode(request.landing), chunks, deadline)


def _shape(shape: wire.Shape) -> KvShape:
    for field, limit in _LIMITS.items():
        value = getattr(shape, field)
        if not 0 < value <= limit:
            raise BadRequest(grpc.StatusCode.INVALID_ARGUMENT, f"shape.{field}: {value}, not 1 to {limit}")
    if shape.dtype not in set(KvDtype):
        raise BadRequest(grpc.StatusCode.INVALID_ARGUMENT, f"shape.dtype: {shape.dtype!r}")
    return KvShape(shape.layers, shape.kv_heads, shape.head_dim, KvDtype(shape.dtype), shape.tokens)


def _chunks(request: wire.FetchRequest) -> tuple[ChunkRequest, ...]:
    if len(request.chunks) > MAX_CHUNKS:
        raise BadRequest(grpc.StatusCode.INVALID_ARGUMENT, f"chunks: {len(request.chunks)}, at most {MAX_CHUNKS}")
    if any(len(chunk.key) != KEY_BYTES for chunk in request.chunks):
        raise BadRequest(grpc.StatusCode.INVALID_ARGUMENT, f"chunks: a key that is not {KEY_BYTES} bytes long")
    if len({chunk.index for chunk in request.chunks}) != len(request.chunks):
        raise BadRequest(grpc.StatusCode.INVALID_ARGUMENT, "chunks: an index comes twice")
    if len({chunk.slot for chunk in request.chunks}) != len(request.chunks):
        raise BadRequest(grpc.StatusCode.INVALID_ARGUMENT, "chunks: a slot comes twice")
    return tuple(
        ChunkRequest(chunk.index, ChunkKey(chunk.key), SlotRef(chunk.slot, chunk.lease)) for chunk in request.chunks
    )
