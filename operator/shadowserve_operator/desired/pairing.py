"""Which card sits in which host: by the label of the card's node, or by a DPUBinding written by hand. Never guessed.

A card is a node that the PrefixCache's selector finds. One host may have several cards; a card has one host.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from shadowserve_crds import names
from shadowserve_crds.dpubinding import BindingSource, DPUBinding
from shadowserve_crds.prefixcache import DpuPlacement
from shadowserve_operator.desired.labels import digest
from shadowserve_operator.kinds import Json

_LABEL_LENGTH = 63
"""A label's value may not be longer: the name of a host node may."""


class Trouble(StrEnum):
    """Why a card has no host; the reasons of `PairingValid` and `PairingResolved`."""

    HOST_NOT_FOUND = "HostNotFound"
    AMBIGUOUS_HOST = "AmbiguousHost"
    SELF_PAIR = "SelfPair"
    NAME_TOO_LONG = "NameTooLong"


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


@dataclass(frozen=True, slots=True)
class Pairing:
    """All cards, each either paired or not, in the order of their names."""

    pairs: tuple[Pair, ...] = ()
    unpaired: tuple[Unpaired, ...] = ()

    def cards_of(self, host: str) -> tuple[str, ...]:
        """Return the cards in a host."""
        return tuple(pair.card for pair in self.pairs if pair.host == host)


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


def binding_manifests(pairing: Pairing, existing: Sequence[DPUBinding]) -> list[Json]:
    """Return the DPUBindings that are derived from labels; those by hand are left as they are."""
    by_hand = {each.name for each in existing if each.spec.source is BindingSource.MANUAL}
    return [
        _manifest(pair)
        for pair in pairing.pairs
        if pair.source is BindingSource.LABEL and binding_name(pair.card) not in by_hand
    ]


def _manifest(pair: Pair) -> Json:
    body: Json = {
        "apiVersion": names.API_VERSION,
        "kind": DPUBinding.kind_name,
        "metadata": {
            "name": binding_name(pair.card),
            "labels": {names.MANAGED_BY_LABEL: names.MANAGED_BY, names.COMPONENT_LABEL: "binding"},
        },
        "spec": {"hostNode": pair.host, "dpuNode": pair.card, "source": str(pair.source)},
    }
    metadata = {**body["metadata"], "annotations": {names.SPEC_HASH_ANNOTATION: digest(body)}}
    return {**body, "metadata": metadata}


def _resolve(
    card: Node, by_hand: Sequence[DPUBinding], nodes: Mapping[str, Node], placement: DpuPlacement
) -> Pair | Unpaired:
    written = [each for each in by_hand if each.spec.dpu_node == card.name]
    hosts = sorted({each.spec.host_node for each in written})
    if len(hosts) > 1:
        listed = ", ".join(sorted(each.name for each in written))
        return Unpaired(
            card.name,
            Trouble.AMBIGUOUS_HOST,
            f"card {card.name}: DPUBindings {listed} name the hosts {', '.join(hosts)}; keep one",
        )
    source = BindingSource.MANUAL if hosts else BindingSource.LABEL
    host = hosts[0] if hosts else card.labels.get(placement.host_label_key, "")
    where = f"DPUBinding {written[0].name}" if hosts else f"label {placement.host_label_key}"
    trouble = _trouble(card, host, where, nodes, placement)
    return trouble or Pair(host, card.name, source)


def _trouble(card: Node, host: str, where: str, nodes: Mapping[str, Node], placement: DpuPlacement) -> Unpaired | None:
    if not host:
        message = f"card {card.name}: has no {where}; label it with its host's name, or write a DPUBinding"
        return Unpaired(card.name, Trouble.HOST_NOT_FOUND, message)
    if host == card.name:
        message = f"card {card.name}: {where} names the card itself; name the host that it sits in"
        return Unpaired(card.name, Trouble.SELF_PAIR, message)
    if host not in nodes:
        longer = [name for name in nodes if len(name) > _LABEL_LENGTH and name.startswith(host)]
        if longer:
            message = (
                f"card {card.name}: {where} says {host}, but the node is called {longer[0]}, which is longer than the "
                f"{_LABEL_LENGTH} characters that a label holds; write a DPUBinding"
            )
            return Unpaired(card.name, Trouble.NAME_TOO_LONG, message)
        message = f"card {card.name}: {where} names {host}, which is no node; correct it, or let the host join"
        return Unpaired(card.name, Trouble.HOST_NOT_FOUND, message)
    if is_card(nodes[host], placement):
        message = f"card {card.name}: {where} names {host}, which is a card itself; name the host"
        return Unpaired(card.name, Trouble.AMBIGUOUS_HOST, message)
    return None
