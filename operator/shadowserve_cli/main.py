"""`shadowserve`: puts the commands of all parts together; the processes have commands of their own."""

from importlib import import_module

import typer

from shadowserve_dataplane import __version__

_PARTS = {"chunk": "shadowserve_cli.chunk", "plan": "shadowserve_cli.plan", "testbed": "shadowserve_testbed.cli"}
"""Commands by the module whose `application` they are; absent where that part's requirements are not installed."""

application = typer.Typer(add_completion=False, no_args_is_help=True)


@application.callback()
def shadowserve() -> None:
    """Restore KV caches beside the engine."""


@application.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main() -> None:
    """Run the command line."""
    for name, module in _PARTS.items():
        try:
            application.add_typer(import_module(module).application, name=name)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("shadowserve_"):
                raise
    application()


if __name__ == "__main__":
    main()
