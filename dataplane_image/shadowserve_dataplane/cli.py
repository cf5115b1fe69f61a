"""`shadowserve`: the command line for people; the processes have commands of their own."""

from pathlib import Path
from typing import Annotated

import typer

from shadowserve_dataplane import __version__

application = typer.Typer(add_completion=False, no_args_is_help=True)
chunk = typer.Typer(no_args_is_help=True)
application.add_typer(chunk, name="chunk", help="Look at stored chunks.")


@application.callback()
def shadowserve() -> None:
    """Restore KV caches beside the engine."""


@application.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


@chunk.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A chunk, for example from `valkey-cli --raw GET shadowserve:KEY`.")],
) -> None:
    """Explain a chunk and say whether it is whole; exit code 1 if it is not."""
    from shadowserve_dataplane.codec.inspect import describe  # after --help: it imports numpy

    try:
        said = describe(file.read_bytes())
    except OSError as error:
        typer.echo(f"shadowserve: {file}: {error.strerror}", err=True)
        raise typer.Exit(2) from error
    typer.echo(said)
    if "whole:" not in said:
        raise typer.Exit(1)


def main() -> None:
    """Run the command line."""
    application()


if __name__ == "__main__":
    main()
