"""Names and addresses of the test bed's network. Pure."""

from shadowserve_testbed.layout import Node

BRIDGE = "shadowserve0"
CONTROL_PLANE = "10.90.0.1"
FABRIC = "10.90.0.0/24"
PODS = "10.244.0.0/16"
API_PORT = 6443
API_SERVER = f"https://{CONTROL_PLANE}:{API_PORT}"


def address(node: Node) -> str:
    """Return the node's own address."""
    return f"10.90.0.{node.index + 2}"


def pod_network(node: Node) -> str:
    """Return the network of the node's pods."""
    return f"10.244.{node.index + 2}.0/24"


def namespace(node: Node) -> str:
    """Return the name of its network namespace, as `ip netns` shows it."""
    return f"shadowserve-{node.name}"


def link(node: Node) -> str:
    """Return the name of its link on the bridge."""
    return f"ss-{node.name}"


def cgroup(node: Node) -> str:
    """Return the name of its control group, in every hierarchy."""
    return f"shadowserve-{node.name}"
