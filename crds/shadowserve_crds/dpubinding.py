"""DPUBinding: which card sits in which host. One object per card, written by the operator or by hand."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from shadowserve_crds.base import Column, Resource, Rule, Section, StatusSection
from shadowserve_crds.conditions import LIST_MAP_BY_TYPE, Condition

NodeName = Annotated[str, Field(min_length=1, max_length=253)]
HostName = Annotated[str, Field(max_length=253)]


class BindingSource(StrEnum):
    """Who says so."""

    LABEL = "Label"
    MANUAL = "Manual"


class DPUBindingSpec(Section):
    """The pair."""

    rules: ClassVar = (
        Rule(
            "self.hostNode != self.dpuNode",
            "spec.hostNode and spec.dpuNode are the same node, and a card has its own: correct the one that is wrong",
        ),
        Rule(
            "size(self.hostNode) > 0 || self.source == 'Label'",
            "spec.hostNode is empty: name the node of the host that the card sits in",
        ),
    )
    host_node: HostName
    """Node that runs the engines. The operator leaves it empty for a card without a host: `PairingValid` says why."""
    dpu_node: NodeName
    """Node of the card, where its data plane runs."""
    serial_number: str = ""
    """Serial number of the card, where it is known."""
    pci_address: str = ""
    """Where the card sits in the host, where it is known."""
    source: BindingSource = BindingSource.MANUAL
    """`Label`: derived from the card node's label and kept up to date. `Manual`: left as it is."""


class DPUBindingStatus(StatusSection):
    """The card as it is."""

    observed_generation: int = 0
    """The generation of the spec that this status is about."""
    endpoint: str = ""
    """`host:port` of its data plane; empty while there is none."""
    healthy: bool = False
    """Whether engines of the host use it."""
    last_seen: str = ""
    """When its data plane was last ready."""
    conditions: Annotated[list[Condition], Field(json_schema_extra=LIST_MAP_BY_TYPE)] = []
    """PairingValid, DataPlaneReachable."""


class DPUBindingCondition(StrEnum):
    """The conditions of a DPUBinding."""

    PAIRING_VALID = "PairingValid"
    """Host and card exist and belong together.

    (Succeeded, HostNotFound, AmbiguousHost, SelfPair, NameTooLong, CardNotFound)
    """
    DATA_PLANE_REACHABLE = "DataPlaneReachable"
    """The card's data plane answers (Succeeded, Pending, NodeNotReady, NoPod)."""


class DPUBinding(Resource):
    """Which card sits in which host."""

    kind_name: ClassVar = "DPUBinding"
    plural: ClassVar = "dpubindings"
    short_names: ClassVar = ("dpub",)
    namespaced: ClassVar = False
    columns: ClassVar = (
        Column("Host", ".spec.hostNode"),
        Column("DPU", ".spec.dpuNode"),
        Column("Pairing", ".status.conditions[?(@.type=='PairingValid')].reason"),
        Column("Healthy", ".status.healthy", "boolean"),
        Column("Endpoint", ".status.endpoint"),
        Column("Source", ".spec.source", priority=1),
        Column("Age", ".metadata.creationTimestamp", "date"),
    )

    spec: DPUBindingSpec
    """The pair."""
    status: DPUBindingStatus = DPUBindingStatus()
    """The card as it is."""
