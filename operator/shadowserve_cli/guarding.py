"""Whether network policies keep pods from a port: pure, judged by what they select and admit, not by their names."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network
from typing import Any

from shadowserve_cli.explain_report import unselected
from shadowserve_operator.kinds import Json

_EVERY_ADDRESS = (ip_network("0.0.0.0/0"), ip_network("::/0"))
_STRANGERS_NAMESPACE = {"kubernetes.io/metadata.name": "*"}
"""The labels of a namespace that no policy names."""
_OURS = ("shadowserve-stores", "shadowserve-data-planes")
_INSTALLED = "default"
"""The namespace whose stores and data planes `install.yaml` guards."""
Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Port:
    """A TCP port of pods, and how they name it."""

    number: int
    name: str


def guarded(policies: Iterable[Json], labels: Mapping[str, str], port: Port) -> bool:
    """Return whether pods with these labels are guarded: a policy selects them, and none admits everybody to `port`."""
    listed = list(policies)
    return any(_selects(each, labels) for each in listed) and not opened_by(listed, labels, port)


def opened_by(policies: Iterable[Json], labels: Mapping[str, str], port: Port) -> list[str]:
    """Return the names of the policies that admit everybody; one of them undoes all others, since policies add up."""
    return [
        str(each["metadata"]["name"]) for each in policies if _selects(each, labels) and _admits_everybody(each, port)
    ]


def mended(policies: Mapping[str, Iterable[Json]], namespace: str, install: str) -> str:
    """Return what adds ours to a namespace: `install`, in words, or the command that copies another namespace's.

    `policies` are those of some namespaces; one that is not among them may have any.
    """
    if namespace == _INSTALLED:
        return install
    having = {each: set(_OURS) <= {body["metadata"]["name"] for body in policies[each]} for each in sorted(policies)}
    source = next((each for each, complete in having.items() if complete), _INSTALLED)
    copy = (
        f"kubectl -n {source} get networkpolicy {' '.join(_OURS)} -o yaml"
        " | sed -E '/^ *(uid|resourceVersion|generation|creationTimestamp):/d;"
        f" s/namespace: {source}$/namespace: {namespace}/' | kubectl apply --server-side -f -"
    )
    return copy if having.get(source, True) else f"{install}; then {copy}"


def _selects(policy: Json, labels: Mapping[str, str]) -> bool:
    spec = policy.get("spec", {})
    return "Ingress" in spec.get("policyTypes", ("Ingress",)) and not unselected(spec.get("podSelector") or {}, labels)


def _admits_everybody(policy: Json, port: Port) -> bool:
    """Return whether a policy lets in pods that nothing names, or all addresses, be it in parts."""
    rules = [rule for rule in policy["spec"].get("ingress") or () if _is_about(rule, port)]
    peers = [peer for rule in rules for peer in rule.get("from") or ()]
    unlimited = any(not rule.get("from") for rule in rules)
    return unlimited or any(_is_a_stranger(peer) for peer in peers) or _is_every_address(peers)


def _is_about(rule: Mapping[str, Any], port: Port) -> bool:
    """Return whether a rule admits somebody to this port."""
    listed = [each for each in rule.get("ports") or () if each.get("protocol", "TCP") == "TCP"]
    return not rule.get("ports") or any(_holds(each, port) for each in listed)


def _holds(listed: Mapping[str, Any], port: Port) -> bool:
    first = listed.get("port")
    if first is None or first == port.name:
        return True
    return isinstance(first, int) and first <= port.number <= int(listed.get("endPort", first))


def _is_a_stranger(peer: Mapping[str, Any]) -> bool:
    """Return whether a pod without labels is admitted, from a namespace that is not named; see `_is_every_address`."""
    if peer.get("namespaceSelector") is None:
        return False
    return not unselected(peer["namespaceSelector"], _STRANGERS_NAMESPACE) and not unselected(
        peer.get("podSelector") or {}, {}
    )


def _is_every_address(peers: Iterable[Mapping[str, Any]]) -> bool:
    blocks = [part for peer in peers if peer.get("ipBlock") for part in _parts(peer["ipBlock"])]
    found: list[Network] = [*collapse_addresses(each for each in blocks if isinstance(each, IPv4Network))]
    found += collapse_addresses(each for each in blocks if isinstance(each, IPv6Network))
    return any(each in _EVERY_ADDRESS for each in found)


def _parts(block: Mapping[str, Any]) -> list[Network]:
    """Return a block of addresses without its exceptions."""
    found: list[Network] = [ip_network(block["cidr"], strict=False)]
    for text in block.get("except") or ():
        gone = ip_network(text, strict=False)
        found = [part for each in found for part in _without(each, gone)]
    return found


def _without(network: Network, gone: Network) -> Iterable[Network]:
    if not network.overlaps(gone):
        return (network,)
    if network.prefixlen >= gone.prefixlen:
        return ()
    return network.address_exclude(gone)  # type: ignore[arg-type]  # overlapping, so they are of one version
