"""Landing and staging buffers as the engine sees them: files of the sidecar, mapped."""

import mmap
import os
from dataclasses import dataclass

from shadowserve_dataplane.connector.messages import Buffer


@dataclass(frozen=True, slots=True)
class MappedBuffer:
    """A mapped file; slot `i` lies at `i * slot_bytes`. Unmapped when the last view of it is gone."""

    slots: tuple[int, ...]
    slot_bytes: int
    memory: memoryview

    @classmethod
    def open(cls, buffer: Buffer, needed_bytes: int) -> "MappedBuffer":
        """Map the file of `buffer`. Raises `OSError`, or `ValueError` when slots are too small or lie outside."""
        if buffer.slot_bytes < needed_bytes:
            raise ValueError(f"slots of {buffer.slot_bytes} bytes in {buffer.path}, a chunk needs {needed_bytes}")
        if buffer.slots and (min(buffer.slots) < 0 or (max(buffer.slots) + 1) * buffer.slot_bytes > buffer.bytes):
            raise ValueError(f"slots outside the {buffer.bytes} bytes of {buffer.path}")
        descriptor = os.open(buffer.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            if size < buffer.bytes:
                raise ValueError(f"{buffer.path} has {size} bytes, {buffer.bytes} were announced")
            # populated: else the first fetches pay for hundreds of page faults each
            mapping = mmap.mmap(descriptor, buffer.bytes, mmap.MAP_SHARED | mmap.MAP_POPULATE)
        finally:
            os.close(descriptor)
        return cls(tuple(buffer.slots), buffer.slot_bytes, memoryview(mapping))

    def slot(self, number: int) -> memoryview:
        """Return the bytes of one slot. Raises `IndexError` for a slot that does not exist."""
        start = number * self.slot_bytes
        if number < 0 or start + self.slot_bytes > len(self.memory):
            raise IndexError(f"slot {number} of {len(self.memory) // self.slot_bytes}")
        return self.memory[start : start + self.slot_bytes]
