"""Other ways to make KV smaller, to measure ours against: fp8, per-token integers, KIVI's int4, LMCache's cachegen.

Each takes and returns KV `[layers][2][tokens][channels]` bfloat16, whole chunks, and says what it cost.
"""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from shadowserve_dataplane.chunks import CHUNK_TOKENS

_RIVALS = Path(__file__).parent / "rivals"


@dataclass(frozen=True)
class Coded:
    """A reconstruction, bits an element, and seconds of processor time to encode and to decode all of it."""

    kv: torch.Tensor
    bits: float
    encode: float
    decode: float


Codec = Callable[[torch.Tensor], Coded]


def fp8(kv: torch.Tensor) -> Coded:
    """Code as e4m3 without scales, as engines store it."""
    start = time.process_time()
    codes = kv.to(torch.float8_e4m3fn)
    middle = time.process_time()
    after = codes.to(kv.dtype)
    return Coded(after, 8.0, middle - start, time.process_time() - middle)


def per_token(bits: int) -> Codec:
    """Return a symmetric quantiser with one fp16 scale a token and plane; codes packed, not entropy-coded."""
    top = 2 ** (bits - 1) - 1

    def code(kv: torch.Tensor) -> Coded:
        start = time.process_time()
        values = kv.float()
        scale = values.abs().amax(-1, keepdim=True).clamp_min(1e-12) / top
        codes = (values / scale).round().to(torch.int8)
        middle = time.process_time()
        after = (codes.float() * scale).to(kv.dtype)
        return Coded(after, bits + 16 / kv.shape[-1], middle - start, time.process_time() - middle)

    return code


def kivi_int4(kv: torch.Tensor) -> Coded:
    """Code K by channel over a chunk and V by token and head of 64, min to max, as KIVI does; packed."""
    start = time.process_time()
    chunks = kv.float().unflatten(2, (-1, CHUNK_TOKENS))
    keys, values = chunks[:, 0], chunks[:, 1].unflatten(-1, (-1, 64))
    coded = [_min_max(keys, -2, 15), _min_max(values, -1, 15)]
    middle = time.process_time()
    back = [codes.float() * scale + low for codes, scale, low in coded]
    after = torch.stack([back[0], back[1].flatten(-2)], 1).flatten(2, 3).to(kv.dtype)
    bits = 4 + 32 * (1 / CHUNK_TOKENS + 1 / 64) / 2
    return Coded(after, bits, middle - start, time.process_time() - middle)


def _min_max(values: torch.Tensor, axis: int, top: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    low, high = values.amin(axis, keepdim=True), values.amax(axis, keepdim=True)
    scale = ((high - low) / top).clamp_min(1e-12)
    return ((values - low) / scale).round().to(torch.uint8), scale, low


def cachegen(kv: torch.Tensor) -> Coded:
    """Code with LMCache's serde, in its own environment. Raises `LookupError` when that is not set up."""
    environment = os.environ.get("SHADOWSERVE_LAB_LMCACHE")
    if not environment:
        raise LookupError("LMCache is not set up; start through make bench-codec")
    chunks = kv.unflatten(2, (-1, CHUNK_TOKENS)).permute(2, 0, 1, 3, 4).contiguous()
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / "kv", Path(folder) / "after"
        source.write_bytes(chunks.view(torch.uint8).numpy().tobytes())
        command = [f"{environment}/bin/python", str(_RIVALS / "lmcache_serde.py"), str(source), str(output)]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
        took = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
        after = torch.frombuffer(bytearray(output.read_bytes()), dtype=torch.bfloat16).view_as(chunks)
    bits = 8 * took["bytes"] / kv.numel()
    return Coded(after.permute(1, 2, 0, 3, 4).flatten(2, 3), bits, took["encode"], took["decode"])


OTHERS: dict[str, Codec] = {
    "fp8 e4m3": fp8,
    "per-token int8": per_token(8),
    "per-token int4": per_token(4),
    "KIVI-style int4": kivi_int4,
    "CacheGen (LMCache)": cachegen,
}
