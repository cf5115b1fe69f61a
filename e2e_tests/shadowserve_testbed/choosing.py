"""Which provider makes the test bed: who is asked for, whose bed is up, kind where Docker runs, else the native one."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from shadowserve_lab.home import Home
from shadowserve_testbed.errors import TestbedError
from shadowserve_testbed.provider import Provider
from shadowserve_testbed.providers import PROVIDERS

_SECONDS = 20.0
_ASK_DOCKER = ("docker", "version", "--format", "{{.Server.Version}}")


@dataclass(frozen=True, slots=True)
class Choice:
    """A provider's name, and in words why it is this one."""

    name: str
    reason: str


def choose(asked: str, running: Sequence[str], docker: str) -> Choice:
    """Return which provider makes the test bed. Pure; raises `TestbedError`.

    `asked` is what PROVIDER says, "" if nothing; `running` are those whose beds are up; `docker` is why Docker does not
    run here, "" if it does.
    """
    if asked and asked not in PROVIDERS:
        raise TestbedError(f"PROVIDER={asked}: there are only {', '.join(sorted(PROVIDERS))}")
    if asked:
        refuse_beside(asked, running)
        return Choice(asked, "PROVIDER says so")
    if running:
        return Choice(running[0], "its test bed is up")
    if docker:
        return Choice("native", f"{docker}; PROVIDER=kind takes kind with podman")
    return Choice("kind", "Docker runs here; PROVIDER=native takes network namespaces of this machine")


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
    choice = choose(asked, running, "" if asked or running else docker_trouble())
    return PROVIDERS[choice.name](home), choice


def running_providers(home: Home) -> list[str]:
    """Return the names of the providers whose test beds are up, well or not. Raises `TestbedError`."""
    return [name for name, make in PROVIDERS.items() if make(home).running()]


def remove_all_beds(home: Home) -> None:
    """Remove the test bed of every provider, whatever is left of it. Raises `TestbedError`."""
    for make in PROVIDERS.values():
        make(home).down()


def docker_trouble() -> str:
    """Return in words why Docker does not run here, "" if it does."""
    if shutil.which(_ASK_DOCKER[0]) is None:
        return "Docker is not installed"
    try:
        done = subprocess.run(_ASK_DOCKER, capture_output=True, text=True, check=False, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return "Docker does not answer"
    return "Docker does not run" if done.returncode or not done.stdout.strip() else ""
