import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is in the engine environment only")

from shadowserve_dataplane.chunks import KvDtype, KvShape  # noqa: E402
from shadowserve_dataplane.codec.dequantize import NumpyDequantizer, dequantizer  # noqa: E402
from shadowserve_dataplane.codec.dequantize_torch import TorchDequantizer  # noqa: E402
from shadowserve_dataplane.codec.quantize import as_bfloat16_bits, bits_dtype, step_up  # noqa: E402

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("dtype", list(KvDtype))
@pytest.mark.parametrize(("first", "planes"), [(0, 1), (1, 3)])
def test_torch_gives_the_bits_that_numpy_gives(dtype, first, planes):
    rng = np.random.default_rng(planes)
    shape = KvShape(layers=2, kv_heads=2, head_dim=8, dtype=dtype, tokens=64)
    codes = rng.integers(-127, 128, (planes, 64, 16)).astype(np.int8)
    steps = step_up(rng.uniform(1e-3, 8, shape.planes))
    means = as_bfloat16_bits(rng.normal(0, 40, (shape.planes, 16)).astype(np.float32))
    expected, found = (np.zeros(codes.shape, bits_dtype(dtype)) for _ in range(2))
    for kind, out in ((NumpyDequantizer(shape), expected), (TorchDequantizer(shape, 4), found)):
        kind.begin(steps, means)
        kind.planes(codes, first, out)
    assert np.array_equal(found, expected)


def test_torch_is_used_where_it_is():
    assert isinstance(dequantizer(KvShape(2, 2, 8), 4), TorchDequantizer)
