"""The store process: encodes and puts finished chunks at the lowest priority. Started by the sidecar, ends with it.

It is a process and not a thread of the sidecar because of that priority: a thread that the scheduler holds back while
it holds the interpreter's lock holds back the look-ups and fetches of all other threads with it.
"""

import asyncio
import ctypes
import logging
import mmap
import os
import signal
import sys
from typing import BinaryIO

from shadowserve_dataplane.chunks import ChunkKey, KvShape
from shadowserve_dataplane.codec.tiers import Tier
from shadowserve_dataplane.errors import SettingsError
from shadowserve_dataplane.sidecar.settings import store_settings
from shadowserve_dataplane.sidecar.store_messages import Confirm, Done, Encoded, Setup, Work, framed, read_message
from shadowserve_dataplane.sidecar.store_steps import StagedChunk, StoreSteps
from shadowserve_dataplane.store.client import StoreClient

_LOWEST_PRIORITY = 19
_PR_SET_PDEATHSIG = 1


class StoreProcess:
    """Reads work from `source`, answers to `sink`; blocking, because it does one thing at a time."""

    def __init__(self, setup: Setup, source: BinaryIO, sink: BinaryIO) -> None:
        self._source = source
        self._sink = sink
        self._steps = StoreSteps(Tier.parse(setup.config.tier), setup.config.limits.store_deadline_ms / 1e3)
        self._client = StoreClient(store_settings(setup.config))
        self._staging = _map_read_only(setup.staging)

    def run(self) -> None:
        """Store chunks until the sidecar hangs up."""
        with asyncio.Runner() as runner:
            while isinstance(work := read_message(self._source), Work):
                self._say(runner.run(self._steps.store(self._chunk(work), self._client, self._confirmed)))
            runner.run(self._client.close())

    def _chunk(self, work: Work) -> StagedChunk:
        shape = KvShape(work.layers, work.kv_heads, work.head_dim, work.dtype, work.tokens)
        values = self._staging[work.offset : work.offset + shape.values_bytes]
        return StagedChunk(ChunkKey(work.key), shape, work.first, values, work.replace)

    def _confirmed(self) -> bool:
        self._say(Encoded())
        answer = read_message(self._source)
        return isinstance(answer, Confirm) and answer.put

    def _say(self, message: Encoded | Done) -> None:
        self._sink.write(framed(message))
        self._sink.flush()


def _map_read_only(path: str) -> memoryview:
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ))


def _end_with_parent() -> None:
    """Have the kernel kill this process when the sidecar dies: a busy one sees only later that its input ended."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Run as a child of the sidecar."""
    _end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group: the sidecar decides when to end
    os.nice(_LOWEST_PRIORITY)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    setup = read_message(sys.stdin.buffer)
    if not isinstance(setup, Setup):
        return
    try:
        StoreProcess(setup, sys.stdin.buffer, sys.stdout.buffer).run()
    except (SettingsError, BrokenPipeError) as error:
        logging.getLogger(__name__).warning("nothing more is stored: %s", error)
        sys.exit(2)


if __name__ == "__main__":
    main()
