"""The part of a PrefixCache that says where chunks are restored, and as what they land."""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from shadowserve_crds.base import Rule, Section, rule
from shadowserve_crds.names import DEFAULT_HOST_LABEL
from shadowserve_crds.quantities import Quantity
from shadowserve_crds.sections import ComputeResources


class PlaceName(StrEnum):
    """Where a data plane can run."""

    DPU = "DPU"
    HOST = "Host"


class Landing(StrEnum):
    """As what chunks land in the engine's pod."""

    CODES = "Codes"
    VALUES = "Values"


class RdmaMode(StrEnum):
    """How a data-plane pod gets an RDMA device."""

    NONE = "None"
    SHARED_DEVICE = "SharedDevice"
    SRIOV = "SRIOV"


class Toleration(Section):
    """A taint that pods may ignore, as in a pod's spec."""

    key: str | None = None
    """The taint's key; unset with operator Exists: every taint."""
    operator: Literal["Equal", "Exists"] = "Equal"
    """Whether the value counts."""
    value: str | None = None
    """The taint's value, with operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """The taint's effect; unset: all of them."""
    toleration_seconds: int | None = None
    """How long a NoExecute taint is tolerated; unset: for ever."""


class Hugepages(Section):
    """Huge pages of a data-plane pod."""

    page_size: Literal["2Mi", "1Gi"] = "2Mi"
    """Size of a page."""
    size: Quantity
    """How much of them."""


class RdmaSpec(Section):
    """How a data-plane pod writes into the engine's memory."""

    rules: ClassVar = (
        Rule(
            "self.mode == 'None' || has(self.resourceName)",
            "spec.placement.dpu.rdma.resourceName is required unless spec.placement.dpu.rdma.mode is None: "
            "name the device plugin's resource",
        ),
    )
    mode: RdmaMode = RdmaMode.NONE
    """`None`: a TCP stream. `SharedDevice`, `SRIOV`: an RDMA device from a device plugin."""
    resource_name: str | None = None
    """The device plugin's resource, for example `rdma/rdma_shared_device_a`; chosen by the cluster's administrator."""


class DpuPlacement(Section):
    """The data plane on SmartNICs."""

    node_selector: dict[str, str] | None = None
    """Labels of card nodes; unset: every node that has the label of hostLabelKey."""
    host_label_key: Annotated[str, Field(min_length=1, max_length=317)] = DEFAULT_HOST_LABEL
    """Label on a card's node whose value names the host node that the card sits in."""
    tolerations: list[Toleration] = []
    """Taints of card nodes that the data plane ignores."""
    resources: Annotated[
        ComputeResources,
        rule("!string(self.cpu).contains('m')", "spec.placement.dpu.resources.cpu must be whole cores: for example 8"),
    ] = ComputeResources(cpu=Quantity("4"), memory=Quantity("4Gi"))
    """What one data-plane pod gets, requests = limits, whole cores."""
    extended_resources: dict[str, Quantity] = {}
    """Further resources, verbatim, for example `nvidia.com/bf_sf: 1`."""
    hugepages: Hugepages | None = None
    """Huge pages; unset: none."""
    rdma: RdmaSpec = RdmaSpec()
    """RDMA; without it chunks are placed by TCP."""


class HostPlacement(Section):
    """The data plane inside the sidecar, on host cores."""

    resources: ComputeResources = ComputeResources()
    """What the pipeline may use; part of the sidecar's requests and limits. A change rolls the pods."""


class PlacementSpec(Section):
    """Where restoring runs, and as what chunks land."""

    rules: ClassVar = (
        Rule(
            "self.order.all(p, self.order.exists_one(q, q == p))",
            "spec.placement.order names a place twice: name each once",
        ),
    )
    order: Annotated[list[PlaceName], Field(min_length=1, max_length=2)] = [PlaceName.DPU, PlaceName.HOST]
    """Best first; recomputing is always the last resort. `[DPU]` alone: never on host cores.

    Whether and when cards are used changes within seconds, without a restart. Only adding or removing `Host` rolls the
    pods: their sidecars get other cores and memory.
    """
    dpu: DpuPlacement = DpuPlacement()
    """Card nodes and what pods on them get."""
    host: HostPlacement = HostPlacement()
    """Host cores."""
    landing: Landing = Landing.CODES
    """`Codes`: 8-bit codes land, the engine's scatter dequantizes. `Values`: the data plane does. Rolls the pods."""
    landing_buffer: Quantity = Quantity("512Mi")
    """Memory of every pod for chunks that land; at least 8 chunks of the pool's model. A change rolls the pods."""
