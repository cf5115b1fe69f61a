"""The copies of one engine's cache, with every failure turned into an outcome: the engine goes on whatever happens."""

import logging

from shadowserve_dataplane.chunks import KvShape
from shadowserve_dataplane.connector.buffers import MappedBuffer
from shadowserve_dataplane.connector.landed_image import parse_image
from shadowserve_dataplane.connector.once import SayOnce
from shadowserve_dataplane.connector.paged_copy import BlockSpan, PagedCopy
from shadowserve_dataplane.errors import ChunkDamaged, ChunkOutcome, ChunkRefused

_log = logging.getLogger(f"vllm.{__name__}")  # a child of the logger that vLLM has set up


class ChunkCopies:
    """Copies between buffers and cache; used on the copier's thread. Each kind of failure is told once."""

    def __init__(self, copies: PagedCopy, shape: KvShape) -> None:
        self._copies, self._shape = copies, shape
        self._say_once = SayOnce(_log)

    def prepare(self) -> bool:
        """Get ready; returns whether anything can be copied at all."""
        try:
            self._copies.prepare()
        except Exception:  # of a compiler or a device
            _log.exception("KV chunks cannot be copied here: the engine computes every prompt itself")
            return False
        return True

    def adopt(self, landing: MappedBuffer) -> None:
        """Get ready to read a new landing buffer; without, its slots are read all the same, only slower."""
        try:
            self._copies.adopt(landing.memory)
        except Exception:  # of a device or its driver
            _log.exception("the landing buffer could not be prepared for the device")

    def copy_in(self, landing: MappedBuffer, slot: int, span: BlockSpan) -> ChunkOutcome:
        """Scatter what landed in `slot` into the engine's blocks."""
        try:
            self._copies.scatter(parse_image(landing.slot(slot).toreadonly(), self._shape), span)
        except ChunkRefused as error:
            self._say_once("refused", "a landed KV chunk was refused, the engine computes it: %s", error)
            return ChunkOutcome.REFUSED
        except (ChunkDamaged, IndexError) as error:
            self._say_once("damaged", "a landed KV chunk is damaged, the engine computes it: %s", error)
            return ChunkOutcome.DAMAGED
        except Exception as error:  # of a device or its driver
            self._say_once("scatter", "a KV chunk could not be scattered, the engine computes it: %r", error)
            return ChunkOutcome.PLACE_ERROR
        return ChunkOutcome.LANDED

    def copy_out(self, staging: MappedBuffer, slot: int, span: BlockSpan) -> bool:
        """Gather the engine's blocks into `slot`; returns whether that worked."""
        try:
            self._copies.gather(span, staging.slot(slot))
        except Exception as error:  # of a device or its driver
            self._say_once("gather", "a KV chunk could not be read, it is not stored: %r", error)
            return False
        return True
