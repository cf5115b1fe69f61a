"""Which card sits in which host: by the label of the card's node, or by a DPUBinding written by hand. Never guessed.

A card is a node that the PrefixCache's selector finds. One host may have several cards; a card has one host.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from shadowserve_crds import names
from shadowserve_crds.dpubinding import BindingSource, DPUBinding
from shadowserve_crds.placement import DpuPlacement
from shadowserve_operator.desired.labels import digest
from shadowserve_operator.kinds import Json

_LABEL_LENGTH = 63
"""A label's value may not be longer: the name of a host node may."""


class Trouble(StrEnum):
    """Why a card has no host, or a DPUBinding pairs nothing; the reasons of `PairingValid` and `PairingResolved`."""

    HOST_NOT_FOUND = "HostNotFound"
    AMBIGUOUS_HOST = "AmbiguousHost"
    SELF_PAIR = "SelfPair"
    NAME_TOO_LONG = "NameTooLong"
    CARD_NOT_FOUND = "CardNotFound"


@dataclass(frozen=True, slots=True)
class Node:
    """A node, as far as it matters: `ready` is what its kubelet last said, or that it fell silent."""

    name: str
    labels: Mapping[str, str]
    ready: bool


@dataclass(frozen=True, slots=True)
class Pair:
    """A card and its host."""

    host: str
    card: str
    source: BindingSource


@dataclass(frozen=True, slots=True)
class Unpaired:
    """A card without a host, and what to do about it in words."""

    card: str
    trouble: Trouble
    message: str
    source: BindingSource


@dataclass(frozen=True, slots=True)
class Pairing:
    """All cards, each either paired or not, in the order of their names."""

    pairs: tuple[Pair, ...] = ()
    unpaired: tuple[Unpaired, ...] = ()

    def cards_of(self, host: str) -> tuple[str, ...]:
        """Return the cards in a host."""
        return tuple(pair.card for pair in self.pairs if pair.host == host)

    def by_card(self) -> dict[str, Pair | Unpaired]:
        """Return what is known of every card; whatever else is none, as far as the PrefixCache's placement goes."""
        return {pair.card: pair for pair in self.pairs} | {each.card: each for each in self.unpaired}


def is_card(node: Node, placement: DpuPlacement) -> bool:
    """Return whether the node is a card that the placement selects."""
    if placement.node_selector:
        return all(node.labels.get(key) == value for key, value in placement.node_selector.items())
    return placement.host_label_key in node.labels


def resolve(nodes: Iterable[Node], bindings: Sequence[DPUBinding], placement: DpuPlacement) -> Pairing:
    """Return who belongs to whom. What was written by hand goes before labels."""
    everyone = {node.name: node for node in nodes}
    cards = [everyone[name] for name in sorted(everyone) if is_card(everyone[name], placement)]
    by_hand = [each for each in bindings if each.spec.source is BindingSource.MANUAL]
    found = [_resolve(card, by_hand, everyone, placement) for card in cards]
    return Pairing(
        tuple(each for each in found if isinstance(each, Pair)),
        tuple(each for each in found if isinstance(each, Unpaired)),
    )


def binding_name(card: str) -> str:
    """Return the name of a card's DPUBinding: the card's node."""
    return card


def binding_manifests(pairings: Iterable[Pairing], existing: Sequence[DPUBinding]) -> list[Json]:
    """Return the DPUBindings that are derived from labels, one for each card; those by hand are left as they are.

    A card without a host has one, too, which names no host: its status says why. What one of the pairings pairs is
    paired.
    """
    everything = tuple(pairings)
    by_hand = {each.name for each in existing if each.spec.source is BindingSource.MANUAL}
    hosts = {each.card: "" for one in everything for each in one.unpaired if each.source is BindingSource.LABEL}
    hosts |= {pair.card: pair.host for one in reversed(everything) for pair in one.pairs if _by_label(pair)}
    return [_manifest(card, hosts[card]) for card in sorted(hosts) if binding_name(card) not in by_hand]


def _by_label(pair: Pair) -> bool:
    return pair.source is BindingSource.LABEL


def _manifest(card: str, host: str) -> Json:
    body: Json = {
        "apiVersion": names.API_VERSION,
        "kind": DPUBinding.kind_name,
        "metadata": {
            "name": binding_name(card),
            "labels": {names.MANAGED_BY_LABEL: names.MANAGED_BY, names.COMPONENT_LABEL: "binding"},
        },
        "spec": {"hostNode": host, "dpuNode": card, "source": str(BindingSource.LABEL)},
    }
    metadata = {**body["metadata"], "annotations": {names.SPEC_HASH_ANNOTATION: digest(body)}}
    return {**body, "metadata": metadata}


def _resolve(
    card: Node, by_hand: Sequence[DPUBinding], nodes: Mapping[str, Node], placement: DpuPlacement
) -> Pair | Unpaired:
    written = [each for each in by_hand if each.spec.dpu_node == card.name]
    hosts = sorted({each.spec.host_node for each in written})
    source = BindingSource.MANUAL if hosts else BindingSource.LABEL
    if len(hosts) > 1:
        listed = ", ".join(sorted(each.name for each in written))
        message = f"DPUBindings {listed} name the hosts {', '.join(hosts)}; keep one"
        return Unpaired(card.name, Trouble.AMBIGUOUS_HOST, f"card {card.name}: {message}", source)
    host = hosts[0] if hosts else card.labels.get(placement.host_label_key, "")
    where = f"DPUBinding {written[0].name}" if hosts else f"label {placement.host_label_key}"
    found = _trouble(card.name, host, where, nodes, placement)
    if found is None:
        return Pair(host, card.name, source)
    trouble, message = found
    return Unpaired(card.name, trouble, f"card {card.name}: {message}", source)


def _name_host(card: str, placement: DpuPlacement) -> str:
    label = f"kubectl label --overwrite node {card} {placement.host_label_key}=HOST_NODE"
    return f"name its host: {label}, or write a DPUBinding"


def _trouble(
    card: str, host: str, where: str, nodes: Mapping[str, Node], placement: DpuPlacement
) -> tuple[Trouble, str] | None:
    """Return what is wrong with a host that was named, and the fix in words; None if nothing is."""
    if not host:
        return Trouble.HOST_NOT_FOUND, f"has no {where}; {_name_host(card, placement)}"
    if host == card:
        return Trouble.SELF_PAIR, f"{where} names the card itself; name the host that it sits in"
    if host not in nodes:
        longer = [name for name in nodes if len(name) > _LABEL_LENGTH and name.startswith(host)]
        if longer:
            message = (
                f"{where} says {host}, but the node is called {longer[0]}, which is longer than the "
                f"{_LABEL_LENGTH} characters that a label holds; write a DPUBinding"
            )
            return Trouble.NAME_TOO_LONG, message
        return Trouble.HOST_NOT_FOUND, f"{where} names {host}, which is no node; correct it, or let the host join"
    if is_card(nodes[host], placement):
        return Trouble.AMBIGUOUS_HOST, f"{where} names {host}, which is a card itself; name the host"
    return None
