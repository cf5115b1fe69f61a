"""Which provider makes the test bed: who is asked for, whose bed is up, kind where it can be, else the native one."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from shadowserve_lab.home import Home
from shadowserve_testbed.errors import TestbedError
from shadowserve_testbed.provider import Provider
from shadowserve_testbed.providers import PROVIDERS

_SECONDS = 20.0
_NODES_BY = "podman"
_ASK_DOCKER = ("docker", "version", "--format", "{{.Server.Version}}")


@dataclass(frozen=True, slots=True)
class Choice:
    """A provider's name, and in words why it is this one."""

    name: str
    reason: str


def choose(asked: str, running: Sequence[str], obstacle: str) -> Choice:
    """Return which provider makes the test bed. Pure; raises `TestbedError`.

    `asked` is what PROVIDER says, "" if nothing; `running` are those whose beds are up; `obstacle` is why this is no
    machine for kind, "" if it is.
    """
    if asked and asked not in PROVIDERS:
        raise TestbedError(f"PROVIDER={asked}: there are only {', '.join(sorted(PROVIDERS))}")
    if asked:
        refuse_beside(asked, running)
        return Choice(asked, "PROVIDER says so")
    if running:
        return Choice(running[0], "its test bed is up")
    if obstacle:
        return Choice("native", f"{obstacle}; PROVIDER=kind takes kind with podman, and installs that as root")
    return Choice("kind", "Docker and podman are here; PROVIDER=native takes network namespaces of this machine")


def refuse_beside(name: str, running: Sequence[str]) -> None:
    """Raise `TestbedError` if the bed of another provider than `name` is up: a machine has one at a time."""
    if others := [other for other in running if other != name]:
        raise TestbedError(
            f"a test bed by {others[0]} is up, and a machine has one at a time: "
            f"shadowserve testbed down (or make demo-clean) removes it, PROVIDER={others[0]} uses it"
        )


def chosen(home: Home, asked: str) -> tuple[Provider, Choice]:
    """Return the provider to use on this machine, and why. Raises `TestbedError`."""
    running = running_providers(home)
    choice = choose(asked, running, "" if asked or running else kind_obstacle(os.geteuid()))
    return PROVIDERS[choice.name](home), choice


def running_providers(home: Home) -> list[str]:
    """Return the names of the providers whose test beds are up, well or not. Raises `TestbedError`."""
    return [name for name, make in PROVIDERS.items() if make(home).running()]


def remove_all_beds(home: Home) -> None:
    """Remove the test bed of every provider, whatever is left of it. Raises `TestbedError`."""
    for make in PROVIDERS.values():
        make(home).down()


def kind_obstacle(user: int) -> str:
    """Return in words why this is no machine for kind, "" if it is; `user` is the uid of who asks.

    Docker tells that it is a machine for containers. The nodes themselves are made with podman, by root.
    """
    if trouble := _docker_trouble():
        return trouble
    if shutil.which(_NODES_BY) is None:
        return f"Docker runs here, but kind's nodes are made with {_NODES_BY}, which is not installed"
    return "" if user == 0 else f"Docker runs here, but kind's nodes are made with {_NODES_BY} by root, and you are not"


def _docker_trouble() -> str:
    if shutil.which(_ASK_DOCKER[0]) is None:
        return "Docker is not installed"
    try:
        done = subprocess.run(_ASK_DOCKER, capture_output=True, text=True, check=False, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return "Docker does not answer"
    return "Docker does not run" if done.returncode or not done.stdout.strip() else ""
