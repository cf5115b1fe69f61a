"""`shadowserve`: puts the commands of all parts together; the processes have commands of their own."""

import typer

from shadowserve_cli import chunk
from shadowserve_dataplane import __version__

application = typer.Typer(add_completion=False, no_args_is_help=True)
application.add_typer(chunk.application, name="chunk", help="Look at stored chunks.")


@application.callback()
def shadowserve() -> None:
    """Restore KV caches beside the engine."""


@application.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main() -> None:
    """Run the command line."""
    application()


if __name__ == "__main__":
    main()
