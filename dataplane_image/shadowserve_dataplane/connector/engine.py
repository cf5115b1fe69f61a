"""What the connector reads of vLLM's own objects, in one place: set-up, requests, steps, caches.

vLLM changes these objects between releases; everything behind this module sees frozen records of our own. Nothing is
imported from vLLM here, so that the checks can be tested without it.
"""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shadowserve_dataplane.chunks import KvDtype, KvShape
from shadowserve_dataplane.connector.identity import ModelSource
from shadowserve_dataplane.connector.messages import PROTOCOL, Hello
from shadowserve_dataplane.connector.plan import Geometry, RequestTraits
from shadowserve_dataplane.connector.scheduler import NewRequest, ScheduledRequest, Step
from shadowserve_dataplane.connector.settings import ConnectorSettings


@dataclass(frozen=True, slots=True)
class EngineSetup:
    """An engine that the cache can work with."""

    engine: str
    shape: KvShape
    geometry: Geometry
    world: int
    loads: bool
    stores: bool

    @classmethod
    def of(cls, config: Any, kv_cache_config: Any, settings: ConnectorSettings) -> "EngineSetup":
        """Return the set-up of a `VllmConfig`; raises `ValueError` naming the flag that makes an unfit one fit."""
        transfer, parallel = config.kv_transfer_config, config.parallel_config
        _check_flags(transfer, parallel, config.cache_config)
        spec = _only_spec(kv_cache_config)
        chunk, block = settings.chunk_tokens, spec.block_size
        if chunk % block:
            raise ValueError(f"blocks of {block} tokens do not divide a chunk of {chunk}; set --block-size")
        layers = len(kv_cache_config.kv_cache_groups[0].layer_names)
        shape = KvShape(layers, spec.num_kv_heads, spec.head_size, kv_dtype(spec.dtype), chunk)
        return cls(
            engine=transfer.engine_id,
            shape=shape,
            geometry=Geometry(chunk, block),
            world=parallel.tensor_parallel_size,
            loads=transfer.is_kv_consumer,
            stores=transfer.is_kv_producer,
        )

    def hello(self, role: str, rank: int) -> Hello:
        """Return how a half of this engine's connector introduces itself."""
        shape = self.shape
        return Hello(
            protocol=PROTOCOL,
            role="scheduler" if role == "scheduler" else "worker",
            engine=self.engine,
            layers=shape.layers,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            dtype=shape.dtype.value,
            chunk_tokens=shape.tokens,
            rank=rank,
            world=self.world,
        )


def _check_flags(transfer: Any, parallel: Any, cache: Any) -> None:
    if transfer.kv_load_failure_policy != "recompute":
        raise ValueError(
            f'kv_load_failure_policy is "{transfer.kv_load_failure_policy}": a missing chunk would fail its request; '
            'set "kv_load_failure_policy": "recompute" in --kv-transfer-config'
        )
    for flag in ("pipeline_parallel_size", "decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, flag, 1) != 1:
            raise ValueError(f"KV chunks hold all layers and tokens of a rank; set --{flag.replace('_', '-')} 1")
    if getattr(parallel, "data_parallel_size", 1) > 1 or getattr(parallel, "data_parallel_index", 0) > 0:
        raise ValueError(
            "data-parallel ranks of one server would drive each other out of the sidecar; set --data-parallel-size 1 "
            "and run one server, with its own sidecar, for every rank"
        )
    if str(cache.cache_dtype).startswith("fp8"):
        raise ValueError("an fp8 KV cache depends on scales that chunks do not hold; set --kv-cache-dtype auto")


def _only_spec(kv_cache_config: Any) -> Any:
    groups = kv_cache_config.kv_cache_groups
    if len(groups) != 1:
        raise ValueError(
            f"{len(groups)} KV cache groups: blocks of one token lie in several tables; only models with one group "
            "can be cached, set --disable-hybrid-kv-cache-manager if this model has full and sliding-window attention"
        )
    spec = groups[0].kv_cache_spec
    # By name, exactly: subclasses (MLA, sinks, ...) keep something else in their pages.
    if type(spec).__name__ != "FullAttentionSpec":
        raise ValueError(
            f"KV cache of kind {type(spec).__name__}: only full attention keeps every token's K and V; "
            "--disable-hybrid-kv-cache-manager helps where the layers differ, else this model cannot be cached"
        )
    if spec.head_size_v != spec.head_size or spec.num_heads != spec.num_kv_heads:
        raise ValueError("unknown KV cache layout: K and V differ in size; choose another --attention-backend")
    return spec


def kv_dtype(dtype: object) -> KvDtype:
    """Return the chunk's name of a torch dtype. Raises `ValueError` when chunks cannot hold it."""
    try:
        return KvDtype(str(dtype).removeprefix("torch."))
    except ValueError:
        known = ", ".join(KvDtype)
        raise ValueError(f"chunks cannot hold a KV cache of {dtype} ({known}); set --kv-cache-dtype auto") from None


def model_source(config: Any, given: bytes | None) -> ModelSource:
    """Return where the engine's weights and tokenizer are, and the options that change its KV values."""
    model = config.model_config
    speculative = getattr(config.speculative_config, "model", None)
    extras = (f"quantization={model.quantization}", f"overrides={model.hf_overrides}", f"draft={speculative}")
    names = list(dict.fromkeys(name for name in (model.model, model.tokenizer) if name))
    return ModelSource(lambda: [_folder(name, model.revision) for name in names], extras, given)


def _folder(name: str, revision: str | None) -> Path:
    if Path(name).exists():
        return Path(name)
    hub: Any = importlib.import_module("huggingface_hub")  # whose cache vLLM itself has just loaded from
    return Path(hub.snapshot_download(name, revision=revision, local_files_only=True))


def new_request(request: Any, setup: EngineSetup) -> NewRequest:
    """Return what is to be known of a vLLM `Request`; the record keeps it, for its tokens grow."""
    embeds = request.prompt_embeds is not None or request.prompt_token_ids is None
    traits = RequestTraits(
        prompt_tokens=request.num_prompt_tokens,
        only_token_ids=not (embeds or request.mm_features),
        growing=request.resumable,
        may_read=setup.loads and not request.skip_reading_prefix_cache,
        may_store=setup.stores,
    )
    adapter = request.lora_request.lora_path if request.lora_request is not None else None
    return NewRequest(request, traits, adapter, request.cache_salt)


def step_of(output: Any) -> Step:
    """Return what the workers will do in this step, of a `SchedulerOutput`."""
    return Step(
        scheduled=_scheduled(output),
        preempted=frozenset(output.preempted_req_ids or ()),
        idle=not output.total_num_scheduled_tokens,
    )


def _scheduled(output: Any) -> Iterator[ScheduledRequest]:
    cached = output.scheduled_cached_reqs
    before = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    before.update((new.req_id, new.num_computed_tokens) for new in output.scheduled_new_reqs)
    drafts = output.scheduled_spec_decode_tokens
    for request, tokens in output.num_scheduled_tokens.items():
        computed = before[request] + tokens - len(drafts.get(request, ()))
        yield ScheduledRequest(request, computed, _Blocks(output.kv_connector_block_state, request))


@dataclass(frozen=True, slots=True)
class _Blocks:
    """The blocks of a scheduled request, read when they are needed."""

    state: Any
    request: str

    def __call__(self) -> list[int]:
        (blocks,) = self.state.get_block_ids(self.request)
        return list(blocks)
