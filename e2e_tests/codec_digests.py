"""Digests of what the codec makes of given values and of the fixtures: to compare processors.

`codec_digests.py make FOLDER SEED` writes random values, once for all: chance is not the same on every processor.
`codec_digests.py digest FOLDER FIXTURES_FOLDER` prints JSON: what was made of them -> SHA-256. Both run inside an
image, with the data plane's tests on PYTHONPATH.
"""

import hashlib
import json
import sys
from itertools import product
from pathlib import Path

import numpy as np
from codec_samples import encode, land, sample_shape, sample_values

from shadowserve_dataplane.chunks import KvDtype, KvShape
from shadowserve_dataplane.codec.tiers import LandingMode, Tier


def shape_of(dtype: KvDtype) -> KvShape:
    return KvShape(layers=3, kv_heads=3, head_dim=64, dtype=dtype)


def write_values(folder: Path, seed: int) -> None:
    """Write one array of random values a dtype."""
    for dtype in KvDtype:
        np.save(folder / f"{dtype.value}.npy", sample_values(shape_of(dtype), seed))


def digests(values: Path, fixtures: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for dtype, tier, begins in product(KvDtype, Tier, (False, True)):
        case, shape = f"{tier.label} {dtype.value} {'begins' if begins else 'goes on'}", shape_of(dtype)
        chunk = encode(np.load(values / f"{dtype.value}.npy"), shape, tier, begins)
        found[f"{case}, encoded"] = _digest(chunk)
        for mode in LandingMode:
            found[f"{case}, {mode.name.lower()} landed"] = _digest(land(chunk, shape, mode))
    for path in sorted(fixtures.glob("chunk-*.bin")):
        dtype = KvDtype(path.stem.rsplit("-", 1)[1])
        tokens = 64 if any(kind in path.stem for kind in ("by-byte", "inside", "packed")) else 32
        for mode in LandingMode:
            landed = land(path.read_bytes(), sample_shape(dtype, tokens), mode)
            found[f"{path.name}, {mode.name.lower()} landed"] = _digest(landed)
    return found


def _digest(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    action, folder, more = sys.argv[1:]
    if action == "make":
        write_values(Path(folder), int(more))
    else:
        print(json.dumps(digests(Path(folder), Path(more))))
