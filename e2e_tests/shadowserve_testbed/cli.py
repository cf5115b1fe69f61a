"""`shadowserve testbed`: a real Kubernetes on one machine, from Go modules, without a registry."""

import signal

import typer

from shadowserve_lab.home import default_home
from shadowserve_testbed.api_server import ApiServer
from shadowserve_testbed.binaries import CONTROL_PLANE, Binaries, BuildError
from shadowserve_testbed.images.command import images

application = typer.Typer(no_args_is_help=True)
application.command()(images)


@application.callback()
def testbed() -> None:
    """Run a real Kubernetes on this machine."""


@application.command()
def build() -> None:
    """Build what the test bed runs; an interrupted build goes on where it was."""
    _built()


@application.command("api-server")
def api_server() -> None:
    """Run an API server with its etcd, without nodes, until Ctrl-C; prints the kubeconfig's path."""
    binaries = _built()
    with ApiServer(binaries, default_home().say) as server:
        typer.echo(f"export KUBECONFIG={server.kubeconfig}")
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


def _built() -> Binaries:
    home = default_home()
    binaries = Binaries(home)
    try:
        with home.locked():
            if missing := binaries.missing(CONTROL_PLANE):
                minutes, listed = sum(tool.minutes for tool in missing), ", ".join(tool.name for tool in missing)
                home.say(f"to build: {listed}; about {minutes:g} minutes on two cores")
            for tool in CONTROL_PLANE:
                binaries.path(tool)
    except BuildError as error:
        home.say(str(error))
        raise typer.Exit(3) from error
    return binaries
