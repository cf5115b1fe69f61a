"""NIXL with UCX over TCP: raw KV read from another process's memory."""

import base64
import os

os.environ["UCX_TLS"] = "tcp,self"

import numpy as np
import torch
from agent import CHUNK_BYTES, answer, main, offer
from nixl_cu12._api import nixl_agent, nixl_agent_config


def _agent(name: str, memory: torch.Tensor) -> nixl_agent:
    agent = nixl_agent(name, nixl_agent_config(backends=["UCX"]))
    agent.register_memory([(memory.data_ptr(), memory.numel(), 0, "")], "DRAM")
    return agent


def serve(host: str, chunks: list[np.ndarray]) -> None:
    """Offer the chunks; NIXL finds the address itself."""
    memory = torch.from_numpy(np.concatenate(chunks))
    agent = _agent("target", memory)
    metadata = base64.b64encode(agent.get_agent_metadata()).decode()
    offer({"metadata": metadata, "address": memory.data_ptr()})


def fetch(host: str, chunks: list[np.ndarray], peer: dict[str, object]) -> None:
    """Read them, chunk by chunk."""
    memory = torch.zeros(len(chunks) * CHUNK_BYTES, dtype=torch.uint8)
    agent = _agent("initiator", memory)
    remote = agent.add_remote_agent(base64.b64decode(str(peer["metadata"])))
    far = int(str(peer["address"]))

    def read() -> None:
        for at in range(0, memory.numel(), CHUNK_BYTES):
            here = agent.get_xfer_descs([(memory.data_ptr() + at, CHUNK_BYTES, 0)], "DRAM")
            there = agent.get_xfer_descs([(far + at, CHUNK_BYTES, 0)], "DRAM")
            handle = agent.initialize_xfer("READ", here, there, remote, b"done")
            state = agent.transfer(handle)
            while state not in ("DONE", "ERR"):
                state = agent.check_xfer_state(handle)
            agent.release_xfer_handle(handle)
            if state != "DONE":
                raise RuntimeError("a transfer failed")

    read()
    if not np.array_equal(memory.numpy(), np.concatenate(chunks)):
        raise RuntimeError("what came is not what was offered")
    answer(read)


if __name__ == "__main__":
    main(serve, fetch)
