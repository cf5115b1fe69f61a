"""How a command reaches a cluster: its options, a question asked within a time, and clear words when nobody answers."""

import asyncio
import dataclasses
import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console

if TYPE_CHECKING:
    from shadowserve_operator.cluster import ApiCluster

Answer = TypeVar("Answer")
SYSTEM_NAMESPACE = "shadowserve-system"
NO_CLUSTER = 2
"""Exit code when the cluster cannot be asked."""


class Output(StrEnum):
    """How the answer is printed."""

    TEXT = "text"
    JSON = "json"


NamespaceOption = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Namespace to look at.  [default: that of the context]")
]
ContextOption = Annotated[str | None, typer.Option(help="Context of the kubeconfig.  [default: the current one]")]
KubeconfigOption = Annotated[
    Path | None, typer.Option(help="The kubeconfig.  [default: KUBECONFIG, else ~/.kube/config]")
]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="For people, or for programs.")]
SystemOption = Annotated[
    str, typer.Option("--system-namespace", envvar="SHADOWSERVE_NAMESPACE", help="Where the operator runs.")
]


@dataclass(frozen=True, slots=True)
class Access:
    """Which cluster, as the options say it; None: as kubectl would choose."""

    kubeconfig: Path | None = None
    context: str | None = None


def asked(access: Access, question: Callable[["ApiCluster"], Awaitable[Answer]]) -> Answer:
    """Return the answer of a cluster. Ends the command with `NO_CLUSTER`, and says why, when there is none."""
    from shadowserve_operator.cluster import ApiCluster
    from shadowserve_operator.errors import NotServed, OperatorError

    logging.getLogger("kubernetes").setLevel(logging.ERROR)  # what it warns of is said below

    async def ask() -> Answer:
        path = str(access.kubeconfig) if access.kubeconfig else None
        async with ApiCluster(path, access.context) as cluster:
            return await question(cluster)

    try:
        with Console(stderr=True).status("asking the cluster"):
            return asyncio.run(ask())
    except NotServed as error:
        hint = "are the custom resources installed? `shadowserve doctor` says what is missing"
        raise _ended(f"{error}; {hint}") from error
    except OperatorError as error:
        raise _ended(f"{error}{_absent(access, os.environ)}") from error


def namespace_of(access: Access, wanted: str | None) -> str:
    """Return the namespace that was asked for, else that of the context, else `default`."""
    if wanted:
        return wanted
    from kubernetes.config import list_kube_config_contexts
    from kubernetes.config.config_exception import ConfigException

    try:
        contexts, current = list_kube_config_contexts(str(access.kubeconfig) if access.kubeconfig else None)
    except (ConfigException, OSError, TypeError):  # inside a pod there is none; `asked` says if that is a mistake
        return "default"
    named = [each for each in contexts if each["name"] == access.context] if access.context else [current]
    return str((named[0].get("context") or {}).get("namespace") or "default") if named else "default"


def print_json(answer: Any) -> None:
    """Print a record, and what it holds, as JSON."""
    typer.echo(json.dumps(dataclasses.asdict(answer), indent=2))


def _absent(access: Access, environment: Mapping[str, str]) -> str:
    """Return which kubeconfig does not exist, as the end of a sentence; nothing when one does."""
    given = [str(access.kubeconfig)] if access.kubeconfig else environment.get("KUBECONFIG", "").split(os.pathsep)
    paths = [Path(each) for each in given if each] or [Path("~/.kube/config").expanduser()]
    return "" if any(path.exists() for path in paths) else f" ({', '.join(map(str, paths))} does not exist)"


def _ended(message: str) -> typer.Exit:
    typer.echo(f"shadowserve: {message}", err=True)
    return typer.Exit(NO_CLUSTER)
