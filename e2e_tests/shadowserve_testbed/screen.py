"""The state of a test bed on one screen."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from shadowserve_testbed.errors import TestbedError
from shadowserve_testbed.kubectl import Kubectl, KubectlError
from shadowserve_testbed.layout import Node
from shadowserve_testbed.native.cluster import NativeCluster, ready_nodes

_CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "coredns")
_PER_NODE = ("containerd", "kubelet", "kube-proxy")


def show_status(cluster: NativeCluster) -> None:
    """Print it. Raises `TestbedError` when no test bed runs."""
    nodes = cluster.nodes()
    running = cluster.daemons.running()
    kubectl = cluster.kubectl()
    console = Console()
    console.print(f"control plane: {', '.join(_marked(name, name in running) for name in _CONTROL_PLANE)}")
    if not kubectl.answers():
        raise TestbedError("the API server does not answer: shadowserve testbed up starts what does not run")
    console.print(_table(cluster, kubectl, nodes, running))
    for line in troubled_pods(kubectl):
        console.print(line)
    console.print(f"export KUBECONFIG={kubectl.kubeconfig}", soft_wrap=True)


def troubled_pods(kubectl: Kubectl) -> list[str]:
    """Return a line for every pod that is not well."""
    found = []
    for pod in kubectl.items("pods", "--all-namespaces"):
        status = pod["status"]
        ready = sum(each["ready"] for each in status.get("containerStatuses", []))
        wanted = len(pod["spec"]["containers"])
        if status.get("phase") != "Succeeded" and ready < wanted:
            name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
            found.append(f"pod {name}: {ready} of {wanted} containers ready, {_why(status)}")
    return found


def _table(cluster: NativeCluster, kubectl: Kubectl, nodes: Sequence[Node], running: Mapping[str, int]) -> Table:
    table = Table("node", "is", "ready", "daemons", "pods", "images", "link")
    ready = ready_nodes(kubectl)
    pods = [pod["spec"].get("nodeName") for pod in kubectl.items("pods", "--all-namespaces")]
    for node in nodes:
        up = [_marked(name, f"{name}-on-{node.name}" in running) for name in _PER_NODE]
        table.add_row(
            node.name,
            f"card of {node.host}" if node.host else "host",
            "yes" if node.name in ready else "[red]no[/]",
            " ".join(up),
            str(pods.count(node.name)),
            _images(cluster, node),
            node.rate or "unlimited",
        )
    return table


def _images(cluster: NativeCluster, node: Node) -> str:
    try:
        return str(len(cluster.images(node)))
    except (TestbedError, KubectlError):
        return "?"


def _marked(name: str, runs: bool) -> str:
    return name if runs else f"[red]{name} is down[/]"


def _why(status: Mapping[str, Any]) -> str:
    for container in [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]:
        waiting = container.get("state", {}).get("waiting", {})
        if waiting.get("reason") not in (None, "PodInitializing"):
            return f"{container['name']}: {waiting['reason']} {waiting.get('message', '')}".strip()
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message", "not scheduled"))
    return str(status.get("phase", "Pending"))
