"""Values and round trips for the codec's tests, in plain numpy."""

import numpy as np

from shadowserve_dataplane.chunks import ChunkKey, KvDtype, KvShape
from shadowserve_dataplane.codec.decode import FrameDecoder
from shadowserve_dataplane.codec.encode import Encoder
from shadowserve_dataplane.codec.format import ChunkHeader, Expected, Limits, parse_header
from shadowserve_dataplane.codec.landed import LandedLayout
from shadowserve_dataplane.codec.quantize import Bits, bits_dtype, dequantized, narrow
from shadowserve_dataplane.codec.tiers import LandingMode, Tier
from shadowserve_dataplane.connector.landed_image import CodesImage, ValuesImage, parse_image

KEY = ChunkKey(bytes(range(32)))


def sample_shape(dtype: KvDtype = KvDtype.BFLOAT16, tokens: int = 32) -> KvShape:
    """Return a small shape: 2 layers, 2 heads of 8."""
    return KvShape(layers=2, kv_heads=2, head_dim=8, dtype=dtype, tokens=tokens)


def sample_values(shape: KvShape, seed: int = 0) -> Bits:
    """Return values like a KV cache has: normal, with a mean a channel and a scale a plane; bits `[planes][...]`."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((shape.planes, shape.tokens, shape.channels))
    scales = rng.uniform(0.1, 3, (shape.planes, 1, 1))
    means = 4 * rng.standard_normal((shape.planes, 1, shape.channels))
    return narrow((noise * scales + means).astype(np.float32), shape.dtype)


def as_floats(bits: Bits, dtype: KvDtype) -> np.ndarray:
    """Return bits of a dtype as float64."""
    if dtype is KvDtype.FLOAT16:
        return bits.view(np.float16).astype(np.float64)
    if dtype is KvDtype.FLOAT32:
        return bits.view(np.float32).astype(np.float64)
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)


def encode(values: Bits, shape: KvShape, tier: Tier, begins_context: bool = False) -> bytes:
    """Return the encoded chunk."""
    return bytes(Encoder(shape, tier).encode(memoryview(values).cast("B"), KEY, begins_context))


def parse(chunk: bytes, shape: KvShape) -> ChunkHeader:
    """Return the chunk's header."""
    return parse_header(memoryview(chunk), Expected(KEY, shape), Limits(), len(chunk))


def land(chunk: bytes, shape: KvShape, mode: LandingMode) -> memoryview:
    """Return the landed image of a chunk, decoded frame by frame as the pipeline does it."""
    header = parse(chunk, shape)
    layout = LandedLayout.of(header, mode)
    image = memoryview(bytearray(LandedLayout.max_bytes(shape)))
    image[: len(layout.header())] = layout.header()
    decode = FrameDecoder(shape).begin(header, layout)
    for number, frame in enumerate(header.frames):
        place = layout.destination(frame)
        destination = None if place is None else image[place[0] : sum(place)]
        decode.decode(number, memoryview(chunk)[frame.offset : frame.offset + frame.encoded_bytes], destination)
    return image


def restored(chunk: bytes, shape: KvShape, mode: LandingMode) -> Bits:
    """Return the bits an engine would get, by the engine's own reader and the reference dequantisation."""
    image = parse_image(land(chunk, shape, mode), shape)
    if isinstance(image, ValuesImage):
        return np.array(image.values, bits_dtype(shape.dtype))
    assert isinstance(image, CodesImage)
    planes = [dequantized(image.codes[p], image.steps[p], image.means[p]) for p in range(shape.planes)]
    bits = narrow(np.stack(planes), shape.dtype)
    bits[:, image.exact_tokens] = image.exact_rows.transpose(1, 0, 2)
    return bits
