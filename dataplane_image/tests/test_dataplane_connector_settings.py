"""`kv_connector_extra_config`, and the engines that the connector refuses."""

from types import SimpleNamespace
from typing import Any

import pytest

from shadowserve_dataplane.chunks import KvDtype, KvShape
from shadowserve_dataplane.connector.engine import EngineSetup
from shadowserve_dataplane.connector.plan import Geometry
from shadowserve_dataplane.connector.settings import ConnectorSettings
from shadowserve_dataplane.errors import SettingsError


def test_settings_have_defaults_and_take_milliseconds() -> None:
    assert ConnectorSettings.parse({}) == ConnectorSettings()
    parsed = ConnectorSettings.parse(
        {"socket": "/tmp/s", "model_identity": "00ff", "idle_wait_ms": 1.5, "store_hold_ms": 100, "chunk_tokens": 512}
    )
    assert parsed == ConnectorSettings("/tmp/s", b"\x00\xff", 512, 0.0015, 0.1)


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"sockett": "/tmp/s"}, "'sockett'"),
        ({"socket": "relative"}, "socket"),
        ({"socket": 5}, "socket"),
        ({"model_identity": "xyz"}, "model_identity"),
        ({"idle_wait_ms": -1}, "idle_wait_ms"),
        ({"idle_wait_ms": True}, "idle_wait_ms"),
        ({"chunk_tokens": 0}, "chunk_tokens"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(extra: dict[str, object], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        ConnectorSettings.parse(extra)


class FullAttentionSpec(SimpleNamespace):
    """As vLLM's class of that name, as far as the connector reads it."""


class SlidingWindowSpec(SimpleNamespace):
    """Another kind of KV cache."""


def engine(**changes: Any) -> tuple[SimpleNamespace, SimpleNamespace]:
    spec_class = changes.pop("spec", FullAttentionSpec)
    spec = spec_class(
        block_size=changes.pop("block_size", 128),
        num_kv_heads=3,
        num_heads=3,
        head_size=64,
        head_size_v=changes.pop("head_size_v", 64),
        dtype=changes.pop("dtype", "torch.bfloat16"),
    )
    group = SimpleNamespace(kv_cache_spec=spec, layer_names=[f"model.layers.{i}.self_attn.attn" for i in range(30)])
    caches = SimpleNamespace(kv_cache_groups=[group] * changes.pop("groups", 1))
    transfer = SimpleNamespace(
        kv_load_failure_policy=changes.pop("policy", "recompute"),
        engine_id="engine",
        is_kv_consumer=True,
        is_kv_producer=changes.pop("producer", True),
    )
    parallel = SimpleNamespace(
        tensor_parallel_size=2,
        pipeline_parallel_size=changes.pop("pipeline", 1),
        decode_context_parallel_size=changes.pop("decode_context", 1),
        data_parallel_size=changes.pop("data_parallel", 1),
    )
    cache = SimpleNamespace(cache_dtype=changes.pop("cache_dtype", "auto"))
    assert not changes
    return SimpleNamespace(kv_transfer_config=transfer, parallel_config=parallel, cache_config=cache), caches


def test_a_fit_engine_is_described() -> None:
    setup = EngineSetup.of(*engine(), ConnectorSettings())
    assert setup == EngineSetup("engine", KvShape(30, 3, 64, KvDtype.BFLOAT16), Geometry(256, 128), 2, True, True)
    hello = setup.hello("worker", 1)
    assert (hello.role, hello.rank, hello.world, hello.layers, hello.dtype) == ("worker", 1, 2, 30, "bfloat16")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"policy": "fail"}, "kv_load_failure_policy"),
        ({"groups": 2}, "--disable-hybrid-kv-cache-manager"),
        ({"spec": SlidingWindowSpec}, "SlidingWindowSpec"),
        ({"block_size": 96}, "--block-size"),
        ({"data_parallel": 2}, "--data-parallel-size 1"),
        ({"pipeline": 2}, "--pipeline-parallel-size 1"),
        ({"decode_context": 2}, "--decode-context-parallel-size 1"),
        ({"cache_dtype": "fp8_e4m3"}, "--kv-cache-dtype auto"),
        ({"dtype": "torch.uint8"}, "--kv-cache-dtype auto"),
        ({"head_size_v": 32}, "--attention-backend"),
    ],
)
def test_an_unfit_engine_is_refused_with_the_flag_to_change(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        EngineSetup.of(*engine(**changes), ConnectorSettings())
