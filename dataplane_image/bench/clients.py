"""Ways to restore the same chunks from the same store, to measure ours against.

Receive only is the ceiling: the bytes come and nobody looks at them. Naive is what a first version does, with a stock
client. By stages is the same with a stage for all chunks at a time. Both land codes or values as ours does.
"""

import socket
import ssl
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import valkey
import zstandard

from shadowserve_dataplane.chunks import KvShape, store_key
from shadowserve_dataplane.codec.format import ChunkHeader, Expected, FrameKind, Limits, parse_header
from shadowserve_dataplane.codec.landed import LandedLayout
from shadowserve_dataplane.codec.reference import decoded
from shadowserve_dataplane.codec.tiers import LandingMode
from shadowserve_dataplane.fetch.plan import ChunkRequest
from shadowserve_dataplane.landing import LandingBuffer

_HEAD_BYTES = 16
"""Enough for the length of a value, less than the value."""


class ReceiveOnly:
    """Reads values over some connections into one buffer each."""

    def __init__(self, port: int, connections: int, max_bytes: int, tls: ssl.SSLContext | None = None) -> None:
        self._sockets = [_connected(port, tls) for _ in range(connections)]
        self._buffers = [memoryview(bytearray(max_bytes)) for _ in self._sockets]
        self._pool = ThreadPoolExecutor(connections)

    def fetch(self, requests: Sequence[ChunkRequest]) -> None:
        """Receive every value."""
        number = len(self._sockets)
        list(self._pool.map(self._share, range(number), (requests[i::number] for i in range(number))))

    def close(self) -> None:
        """Hang up."""
        self._pool.shutdown()
        for stream in self._sockets:
            stream.close()

    def _share(self, number: int, requests: Sequence[ChunkRequest]) -> None:
        stream, buffer = self._sockets[number], self._buffers[number]
        names = [store_key(request.key) for request in requests]
        commands = [b"*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n" % (len(name), name) for name in names]
        for ahead in commands[:2]:
            stream.sendall(ahead)
        for position in range(len(commands)):
            have = stream.recv_into(buffer, _HEAD_BYTES)  # no more: the next value may be right behind this one
            head, _, _ = bytes(buffer[:have]).partition(b"\r\n")
            left = int(head[1:]) + len(head) + 4 - have
            while left > 0:
                left -= stream.recv_into(buffer, min(left, len(buffer)))
            if position + 2 < len(commands):
                stream.sendall(commands[position + 2])


def _connected(port: int, tls: ssl.SSLContext | None) -> socket.socket:
    stream = socket.create_connection(("127.0.0.1", port), 30)
    return stream if tls is None else tls.wrap_socket(stream, server_hostname="127.0.0.1")


class Naive:
    """A stock client; each chunk is received, decompressed into new arrays (and dequantized), copied to its slot."""

    def __init__(
        self, port: int, shape: KvShape, mode: LandingMode, landing: LandingBuffer, host: str = "127.0.0.1"
    ) -> None:
        self._client = valkey.Valkey(host, port, socket_timeout=30)
        self._shape, self._mode, self._landing = shape, mode, landing

    def fetch(self, requests: Sequence[ChunkRequest]) -> None:
        """Restore the chunks one after the other."""
        for request in requests:
            self.land(request, self.restore(request, self.receive(request)))

    def fetch_by_stages(self, requests: Sequence[ChunkRequest]) -> None:
        """Receive all, then restore all, then place all."""
        received = [self.receive(request) for request in requests]
        restored = [self.restore(*pair) for pair in zip(requests, received, strict=True)]
        for request, image in zip(requests, restored, strict=True):
            self.land(request, image)

    def receive(self, request: ChunkRequest) -> bytes:
        """Return the chunk as stored."""
        found = self._client.get(store_key(request.key))
        assert isinstance(found, bytes)
        return found

    def restore(self, request: ChunkRequest, chunk: bytes) -> bytes:
        """Return what lands."""
        header = parse_header(memoryview(chunk), Expected(request.key, self._shape), Limits(), len(chunk))
        if self._mode is LandingMode.VALUES:
            return decoded(chunk, header).tobytes()
        return np.concatenate(_codes(chunk, header)).tobytes()

    def land(self, request: ChunkRequest, image: bytes) -> None:
        """Copy it to its slot."""
        start = LandedLayout.max_bytes(self._shape) - len(image)
        with self._landing.writer(request.ref) as slot:
            slot[start : start + len(image)] = image

    def close(self) -> None:
        """Hang up."""
        self._client.close()


def _codes(chunk: bytes, header: ChunkHeader) -> list[np.ndarray]:
    inflater = zstandard.ZstdDecompressor()
    return [
        np.frombuffer(inflater.decompress(chunk[frame.offset : frame.offset + frame.encoded_bytes]), np.int8)
        for frame in header.frames
        if frame.kind is FrameKind.CODES
    ]
