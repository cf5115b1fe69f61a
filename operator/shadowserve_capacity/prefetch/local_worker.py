"""A worker process on this machine: `python -m shadowserve_capacity.prefetch.local_worker SOCKET DATA FLAGS`.

The arguments are file descriptors: a SOCK_SEQPACKET socket to the master, a memory file with the target, and one with a
serial number a lane: the order that is called off.
"""

import mmap
import pickle
import signal
import socket
import struct
import sys

import numpy as np

from shadowserve_capacity.prefetch.problem import Target
from shadowserve_capacity.prefetch.wire import Answer, Failure, Order, decode, encode
from shadowserve_capacity.prefetch.worker import keep_freed_memory, work

LARGEST_MESSAGE = 1 << 17
READY = b"\x00ready"
REFUSED = b"\x01"
_HEAD = struct.Struct("<QQ")


class LocalOrders:
    """Orders from a socket; call-offs from shared memory."""

    def __init__(self, channel: socket.socket, flags: int) -> None:
        self._channel = channel
        self._off = np.frombuffer(mmap.mmap(flags, 0), dtype=np.uint64)

    def next(self) -> Order | None:
        """Wait for the next order; None when the master is gone."""
        data = self._channel.recv(LARGEST_MESSAGE)
        order = decode(data) if data else None
        return order if isinstance(order, Order) else None

    def called_off(self, order: Order) -> bool:
        """Return whether the flag of the order's lane names it."""
        return int(self._off[order.lane]) == order.serial

    def answer(self, message: Answer | Failure) -> None:
        """Send a message."""
        self._channel.send(encode(message))


def packed(target: Target) -> list[bytes | memoryview]:
    """Return the parts of a memory file that holds `target`: arrays lie beside the pickle, to be mapped, not copied."""
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(target, protocol=5, buffer_callback=buffers.append)
    raws = [buffer.raw() for buffer in buffers]
    head = struct.pack(f"<QQ{len(raws)}Q", len(body), len(raws), *(raw.nbytes for raw in raws))
    parts: list[bytes | memoryview] = [head, body]
    end = len(head) + len(body)
    for raw in raws:
        parts += [bytes(-end % 64), raw]
        end += -end % 64 + raw.nbytes
    return parts


def unpacked(data: memoryview) -> Target:
    """Return the target in a memory file."""
    size, count = _HEAD.unpack_from(data)
    lengths = struct.unpack_from(f"<{count}Q", data, _HEAD.size)
    start = _HEAD.size + 8 * count
    body, end = data[start : start + size], start + size
    buffers: list[memoryview] = []
    for length in lengths:
        end += -end % 64
        buffers.append(data[end : end + length])
        end += length
    target: Target = pickle.loads(body, buffers=buffers)
    return target


def main() -> None:
    """Be a worker until the master is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the master is interrupted, and then hangs up
    keep_freed_memory()
    channel_fd, data_fd, flags_fd = (int(argument) for argument in sys.argv[1:4])
    try:
        _serve(socket.socket(fileno=channel_fd), data_fd, flags_fd)
    except (BrokenPipeError, ConnectionResetError):
        return  # the chain was finished before this process was of use, or while it worked


def _serve(channel: socket.socket, data_fd: int, flags_fd: int) -> None:
    try:
        # mapped with all pages now: faults while the first candidates are evaluated would look like slow workers
        data = mmap.mmap(data_fd, 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ)
        target = unpacked(memoryview(data))
    except Exception as error:  # whatever unpickling runs into: the master says it
        channel.send(REFUSED + repr(error).encode()[: LARGEST_MESSAGE - 1])
        return
    channel.send(READY)
    work(target, LocalOrders(channel, flags_fd))


if __name__ == "__main__":
    main()
