"""`shadowserve status`: one screen about caches, pools, where every pod's data plane is, and what is wrong."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

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
    from shadowserve_cli.status_report import Report

EXAMPLES = ("shadowserve status -n chat", "shadowserve status -A -o json", "kubectl shadowserve status")
_COLOURS = {"True": "green", "False": "red", "Unknown": "yellow"}
_MOST_PODS = 40
_FILE_WIDTH = 300
"""Wide enough for a line a pod, where nobody looks at a screen."""


def status(
    namespace: NamespaceOption = None,
    everywhere: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Look at all namespaces.")] = False,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    system: SystemOption = SYSTEM_NAMESPACE,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show caches, pools, where every pod's data plane is, what is wrong and what to do.

    Exit code 0 whatever is found, 2 when the cluster cannot be asked.
    """
    from shadowserve_cli.picture import observe_picture
    from shadowserve_cli.status_report import report

    access = Access(kubeconfig, context)
    space = "" if everywhere else namespace_of(access, namespace)
    picture = asked(access, lambda cluster: observe_picture(cluster, space, system))
    found = report(picture, datetime.now(UTC))
    if output is Output.JSON:
        print_json(found)
    else:
        console = Console(highlight=False)
        show(found, console if console.is_terminal else Console(highlight=False, width=_FILE_WIDTH), space)


def show(found: "Report", console: Console, namespace: str) -> None:
    """Print the report for people; `namespace` "" = all."""
    where = f"namespace {namespace}" if namespace else "all namespaces"
    console.print(escape(f"{where}; {found.operator}"))
    if not found.caches and not found.pools:
        console.print("no PrefixCache and no InferencePool here (-n NAMESPACE, or -A for all)")
    caches = [(each.name, each.ready, each.store, each.planes, each.tier, str(each.pools)) for each in found.caches]
    _print(console, ("CACHE", "READY", "STORE", "PLANES", "TIER", "POOLS"), caches, found.caches, namespace)
    pools = [(each.name, each.ready, each.engines, each.model, each.cache, each.places) for each in found.pools]
    _print(console, ("POOL", "READY", "ENGINES", "MODEL", "CACHE", "DATA PLANES"), pools, found.pools, namespace)
    pods = [(each.name, each.node, each.place, each.endpoint, each.why) for each in found.pods[:_MOST_PODS]]
    _print(console, ("POD", "NODE", "DATA PLANE", "ENDPOINT", "WHY"), pods, found.pods, namespace)
    if len(found.pods) > _MOST_PODS:
        console.print(f"... and {len(found.pods) - _MOST_PODS} more pods: -o json has them all")
    console.print()
    for each in found.troubles:
        console.print(f"[red]{escape(each.about)}[/]: {escape(each.problem)}\n    {escape(each.look)}", soft_wrap=True)
    for line in found.unreadable:
        console.print(f"[yellow]not looked at[/]: {escape(line)}")
    if not found.troubles:
        console.print("[green]nothing is wrong[/]")


def _print(
    console: Console, titles: Sequence[str], rows: Sequence[Sequence[str]], lines: Sequence[object], namespace: str
) -> None:
    if not rows:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles if namespace else ("NAMESPACE", *titles):
        table.add_column(title, overflow="fold")
    for row, line in zip(rows, lines, strict=False):
        cells = [f"[{_COLOURS[cell]}]{cell}[/]" if cell in _COLOURS else escape(cell) for cell in row]
        table.add_row(*(cells if namespace else (str(getattr(line, "namespace", "")), *cells)))
    console.print()
    console.print(table)
