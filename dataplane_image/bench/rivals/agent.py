"""What the programs of all rivals share. Runs in any rival's environment: standard library and numpy only.

`PROGRAM serve HOST FOLDER CHUNKS` offers the chunks and prints one JSON line that `fetch` needs.
`PROGRAM fetch HOST FOLDER CHUNKS LINE` connects, prints "ready", and for each line on stdin restores all chunks once
and prints what that took.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

_START_SECONDS = 60.0
CHUNK_BYTES = 30 * 2 * 256 * 192 * 2


def raw_chunks(folder: str, number: int) -> list[np.ndarray]:
    """Return the values of chunks, bytes."""
    data = np.concatenate([np.fromfile(file, np.uint8) for file in sorted(Path(folder).glob("*.kv"))])
    return [data[at : at + CHUNK_BYTES] for at in range(0, number * CHUNK_BYTES, CHUNK_BYTES)]


def offer(described: dict[str, Any]) -> None:
    """Print what `fetch` needs, and stay until stdin ends."""
    print(json.dumps(described), flush=True)
    sys.stdin.read()
    os._exit(0)  # engines have threads that do not end


def free_port(host: str) -> int:
    """Return a port of `host` that nobody uses now."""
    with socket.create_server((host, 0)) as listener:
        return int(listener.getsockname()[1])


def offer_server(server: "subprocess.Popen[bytes]", host: str, port: int) -> None:
    """Print where a server is as soon as it answers, and stay until stdin ends."""
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        with suppress(OSError):
            socket.create_connection((host, port), 1).close()
            break
        time.sleep(0.1)
    print(json.dumps({"host": host, "port": port}), flush=True)
    sys.stdin.read()
    server.kill()


def answer(fetch: Callable[[], object]) -> None:
    """Restore once to warm up, then once for each line on stdin."""
    fetch()
    print("ready", flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        fetch()
        took = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps(took), flush=True)
    os._exit(0)


def main(serve: Callable[..., None], fetch: Callable[..., None]) -> None:
    """Do what the command line says."""
    role, host, folder, number, *rest = sys.argv[1:]
    if role == "serve":
        serve(host, raw_chunks(folder, int(number)))
    else:
        fetch(host, raw_chunks(folder, int(number)), json.loads(rest[0]))
