"""`shadowserve testbed`: a real Kubernetes on one machine, from Go modules, without a registry."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated

import typer

from shadowserve_lab.home import Home, default_home
from shadowserve_testbed.api_server import ApiServer
from shadowserve_testbed.arm64_cards import use_arm64_cards
from shadowserve_testbed.binaries import API_STORIES, CLUSTER, CONTROL_PLANE, Binaries, BuildError, ModulesUnreachable
from shadowserve_testbed.choosing import refuse_beside, remove_all_beds, running_providers
from shadowserve_testbed.errors import TestbedError
from shadowserve_testbed.images.catalogue import Images
from shadowserve_testbed.images.command import images as list_images
from shadowserve_testbed.images.errors import ImageError
from shadowserve_testbed.kubectl import KubectlError
from shadowserve_testbed.native.cluster import NativeCluster
from shadowserve_testbed.provider import Provider, Shape
from shadowserve_testbed.providers import PROVIDERS
from shadowserve_testbed.screen import show_status, troubled_pods


class ProviderName(StrEnum):
    """Who makes test beds, as in `PROVIDERS`."""

    NATIVE = "native"
    KIND = "kind"


application = typer.Typer(no_args_is_help=True)
application.command("images")(list_images)
_NONE: list[str] = []
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""For a command whose arguments are another program's."""


@application.callback()
def testbed() -> None:
    """Run a real Kubernetes on this machine."""


@application.command()
def build(
    api_stories: Annotated[
        bool, typer.Option("--api-stories", help="Only what stories on an API server run; nothing without Go.")
    ] = False,
) -> None:
    """Build what the test bed runs; an interrupted build goes on where it was."""
    home = default_home()
    with _told():
        try:
            Binaries(home).ensure(API_STORIES if api_stories else CLUSTER)
        except ModulesUnreachable as error:
            if not api_stories:
                raise
            home.say(f"stories on an API server will be skipped: {error}")


@application.command("api-server")
def api_server() -> None:
    """Run an API server with its etcd, without nodes, until Ctrl-C; prints the kubeconfig's path."""
    binaries = Binaries(default_home())
    with _told():
        binaries.ensure(CONTROL_PLANE)
    with ApiServer(binaries, default_home().say) as server:
        typer.echo(f"export KUBECONFIG={server.kubeconfig}")
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


@application.command()
def up(
    hosts: Annotated[int, typer.Option(help="nodes that engines run on")] = 1,
    cards: Annotated[int, typer.Option(help="nodes that stand for a SmartNIC each, spread over the hosts")] = 1,
    link: Annotated[list[str], typer.Option(help="limit a node's link: NODE=RATE, for example card-0=2gbit")] = _NONE,
    provider: Annotated[
        ProviderName, typer.Option(envvar="PROVIDER", help="what makes the nodes")
    ] = ProviderName.NATIVE,
) -> None:
    """Start the test bed, or what does not run of it; prints what to do next."""
    rates = dict(word.partition("=")[::2] for word in link)
    with _told():
        home = default_home()
        refuse_beside(provider, running_providers(home))
        kubectl = PROVIDERS[provider](home).up(Shape(hosts, cards, rates))
        typer.echo(f"export KUBECONFIG={kubectl.kubeconfig}")
        home.say("every node is ready. Next: shadowserve testbed load, or shadowserve testbed status")


@application.command()
def down() -> None:
    """Remove the test bed: processes, mounts, network, files. Harmless when there is none."""
    with _told():
        home = default_home()
        remove_all_beds(home)
        home.say("nothing of the test bed is left")


@application.command()
def status() -> None:
    """Show on one screen what runs, and what does not."""
    with _told():
        _, cluster = _cluster()
        if isinstance(cluster, NativeCluster):
            show_status(cluster)
            return
        kubectl = cluster.kubectl()
        typer.echo(kubectl.run("get", "nodes", "-o", "wide"))
        typer.echo("\n".join(troubled_pods(kubectl) or ["every pod is well"]))


@application.command()
def load(
    images: Annotated[list[str] | None, typer.Argument(help="references; all of ours without")] = None,
    arm64_cards: Annotated[
        bool, typer.Option("--arm64-cards", help="Only to the cards: the data plane for arm64, emulated.")
    ] = False,
) -> None:
    """Build our images, and make them known to every node."""
    with _told():
        home, cluster = _cluster()
        if arm64_cards:
            use_arm64_cards(cluster, home)
            home.say("data planes that start on cards from now on are arm64's")
            return
        with home.locked():
            archives = Images(home).archives()
        if unknown := set(images or ()) - set(archives):
            raise TestbedError(f"no image {', '.join(sorted(unknown))}; there are {', '.join(sorted(archives))}")
        cluster.load({name: path for name, path in archives.items() if not images or name in images})
        home.say(f"every node has {', '.join(sorted(images or archives))}")


@application.command(context_settings=_PASSED_ON)
def kubectl(context: typer.Context) -> None:
    """Run kubectl as administrator of the test bed."""
    with _told():
        found = _cluster()[1].kubectl()
        os.execv(found.program, ["kubectl", "--kubeconfig", str(found.kubeconfig), *context.args])


@application.command()
def logs(
    name: Annotated[str, typer.Argument(help="a daemon; without, they are listed")] = "",
    lines: Annotated[int, typer.Option(help="how many from the end")] = 100,
) -> None:
    """Print the end of a daemon's log. For pods: shadowserve testbed kubectl logs."""
    with _told():
        _, cluster = _cluster()
        known = cluster.daemons_logged()
        if not name:
            typer.echo("\n".join(known))
        elif name not in known:
            raise TestbedError(f"there is no daemon {name}, only {', '.join(known)}")
        else:
            typer.echo(cluster.log(name, lines), nl=False)


@application.command()
def lose(node: str) -> None:
    """Let a node die as if its power went."""
    with _told():
        _cluster()[1].lose(node)


@application.command()
def restore(node: str) -> None:
    """Bring a lost node back."""
    with _told():
        _cluster()[1].restore(node)


@contextmanager
def _told() -> Iterator[None]:
    """Say what went wrong in words, and end with 3."""
    try:
        yield
    except (TestbedError, BuildError, ImageError, KubectlError) as error:
        default_home().say(str(error))
        raise typer.Exit(3) from error


def _cluster() -> tuple[Home, Provider]:
    """Return the test bed that runs, whoever made it; the native one where none does."""
    home = default_home()
    name = next(iter(running_providers(home)), ProviderName.NATIVE)
    return home, PROVIDERS[name](home)


if __name__ == "__main__":
    application()
