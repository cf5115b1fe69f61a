"""`shadowserve testbed images`: what the test bed runs, with sizes."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from shadowserve_lab.home import default_home
from shadowserve_lab.setup import SetupError
from shadowserve_testbed.images.architecture import Architecture, native
from shadowserve_testbed.images.catalogue import Archive, Images
from shadowserve_testbed.images.errors import ImageError

_MEGABYTE = 1_000_000


def images(
    arch: Annotated[
        list[Architecture] | None, typer.Option(help="Architecture; other than this machine's: only the data plane.")
    ] = None,
    paths: Annotated[bool, typer.Option(help="Print only the archives' paths.")] = False,
) -> None:
    """Make the images that are missing or old, and list them; sizes are uncompressed."""
    home = default_home()
    made: list[Archive] = []
    try:
        with home.locked():
            builder = Images(home)
            for architecture in arch or [native()]:
                made += [builder.archive(image) for image in builder.images(architecture)]
    except (ImageError, SetupError) as error:
        home.say(str(error))
        raise typer.Exit(3) from error
    if paths:
        for archive in made:
            typer.echo(archive.path)
        return
    table = Table("image", "arch", "size", "layers")
    for archive in made:
        layers = " + ".join(f"{part.name} {_megabytes(size)}" for part, size in archive.layers)
        table.add_row(archive.image.reference, archive.image.architecture, _megabytes(archive.size), layers)
    Console(width=140).print(table)


def _megabytes(size: int) -> str:
    return f"{size / _MEGABYTE:.0f} MB"
