"""The network: a bridge, and a network namespace for every node. Every step looks first whether it is done already."""

from collections.abc import Sequence
from pathlib import Path

from shadowserve_testbed.layout import Node
from shadowserve_testbed.native.addresses import BRIDGE, CONTROL_PLANE, FABRIC, address, link, namespace, pod_network
from shadowserve_testbed.native.commands import run, succeeds

NAMESPACES = Path("/run/netns")
_FORWARDED = (("-i", BRIDGE), ("-o", BRIDGE))
_BURST = ("burst", "256kb", "latency", "50ms")


def ensure_fabric(nodes: Sequence[Node]) -> None:
    """Make bridge, namespaces, links and routes. Raises `TestbedError`."""
    if not succeeds("ip", "link", "show", BRIDGE):
        run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "address", "replace", f"{CONTROL_PLANE}/{FABRIC.rpartition('/')[2]}", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    for rule in _FORWARDED:  # bridged packets pass here where bridge-nf-call-iptables is on
        if not succeeds("iptables", "-C", "FORWARD", *rule, "-j", "ACCEPT"):
            run("iptables", "-I", "FORWARD", *rule, "-j", "ACCEPT")
    for node in nodes:
        _ensure_node(node, [other for other in nodes if other != node])


def _ensure_node(node: Node, others: Sequence[Node]) -> None:
    inside = namespace(node)
    if not (NAMESPACES / inside).exists():
        run("ip", "netns", "add", inside)
    if not succeeds("ip", "-n", inside, "link", "show", "eth0"):
        succeeds("ip", "link", "delete", link(node))  # its other end is in a namespace that is gone
        run("ip", "link", "add", link(node), "type", "veth", "peer", "name", "eth0", "netns", inside)
    run("ip", "link", "set", link(node), "master", BRIDGE, "up")
    run("ip", "-n", inside, "address", "replace", f"{address(node)}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        run("ip", "-n", inside, "link", "set", device, "up")
    run("ip", "-n", inside, "route", "replace", "default", "via", CONTROL_PLANE)
    run("ip", "route", "replace", pod_network(node), "via", address(node))
    for other in others:
        run("ip", "-n", inside, "route", "replace", pod_network(other), "via", address(other))
    run("ip", "netns", "exec", inside, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    if node.rate:
        limit = ("root", "tbf", "rate", node.rate, *_BURST)
        run("tc", "qdisc", "replace", "dev", link(node), *limit)
        run("tc", "-n", inside, "qdisc", "replace", "dev", "eth0", *limit)


def cut(node: Node) -> None:
    """Take the node off the network, as if its power had gone. Raises `TestbedError`."""
    run("ip", "link", "set", link(node), "down")


def remove_fabric(names: Sequence[str]) -> None:
    """Remove whatever there is of it; `names` are network namespaces."""
    for name in names:
        succeeds("ip", "netns", "delete", name)
    for rule in _FORWARDED:
        while succeeds("iptables", "-D", "FORWARD", *rule, "-j", "ACCEPT"):
            pass
    succeeds("ip", "link", "delete", BRIDGE)


def present_namespaces() -> list[str]:
    """Return the test bed's network namespaces that there are."""
    return sorted(path.name for path in NAMESPACES.glob("shadowserve-*"))
