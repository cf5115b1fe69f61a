"""LMCache's `lm://` server and connector: raw KV, or with its cachegen serde (SHADOWSERVE_BENCH_SERDE)."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine
from typing import Any

os.environ.update(LMCACHE_TRACK_USAGE="false", LMCACHE_LOG_LEVEL="ERROR", PYTHONHASHSEED="0")

import lmcache.v1.storage_backend.connector  # noqa: F401
import numpy as np
import torch
from agent import CHUNK_BYTES, answer, free_port, main, offer_server
from lmcache.utils import CacheEngineKey
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.memory_management import MemoryFormat
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.storage_backend.connector.lm_connector import LMCServerConnector
from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend
from lmcache.v1.storage_backend.naive_serde import CreateSerde
from lmcache_memory import memory_obj

SECONDS = 60
SERDE = os.environ.get("SHADOWSERVE_BENCH_SERDE", "naive")
MODEL = os.environ.get("SHADOWSERVE_LAB_MODEL", "model")


def serve(host: str, chunks: list[np.ndarray]) -> None:
    """Start the server."""
    port = free_port(host)
    command = [sys.executable, "-m", "lmcache.v1.server", host, str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        offer_server(server, host, port)


def fetch(host: str, chunks: list[np.ndarray], peer: dict[str, object]) -> None:
    """Put the chunks, then get (and decode) them, one after the other, as LMCache's backend does."""
    config = LMCacheEngineConfig.from_defaults(chunk_size=256, local_cpu=True, max_local_cpu_size=0.5)
    metadata = LMCacheMetadata(
        model_name=MODEL, world_size=1, local_world_size=1, worker_id=0, local_worker_id=0,
        kv_dtype=torch.bfloat16, kv_shape=(30, 2, 256, 3, 64),
    )  # fmt: skip
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(SECONDS)

    local = LocalCPUBackend(config, metadata, dst_device="cpu")
    connector = LMCServerConnector(str(peer["host"]), int(str(peer["port"])), loop, local)
    encoder, decoder = CreateSerde(SERDE, metadata, config) if SERDE != "naive" else (None, None)
    keys = [CacheEngineKey(MODEL, 1, 0, 1000 + number, torch.bfloat16) for number in range(len(chunks))]
    sizes = []
    for key, chunk in zip(keys, chunks, strict=True):
        # canonical is [layers][2][tokens][channels]; LMCache wants [2][layers][tokens][channels]
        kv = torch.from_numpy(chunk).view(torch.bfloat16).view(30, 2, 256, 192).transpose(0, 1).contiguous()
        if encoder is not None:
            entry = encoder.serialize(memory_obj(kv))
        else:
            entry = local.allocate(kv.shape, kv.dtype, MemoryFormat.KV_2LTD)
            entry.tensor.view(-1).copy_(kv.view(-1))
        sizes.append(len(entry.byte_array))
        run(connector.put(key, entry))
        while not run(connector.exists(key)):
            time.sleep(0.001)
    print(f"{SERDE}: {sum(sizes) / len(sizes):.0f} bytes a chunk of {CHUNK_BYTES}", file=sys.stderr)

    def get() -> None:
        for key in keys:
            entry = run(connector.get(key))
            if entry is None:
                raise RuntimeError("a chunk was lost")
            if decoder is not None:
                decoder.deserialize(entry)
            entry.ref_count_down()

    answer(get)


if __name__ == "__main__":
    main(serve, fetch)
