"""LMCache's cachegen serde on KV in a file: `lmcache_serde.py FILE OUTPUT`.

Both are bfloat16 `[chunks][layers][2][tokens][channels]`. Prints one JSON line: bytes of
all chunks encoded, and seconds of processor time to encode and to decode them.
"""

import json
import os
import sys
import time

os.environ.update(LMCACHE_TRACK_USAGE="false", LMCACHE_LOG_LEVEL="ERROR", PYTHONHASHSEED="0")

import numpy as np
import torch
from agent import CHUNK_BYTES
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.storage_backend.naive_serde import CreateSerde
from lmcache_memory import memory_obj

MODEL = os.environ["SHADOWSERVE_LAB_MODEL"]


def main(source: str, output: str) -> None:
    """Encode and decode every chunk."""
    config = LMCacheEngineConfig.from_defaults(chunk_size=256)
    metadata = LMCacheMetadata(
        model_name=MODEL, world_size=1, local_world_size=1, worker_id=0, local_worker_id=0,
        kv_dtype=torch.bfloat16, kv_shape=(30, 2, 256, 3, 64),
    )  # fmt: skip
    encoder, decoder = CreateSerde("cachegen", metadata, config)
    encoded, spent, results = 0, [0.0, 0.0], []
    for number, chunk in enumerate(np.fromfile(source, np.uint8).reshape(-1, CHUNK_BYTES)):
        kv = torch.from_numpy(chunk).view(torch.bfloat16).view(30, 2, 256, 192).transpose(0, 1).contiguous()
        if not number:
            decoder.deserialize(encoder.serialize(memory_obj(kv)))  # compiles
        start = time.process_time()
        packed = encoder.serialize(memory_obj(kv))
        middle = time.process_time()
        after = decoder.deserialize(packed).tensor.to(torch.bfloat16).view(kv.shape)
        spent[0] += middle - start
        spent[1] += time.process_time() - middle
        encoded += len(packed.byte_array)
        results.append(after.transpose(0, 1).contiguous().view(torch.uint8).numpy().tobytes())
    with open(output, "wb") as file:
        file.write(b"".join(results))
    print(json.dumps({"bytes": encoded, "encode": spent[0], "decode": spent[1]}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
