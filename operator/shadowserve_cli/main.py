"""`shadowserve`, also as `kubectl shadowserve`: puts the commands of all parts together; processes have their own."""

import os
import sys
from importlib import import_module
from pathlib import Path

import typer

from shadowserve_dataplane import __version__

_COMMANDS = ("status", "explain", "doctor", "plan")
"""Each is the function of that name in the module of that name, which has `EXAMPLES` too."""
_GROUPS = {
    "capacity": "shadowserve_cli.capacity",
    "chunk": "shadowserve_cli.chunk",
    "testbed": "shadowserve_testbed.cli",
}
"""Groups of commands by the module whose `application` they are; absent where that part, or what it needs, is not
installed: images have no test bed.
"""

application = typer.Typer(add_completion=False, no_args_is_help=True)


@application.callback()
def shadowserve() -> None:
    """Restore KV caches beside the engine."""


@application.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def assembled() -> typer.Typer:
    """Return the application with all commands that can run here."""
    for name in _COMMANDS:
        module = import_module(f"shadowserve_cli.{name}")
        application.command(name, epilog="\n\n".join(("Examples:", *module.EXAMPLES)))(getattr(module, name))
    for name, place in _GROUPS.items():
        try:
            application.add_typer(import_module(place).application, name=name)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("shadowserve_") and error.name != place.partition(".")[0]:
                raise
    return application


def main() -> None:
    """Run the command line. Exit code 2 when a command needs a part that is not installed."""
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")  # before numpy is loaded: `capacity` is parallel by processes
    plugin = Path(sys.argv[0]).name == "kubectl-shadowserve"
    try:
        assembled()(prog_name="kubectl shadowserve" if plugin else "shadowserve")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("shadowserve_"):
            raise
        typer.echo(f"shadowserve: {error.name} is not installed: pip install 'shadowserve[operator]'", err=True)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
