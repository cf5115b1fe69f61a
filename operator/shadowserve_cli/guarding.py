"""Whether network policies keep pods from a port: pure, judged by what they select and admit, not by their names."""

from collections.abc import Iterable, Mapping
from typing import Any

from shadowserve_cli.explain_report import unselected
from shadowserve_operator.kinds import Json

_EVERY_ADDRESS = ("0.0.0.0/0", "::/0")


def guarded(policies: Iterable[Json], labels: Mapping[str, str], port: int) -> bool:
    """Return whether pods with these labels are guarded: a policy selects them, and none admits everybody to `port`."""
    listed = list(policies)
    return any(_selects(each, labels) for each in listed) and not opened_by(listed, labels, port)


def opened_by(policies: Iterable[Json], labels: Mapping[str, str], port: int) -> list[str]:
    """Return the names of the policies that admit everybody; one of them undoes all others, since policies add up."""
    return [
        str(each["metadata"]["name"])
        for each in policies
        if _selects(each, labels)
        and any(_is_about(rule, port) and _admits_everybody(rule) for rule in each["spec"].get("ingress") or ())
    ]


def _selects(policy: Json, labels: Mapping[str, str]) -> bool:
    spec = policy.get("spec", {})
    return "Ingress" in spec.get("policyTypes", ("Ingress",)) and not unselected(spec.get("podSelector") or {}, labels)


def _is_about(rule: Mapping[str, Any], port: int) -> bool:
    """Return whether a rule admits somebody to this TCP port; one by a name of a port counts as another port."""
    listed = [each for each in rule.get("ports") or () if each.get("protocol", "TCP") == "TCP"]
    return not rule.get("ports") or any(_holds(each, port) for each in listed)


def _holds(listed: Mapping[str, Any], port: int) -> bool:
    first = listed.get("port")
    if first is None:
        return True
    return isinstance(first, int) and first <= port <= int(listed.get("endPort", first))


def _admits_everybody(rule: Mapping[str, Any]) -> bool:
    return not rule.get("from") or any(_is_everybody(peer) for peer in rule["from"])


def _is_everybody(peer: Mapping[str, Any]) -> bool:
    if block := peer.get("ipBlock"):
        return block.get("cidr") in _EVERY_ADDRESS and not block.get("except")
    everywhere = "namespaceSelector" in peer and not peer["namespaceSelector"]
    return everywhere and not peer.get("podSelector")
