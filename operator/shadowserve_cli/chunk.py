"""`shadowserve chunk`: look at stored chunks."""

from pathlib import Path
from typing import Annotated

import typer

application = typer.Typer(no_args_is_help=True)


@application.callback()
def chunk() -> None:
    """Look at stored chunks."""


@application.command()
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
