"""`shadowserve explain POD`: why a pod has the sidecar or not, which data plane it uses, and why."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from shadowserve_cli.connection import (
    SYSTEM_NAMESPACE,
    Access,
    ContextOption,
    KubeconfigOption,
    NamespaceOption,
    Output,
    OutputOption,
    SystemOption,
    asked,
    namespace_of,
    print_json,
)

if TYPE_CHECKING:
    from shadowserve_cli.picture import Picture
    from shadowserve_operator.cluster import ApiCluster

EXAMPLES = ("shadowserve explain chat-7f9c-x2x4b -n chat", "kubectl shadowserve explain chat-7f9c-x2x4b -o json")


def explain(
    pod: Annotated[str, typer.Argument(help="Name of the pod.")],
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    system: SystemOption = SYSTEM_NAMESPACE,
    output: OutputOption = Output.TEXT,
) -> None:
    """Say why a pod has the sidecar or not, which data plane it uses, and why.

    Exit code 1 when there is no such pod, 2 when the cluster cannot be asked.
    """
    from shadowserve_cli.explain_report import explanation

    access = Access(kubeconfig, context)
    space = namespace_of(access, namespace)
    body, labels, picture = asked(access, lambda cluster: _observed(cluster, space, pod, system))
    if body is None:
        typer.echo(f"shadowserve: there is no pod {pod} in namespace {space}: name another by -n", err=True)
        raise typer.Exit(1)
    found = explanation(picture, body, labels, datetime.now(UTC))
    if output is Output.JSON:
        print_json(found)
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]{escape(f'pod {found.namespace}/{found.pod}')}[/]")
    for each in found.findings:
        mark = "[green]ok[/]  " if each.good else "[red]look[/]"
        console.print(f"{mark} {escape(each.question)} {escape(each.answer)}")
    for line in picture.unreadable:
        console.print(f"[yellow]not looked at[/]: {escape(line)}")


async def _observed(
    cluster: "ApiCluster", namespace: str, pod: str, system: str
) -> tuple[dict[str, Any] | None, dict[str, str], "Picture"]:
    """Return the pod, the labels of its namespace, and the picture around it."""
    from shadowserve_cli.picture import observe_picture
    from shadowserve_operator.errors import Forbidden
    from shadowserve_operator.kinds import POD, Ref

    body = await cluster.get(Ref(POD, namespace, pod))
    try:
        about = await cluster.ask(f"/api/v1/namespaces/{namespace}")
    except Forbidden:
        about = {"metadata": {"labels": {"kubernetes.io/metadata.name": namespace}}}
    return body, about["metadata"].get("labels") or {}, await observe_picture(cluster, namespace, system)
