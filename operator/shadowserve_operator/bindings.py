"""How PrefixCaches pair hosts and cards, and writing what the cards' DPUBindings say of it."""

from collections.abc import Mapping
from datetime import datetime

from shadowserve_crds.dpubinding import BindingSource, DPUBindingStatus
from shadowserve_crds.placement import PlaceName
from shadowserve_crds.prefixcache import PrefixCache
from shadowserve_operator.cluster import Cluster
from shadowserve_operator.desired.binding_status import CacheKey, binding_status, is_being_rewritten, speaker
from shadowserve_operator.desired.pairing import Pairing, resolve
from shadowserve_operator.kinds import DPU_BINDING, Ref
from shadowserve_operator.observe import Snapshot

Pairings = Mapping[CacheKey, Pairing]
"""How every PrefixCache that uses cards pairs them, in the order of the caches' names."""


def pairings_of(snapshot: Snapshot) -> Pairings:
    """Return how every PrefixCache pairs its cards that uses some and is to stay."""
    using = [each for each in snapshot.caches if PlaceName.DPU in each.spec.placement.order]
    staying = sorted((each for each in using if not each.metadata.being_deleted), key=lambda each: each.key)
    return {each.key: resolve(snapshot.nodes, snapshot.bindings, each.spec.placement.dpu) for each in staying}


async def tell_bindings(
    cluster: Cluster, cache: PrefixCache, snapshot: Snapshot, pairings: Pairings, now: datetime
) -> int:
    """Write the status of the bindings that this cache tells of; returns how many were written."""
    nodes = {node.name: node for node in snapshot.nodes}
    cards = {key: pairing.by_card() for key, pairing in pairings.items()}
    written = 0
    for binding in snapshot.bindings:
        card = binding.spec.dpu_node
        if speaker(card, cards) != cache.key:
            continue
        known = cards[cache.key].get(card)
        if is_being_rewritten(binding, known):
            continue
        status = binding_status(binding, known, (snapshot.planes or {}).get(card), nodes, now).dump()
        if status != binding.status.dump():
            await cluster.write_status(Ref(DPU_BINDING, "", binding.name), status)
            written += 1
    return written


async def forget_bindings(cluster: Cluster, snapshot: Snapshot, pairings: Pairings) -> int:
    """Take back what is said of bindings by hand, once no PrefixCache that uses cards is left; returns the writes."""
    if pairings:
        return 0
    written = 0
    for binding in snapshot.bindings:
        nothing = DPUBindingStatus(last_seen=binding.status.last_seen).dump()
        if binding.spec.source is BindingSource.MANUAL and binding.status.dump() != nothing:
            await cluster.write_status(Ref(DPU_BINDING, "", binding.name), nothing)
            written += 1
    return written
