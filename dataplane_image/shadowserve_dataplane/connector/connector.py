"""`ShadowServeConnector`: what vLLM 0.32 loads. A facade; the two halves know nothing of vLLM's interface.

    vllm serve MODEL --kv-transfer-config '{
      "kv_connector": "ShadowServeConnector",
      "kv_connector_module_path": "shadowserve_dataplane.connector.connector",
      "kv_role": "kv_both",
      "kv_load_failure_policy": "recompute",
      "kv_connector_extra_config": {"socket": "/run/shadowserve/sidecar.sock"}}'

`kv_role`: `kv_producer` only stores, `kv_consumer` only loads. `kv_connector_extra_config`: see `settings`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
)
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank

from shadowserve_dataplane.connector.engine import EngineSetup, model_source, new_request, step_of
from shadowserve_dataplane.connector.identity import CacheIdentity
from shadowserve_dataplane.connector.layouts import paged_kv
from shadowserve_dataplane.connector.plan import StepPlan, StepReport
from shadowserve_dataplane.connector.scatter import copies_for
from shadowserve_dataplane.connector.scheduler import SchedulerHalf
from shadowserve_dataplane.connector.settings import ConnectorSettings
from shadowserve_dataplane.connector.stats import ConnectorMetrics, ConnectorStats
from shadowserve_dataplane.connector.worker import WorkerHalf


@dataclass
class StepMetadata(KVConnectorMetadata):  # type: ignore[misc]
    """Scheduler half to workers, once a step."""

    plan: StepPlan


@dataclass
class WorkerMetadata(KVConnectorWorkerMetadata):  # type: ignore[misc]
    """Workers to scheduler half, when there is something to say."""

    report: StepReport

    def aggregate(self, other: "WorkerMetadata") -> "WorkerMetadata":
        """Return the reports of both as one."""
        return WorkerMetadata(self.report.merged(other.report))


class ShadowServeConnector(KVConnectorBase_V1):  # type: ignore[misc]
    """One object per role and process; vLLM calls the scheduler's methods on one kind, the worker's on the other."""

    requires_kv_delivery = False

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        settings = ConnectorSettings.parse(self._kv_transfer_config.kv_connector_extra_config)
        self._setup = EngineSetup.of(vllm_config, kv_cache_config, settings)
        if role == KVConnectorRole.SCHEDULER:
            source = model_source(vllm_config, settings.model_identity)
            identity = CacheIdentity(source, self._setup.shape, self._setup.world)
            hello = self._setup.hello("scheduler", 0)
            self._scheduler = SchedulerHalf(settings, hello, self._setup.geometry, identity)
            self._scheduler.start()
        else:
            hello = self._setup.hello("worker", get_tensor_model_parallel_rank())
            self._worker = WorkerHalf(settings, hello, self._setup.shape)

    def shutdown(self) -> None:
        """Stop the threads of this half."""
        (self._scheduler if self.role == KVConnectorRole.SCHEDULER else self._worker).close()

    # Scheduler.

    def on_new_request(self, request: Any) -> None:
        """Start the look-up."""
        self._scheduler.arrived(new_request(request, self._setup))

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Return the tokens that can be loaded beyond the local hit, always asynchronously; None: ask again."""
        tokens = self._scheduler.matched_tokens(request.request_id, num_computed_tokens)
        return tokens, bool(tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Plan the load into the request's blocks."""
        if num_external_tokens:
            self._scheduler.allocated(request.request_id, num_external_tokens, blocks.get_block_ids()[0])

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        """Return the workers' orders."""
        return StepMetadata(self._scheduler.plan_step(step_of(scheduler_output)))

    def update_connector_output(self, connector_output: Any) -> None:
        """Note what the workers did."""
        if connector_output.kv_connector_worker_meta is not None:
            self._scheduler.reported(connector_output.kv_connector_worker_meta.report)
        self._scheduler.received_all(connector_output.finished_recving or ())

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Return whether stores still read the blocks."""
        return self._scheduler.finished(request.request_id), None

    # Worker.

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Find the layout out and start."""
        attention = self._vllm_config.compilation_config.static_forward_context
        paged = paged_kv(kv_caches, attention, self._setup.shape, self._setup.geometry)
        self._worker.register(copies_for(paged))

    def handle_preemptions(self, kv_connector_metadata: StepMetadata) -> None:
        """Begin the step: before anything is overwritten, and before the forward, so that fetches overlap it."""
        self._worker.begin_step(kv_connector_metadata.plan)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Loads began with the step."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Every load is asynchronous."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Chunks are stored whole, not by layer."""

    def wait_for_save(self) -> None:
        """The forward was submitted: chunks that it fills may be read after it."""
        self._worker.stores_ready(self._get_connector_metadata().plan)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Return requests whose blocks are read, and requests whose load has ended."""
        return self._worker.end_step(self._get_connector_metadata().plan)

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Return the blocks of chunks that did not come."""
        return self._worker.take_failed_blocks()

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        """Return what the scheduler half must know."""
        report = self._worker.take_report()
        return None if report.empty else WorkerMetadata(report)

    def get_kv_connector_stats(self) -> ConnectorStats | None:
        """Return the events since the last step, if any."""
        counts = self._worker.take_counts() if self.role == KVConnectorRole.WORKER else {}
        return ConnectorStats(counts) if counts else None

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> ConnectorStats:
        """Return stats around `data`."""
        return ConnectorStats(data or {})

    @classmethod
    def build_prom_metrics(cls, *arguments: Any) -> ConnectorMetrics:
        """Return the Prometheus form of the stats."""
        return ConnectorMetrics(*arguments)
