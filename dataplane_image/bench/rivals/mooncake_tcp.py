"""Mooncake's transfer engine over TCP: raw KV read from another process's memory."""

import numpy as np
from agent import CHUNK_BYTES, answer, main, offer
from mooncake.engine import TransferEngine


def _engine(host: str, size: int) -> tuple[TransferEngine, np.ndarray, int]:
    engine, memory = TransferEngine(), np.zeros(size, np.uint8)
    if engine.initialize(f"{host}:0", "P2PHANDSHAKE", "tcp", "") or engine.register_memory(memory.ctypes.data, size):
        raise RuntimeError("the transfer engine cannot be set up")
    return engine, memory, memory.ctypes.data


def serve(host: str, chunks: list[np.ndarray]) -> None:
    """Offer the chunks."""
    engine, memory, address = _engine(host, len(chunks) * CHUNK_BYTES)
    memory[:] = np.concatenate(chunks)
    offer({"session": f"{host}:{engine.get_rpc_port()}", "address": address})


def fetch(host: str, chunks: list[np.ndarray], peer: dict[str, object]) -> None:
    """Read them, chunk by chunk."""
    engine, memory, address = _engine(host, len(chunks) * CHUNK_BYTES)
    far = int(str(peer["address"]))

    def read() -> None:
        for at in range(0, len(chunks) * CHUNK_BYTES, CHUNK_BYTES):
            if engine.transfer_sync_read(peer["session"], address + at, far + at, CHUNK_BYTES):
                raise RuntimeError("a transfer failed")

    read()
    if not np.array_equal(memory, np.concatenate(chunks)):
        raise RuntimeError("what came is not what was offered")
    answer(read)


if __name__ == "__main__":
    main(serve, fetch)
