"""`shadowserve-operator`: runs the operator, or prints what it would do about a manifest."""

import asyncio
import logging
import os
import signal
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from shadowserve_operator.errors import OperatorError, SettingsError
from shadowserve_operator.settings import OperatorSettings

application = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@application.command()
def operator(
    preview: Annotated[
        Path | None, typer.Option(help="Print what would be done about the manifests in this file, and end.")
    ] = None,
    namespace: Annotated[
        str, typer.Option(envvar="SHADOWSERVE_NAMESPACE", help="Namespace of the operator's Lease.")
    ] = "shadowserve-system",
) -> None:
    """Keep the cluster as its PrefixCaches say, until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("kopf").setLevel(logging.WARNING)
    try:
        settings = OperatorSettings.read(os.environ)
        if preview is not None:
            from shadowserve_operator.preview import preview as preview_text

            typer.echo(preview_text(preview.read_text(), settings, datetime.now(UTC)))
            return
        asyncio.run(_run(settings, namespace))
    except SettingsError as error:
        typer.echo(f"shadowserve-operator: {error}", err=True)
        raise typer.Exit(2) from error
    except (OperatorError, OSError) as error:
        typer.echo(f"shadowserve-operator: {error}", err=True)
        raise typer.Exit(1) from error


async def _run(settings: OperatorSettings, namespace: str) -> None:
    from shadowserve_operator.main import run  # after --help and --preview: it imports the framework

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    identity = f"{os.environ.get('POD_NAME') or socket.gethostname()}-{os.getpid()}"
    await run(settings, namespace, identity, stop)


def main() -> None:
    """Run the command line."""
    application()


if __name__ == "__main__":
    main()
