"""Every way to copy between chunks and an engine's cache gives the same bits as the plain one: scatter and gather.

Needs torch; the cases for a GPU run where there is one (`pytest --noconftest` is enough for this file).
"""

from dataclasses import dataclass

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is in the engine environment only")

from shadowserve_dataplane.chunks import KvDtype, KvShape  # noqa: E402
from shadowserve_dataplane.connector.landed_image import CodesImage, ValuesImage, bits_dtype  # noqa: E402
from shadowserve_dataplane.connector.layouts import EngineLayout, PagedKv  # noqa: E402
from shadowserve_dataplane.connector.paged_copy import BlockSpan, PagedCopy  # noqa: E402
from shadowserve_dataplane.connector.scatter import copies_for  # noqa: E402
from shadowserve_dataplane.connector.scatter_torch import TorchPagedCopy  # noqa: E402

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]

BLOCKS, BLOCK_TOKENS = 12, 32
DTYPES = {KvDtype.BFLOAT16: torch.bfloat16, KvDtype.FLOAT16: torch.float16, KvDtype.FLOAT32: torch.float32}
CASES = [("cpu", EngineLayout.K_TRANSPOSED), ("cpu", EngineLayout.STRIDED), ("cuda", EngineLayout.STRIDED)]
SPANS = [BlockSpan((7, 2)), BlockSpan((3,), 1), BlockSpan((4,), 0)]


@dataclass(frozen=True)
class Setting:
    """A cache on some device, and the same cache for the plain copies."""

    paged: PagedKv
    copies: PagedCopy
    plain_paged: PagedKv
    plain: TorchPagedCopy

    def assert_equal(self) -> None:
        for found, expected in zip(self.paged.layers, self.plain_paged.layers, strict=True):
            assert torch.equal(as_bits(found), as_bits(expected))


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def setting(request: pytest.FixtureRequest, dtype: KvDtype) -> Setting:
    device, layout = request.param
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU on this machine")
    shape = KvShape(layers=3, kv_heads=3, head_dim=16, dtype=dtype, tokens=2 * BLOCK_TOKENS)
    paged, plain_paged = (PagedKv(caches(shape, where), shape, BLOCK_TOKENS, layout) for where in (device, "cpu"))
    copies = copies_for(paged)
    copies.prepare()
    return Setting(paged, copies, plain_paged, TorchPagedCopy(plain_paged))


@pytest.fixture(scope="module", params=list(KvDtype))
def dtype(request: pytest.FixtureRequest) -> KvDtype:
    return request.param


def caches(shape: KvShape, device: str) -> tuple["torch.Tensor", ...]:
    generator = torch.Generator().manual_seed(3)
    size = (BLOCKS, shape.kv_heads, BLOCK_TOKENS, 2 * shape.head_dim)
    return tuple(torch.randn(size, generator=generator).to(DTYPES[shape.dtype]).to(device) for _ in range(shape.layers))


def as_bits(tensor: "torch.Tensor") -> "torch.Tensor":
    return tensor.cpu().contiguous().view(torch.int32 if tensor.element_size() == 4 else torch.int16)


def random_bits(shape: KvShape, seed: int) -> np.ndarray:
    bits = bits_dtype(shape.dtype)
    size = (shape.planes, shape.tokens, shape.channels)
    return np.random.default_rng(seed).integers(0, np.iinfo(bits).max, size, bits)


def codes_image(shape: KvShape, exact: list[int]) -> CodesImage:
    rng = np.random.default_rng(5)
    bits = bits_dtype(shape.dtype)
    steps = (rng.uniform(0.01, 1, shape.planes).astype(np.float32).view(np.uint32) & np.uint32(0xFFFFFF00)).view(
        np.float32
    )
    means = rng.standard_normal((shape.planes, shape.channels)).astype(np.float32).view(np.uint32) >> np.uint32(16)
    return CodesImage(
        codes=rng.integers(-127, 128, (shape.planes, shape.tokens, shape.channels), np.int8),
        steps=steps,
        means=means.astype(np.uint16),
        exact_tokens=np.array(exact, np.uint16),
        exact_rows=rng.integers(0, 1 << 14, (len(exact), shape.planes, shape.channels), bits),
    )


@pytest.mark.parametrize("span", SPANS, ids=str)
@pytest.mark.parametrize("exact", [[], [0, 1, 2, 3], [5, BLOCK_TOKENS, 2 * BLOCK_TOKENS - 1]], ids=str)
def test_codes_are_dequantized_into_their_blocks_and_no_others(
    setting: Setting, span: BlockSpan, exact: list[int]
) -> None:
    image = codes_image(setting.paged.shape, exact)
    setting.copies.scatter(image, span)
    setting.plain.scatter(image, span)
    setting.assert_equal()


@pytest.mark.parametrize("span", SPANS, ids=str)
def test_values_are_copied_bit_for_bit(setting: Setting, span: BlockSpan) -> None:
    shape = setting.paged.shape
    bits = bits_dtype(shape.dtype)
    values = np.random.default_rng(6).integers(
        0, np.iinfo(bits).max, (shape.planes, shape.tokens, shape.channels), bits
    )
    image = ValuesImage(values)
    setting.copies.scatter(image, span)
    setting.plain.scatter(image, span)
    setting.assert_equal()


def test_what_was_scattered_is_gathered(setting: Setting) -> None:
    shape = setting.paged.shape
    bits = bits_dtype(shape.dtype)
    values = np.random.default_rng(7).integers(
        0, np.iinfo(bits).max, (shape.planes, shape.tokens, shape.channels), bits
    )
    setting.copies.scatter(ValuesImage(values), BlockSpan((9, 1)))
    found = memoryview(bytearray(shape.values_bytes))
    setting.copies.gather(BlockSpan((9, 1)), found)
    assert np.array_equal(np.frombuffer(found, values.dtype).reshape(values.shape), values)


def test_gather_agrees_with_the_plain_one(setting: Setting) -> None:
    size = setting.paged.shape.values_bytes
    found, expected = memoryview(bytearray(size)), memoryview(bytearray(size))
    setting.copies.gather(BlockSpan((0, 11)), found)
    setting.plain.gather(BlockSpan((0, 11)), expected)
    assert found == expected
