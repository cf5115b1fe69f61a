"""From scrapes of engines and sidecars to windows that the capacity model reads."""

from typing import Any

from shadowserve_capacity.model.parsing import read_observations
from shadowserve_lab.engine_client import Metrics
from shadowserve_lab.windows import Gauges, Scrapes, window_of


def engine(requests: int, slow: int, hit: int) -> Metrics:
    """Return what an engine says after so many requests of 300 tokens; `slow` had a late first token."""
    label = 'model_name="m"'
    lines = [
        f'vllm:time_to_first_token_seconds_bucket{{{label},le="0.5"}} {requests - slow}',
        f'vllm:time_to_first_token_seconds_bucket{{{label},le="1.0"}} {requests}',
        f'vllm:time_to_first_token_seconds_bucket{{{label},le="+Inf"}} {requests}',
        f'vllm:request_time_per_output_token_seconds_bucket{{{label},le="0.05"}} {requests}',
        f'vllm:request_time_per_output_token_seconds_bucket{{{label},le="+Inf"}} {requests}',
        f'vllm:request_prefill_kv_computed_tokens_bucket{{{label},le="50.0"}} {hit}',
        f'vllm:request_prefill_kv_computed_tokens_bucket{{{label},le="500.0"}} {requests}',
        f"vllm:prompt_tokens_total{{{label}}} {300 * requests}",
        f"vllm:generation_tokens_total{{{label}}} {10 * requests}",
        f"vllm:prefix_cache_hits_total{{{label}}} 0",
        f"vllm:external_prefix_cache_hits_total{{{label}}} {256 * hit}",
    ]
    return Metrics("\n".join(lines))


def sidecar(fetches: int) -> Metrics:
    lines = [
        f"shadowserve_fetch_seconds_count {fetches}",
        f"shadowserve_fetch_seconds_sum {0.02 * fetches}",
        f'shadowserve_fetched_bytes_total{{kind="encoded"}} {1000 * fetches}',
        f'shadowserve_fetched_bytes_total{{kind="values"}} {9000 * fetches}',
    ]
    return Metrics("\n".join(lines))


def between(before: Scrapes, after: Scrapes) -> dict[str, Any]:
    return window_of(before, after, 10.0, Gauges(lambda: ()))


def test_a_window_is_what_both_replicas_gained() -> None:
    before = Scrapes((engine(5, 5, 0), engine(7, 0, 0)), (sidecar(3), sidecar(0)))
    after = Scrapes((engine(15, 6, 4), engine(9, 1, 1)), (sidecar(7), sidecar(1)))
    window = between(before, after)
    assert window["ttft"] == {"bounds": [0.5, 1.0], "counts": [10, 2, 0]}
    assert window["tpot"] == {"bounds": [0.05], "counts": [12, 0]}
    assert (window["arrivals"], window["prompt_tokens"], window["output_tokens"]) == (12, 3600, 120)
    assert (window["hit_tokens"], window["hit_requests"]) == (1280, 5)
    assert window["fetches"] == {"count": 5, "seconds": 0.1, "bytes": 5000}
    read_observations({"hardware": "cpu", "windows": [window]})


def test_a_window_without_hits_has_no_fetches() -> None:
    window = between(Scrapes((engine(0, 0, 0),), (sidecar(0),)), Scrapes((engine(4, 1, 0),), (sidecar(0),)))
    assert "fetches" not in window
    assert window["hit_requests"] == 0
    read_observations({"windows": [window]})
