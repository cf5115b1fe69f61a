"""Ours, and a stock client with a naive decoder, over one store; SHADOWSERVE_BENCH_WAY says which.

Runs in the engine environment: the store has Balanced chunks, and `values` are dequantized by torch.
"""

import os
import shutil
import subprocess

import numpy as np
import valkey
from agent import answer, free_port, main, offer_server
from clients import Naive
from ours_pipeline import Ours, landing_buffer, leased
from real_kv import encoded_chunks, kv_shape

from shadowserve_dataplane.chunks import store_key
from shadowserve_dataplane.codec.tiers import LandingMode, Tier
from shadowserve_dataplane.fetch.plan import ChunkRequest
from shadowserve_dataplane.place.shared_memory import SharedMemoryTarget
from shadowserve_dataplane.store.settings import StoreSettings
from shadowserve_dataplane.store.topology import Address

SECONDS = 30
WAY = os.environ.get("SHADOWSERVE_BENCH_WAY", "Codes")


def serve(host: str, chunks: list[np.ndarray]) -> None:
    """Start a store; `fetch` fills it."""
    binary = shutil.which("valkey-server") or shutil.which("redis-server")
    port = free_port(host)
    options = ["--bind", host, "--port", str(port), "--save", "", "--appendonly", "no", "--protected-mode", "no"]
    with subprocess.Popen([str(binary), *options], stdout=subprocess.DEVNULL) as server:
        offer_server(server, host, port)


def fetch(host: str, chunks: list[np.ndarray], peer: dict[str, object]) -> None:
    """Restore all chunks, again and again."""
    store, port, shape = str(peer["host"]), int(str(peer["port"])), kv_shape()
    encoded = encoded_chunks(Tier.BALANCED, len(chunks))
    client = valkey.Valkey(store, port, socket_timeout=SECONDS)
    for chunk in encoded:
        client.set(store_key(chunk.key), chunk.encoded)
    landing = landing_buffer(shape, len(encoded))
    refs = leased(landing, shape, len(encoded))
    pairs = zip(encoded, refs, strict=True)
    requests = [ChunkRequest(number, chunk.key, ref) for number, (chunk, ref) in enumerate(pairs)]
    if WAY == "naive":
        naive = Naive(port, shape, LandingMode.VALUES, landing, store)
        answer(lambda: naive.fetch(requests))
    settings = StoreSettings(endpoints=(Address(store, port),))
    ours = Ours(settings, 1, shape, LandingMode(WAY), SharedMemoryTarget(landing))
    answer(lambda: ours.fetch(requests))


if __name__ == "__main__":
    main(serve, fetch)
