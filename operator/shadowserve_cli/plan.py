"""`shadowserve plan`: what the operator would do about manifests, without touching or needing a cluster."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = ("shadowserve plan -f cache-and-pool.yaml",)


def plan(
    file: Annotated[Path, typer.Option("--file", "-f", exists=True, dir_okay=False, help="YAML with the resources.")],
) -> None:
    """Print what the operator would make of the resources in a file, and what it would refuse."""
    from shadowserve_operator.errors import SettingsError  # after --help: the operator's parts take seconds to load
    from shadowserve_operator.preview import preview
    from shadowserve_operator.settings import OperatorSettings

    try:
        typer.echo(preview(file.read_text(), OperatorSettings.read(os.environ), datetime.now(UTC)))
    except SettingsError as error:
        typer.echo(f"shadowserve plan: {error}", err=True)
        raise typer.Exit(2) from error
