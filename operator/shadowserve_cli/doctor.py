"""`shadowserve doctor`: checks a cluster before and after install; what is wrong comes with its fix."""

from datetime import UTC, datetime

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

EXAMPLES = ("shadowserve doctor", "shadowserve doctor --context production -o json")
_COLOURS = {"ok": "green", "warning": "yellow", "wrong": "red", "unknown": "yellow", "not installed": "dim"}
_WIDTH = max(map(len, _COLOURS))


def doctor(
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    system: SystemOption = SYSTEM_NAMESPACE,
    output: OutputOption = Output.TEXT,
) -> None:
    """Check a cluster before and after install, and say how to fix what is wrong. Changes nothing.

    Exit code 1 when something is wrong, 2 when the cluster cannot be asked.
    """
    from shadowserve_cli.doctor_checks import INSTALL, diagnosis
    from shadowserve_cli.doctor_facts import observe_facts

    access = Access(kubeconfig, context)
    space = namespace_of(access, namespace)
    facts = asked(access, lambda cluster: observe_facts(cluster, space, system))
    found = diagnosis(facts, datetime.now(UTC))
    if output is Output.JSON:
        print_json(found)
        raise typer.Exit(1 if found.wrong else 0)
    console = Console(highlight=False, soft_wrap=True)
    for each in found.checks:
        colour = _COLOURS[each.verdict]
        console.print(f"[{colour}]{each.verdict:{_WIDTH}}[/] {escape(each.name)}: {escape(each.found or '-')}")
        if each.fix and each.verdict != "not installed":
            console.print(f"{'':{_WIDTH}}   fix: {escape(each.fix)}")
    console.print()
    if found.wrong:
        console.print("[red]something is wrong[/]: see above")
        raise typer.Exit(1)
    after = "nothing is wrong" if found.installed else f"fit for ShadowServe: {INSTALL}"
    console.print(f"[green]{after}[/]")
