"""What a card's DPUBinding says, and who says it. Pure.

Bindings belong to no namespace, and no worker of their own keeps them: PrefixCaches do. Of several that a binding
concerns the first by name tells, so that they do not contradict each other.
"""

from collections.abc import Mapping
from datetime import datetime

from shadowserve_crds import names
from shadowserve_crds.conditions import Condition, Reason, condition, merged
from shadowserve_crds.dpubinding import BindingSource, DPUBinding, DPUBindingCondition, DPUBindingStatus
from shadowserve_operator.desired.assignment import DataPlane
from shadowserve_operator.desired.config import DATA_PLANE
from shadowserve_operator.desired.pairing import Node, Pair, Trouble, Unpaired
from shadowserve_operator.desired.wording import see

CacheKey = tuple[str, str]
Known = Pair | Unpaired | None
"""What the pairing of the PrefixCache that tells has about a binding's card; None: it is no card."""


def speaker(card: str, cards: Mapping[CacheKey, Mapping[str, Pair | Unpaired]]) -> CacheKey | None:
    """Return which cache tells of a card: the first that pairs it, else that selects it, else the first of all."""
    for kind in (Pair, Unpaired, object):
        for key, known in cards.items():
            if isinstance(known.get(card), kind):
                return key
    return None


def binding_status(
    binding: DPUBinding, known: Known, plane: DataPlane | None, nodes: Mapping[str, Node], now: datetime
) -> DPUBindingStatus:
    """Return what a binding says: whether host and card belong together, and whether the card's data plane serves."""
    paired = _pairing_valid(binding, known, nodes)
    serves = plane is not None and plane.ready_since is not None
    healthy = serves and isinstance(known, Pair)
    seen = binding.status.last_seen
    if plane is not None and plane.ready_since is not None:
        seen = plane.ready_since.strftime("%Y-%m-%dT%H:%M:%SZ")
    generation = binding.metadata.generation
    conditions = [paired, _data_plane_reachable(binding.spec.dpu_node, plane, nodes)]
    return DPUBindingStatus(
        observed_generation=generation,
        endpoint=plane.endpoint if plane is not None and healthy else "",
        healthy=healthy,
        last_seen=seen,
        conditions=list(merged(binding.status.conditions, conditions, generation, now)),
    )


def _pairing_valid(binding: DPUBinding, known: Known, nodes: Mapping[str, Node]) -> Condition:
    kind, card = DPUBindingCondition.PAIRING_VALID, binding.spec.dpu_node
    if isinstance(known, Pair):
        return condition(kind, True, Reason.SUCCEEDED, f"card {card} sits in host {known.host}")
    if isinstance(known, Unpaired):
        return condition(kind, False, known.trouble, known.message)
    if card not in nodes:
        message = f"spec.dpuNode {card} is no node; correct it, or let the card join"
    else:
        message = (
            f"no PrefixCache uses node {card} as a card; correct spec.dpuNode, or label the node as "
            "spec.placement.dpu of a PrefixCache asks for it"
        )
    return condition(kind, False, Trouble.CARD_NOT_FOUND, message)


def _data_plane_reachable(card: str, plane: DataPlane | None, nodes: Mapping[str, Node]) -> Condition:
    kind = DPUBindingCondition.DATA_PLANE_REACHABLE
    if plane is None:
        return condition(kind, False, "NoPod", f"no data-plane pod runs on {card}; {_see_planes()}")
    if card in nodes and not nodes[card].ready:
        return condition(kind, False, "NodeNotReady", f"node {card} is not ready; {see('node', card)}")
    if plane.ready_since is None:
        message = f"the data-plane pod on {card} does not serve yet; {_see_planes()}"
        return condition(kind, False, Reason.PENDING, message)
    return condition(kind, True, Reason.SUCCEEDED, f"the data plane on {card} serves")


def _see_planes() -> str:
    return f"see kubectl get pods -A -o wide -l {names.COMPONENT_LABEL}={DATA_PLANE}"


def is_being_rewritten(binding: DPUBinding, known: Known) -> bool:
    """Return whether its spec is of an earlier pairing: it is written anew, or removed, and told then."""
    if binding.spec.source is not BindingSource.LABEL:
        return False
    host = known.host if isinstance(known, Pair) else ""
    return known is None or known.source is not BindingSource.LABEL or binding.spec.host_node != host
