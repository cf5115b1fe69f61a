"""`shadowserve-sidecar`: the control-plane sidecar of one inference pod."""

import asyncio
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from shadowserve_dataplane.ending import end_at_once_while_starting, stop_event
from shadowserve_dataplane.errors import SettingsError
from shadowserve_dataplane.sidecar.settings import Config, Paths, default_paths, read_config, scoped

_SWITCH_INTERVAL = 0.0005
"""Seconds a thread may keep the interpreter when another wants it: 10 times less than usual, for the event loop."""

_DEFAULTS = default_paths()

application = typer.Typer(add_completion=False)


@application.command()
def sidecar(  # noqa: PLR0913 - one parameter an option is how typer reads a command line
    config: Annotated[Path, typer.Option(help="Settings: keys, limits, tier, store (config.json).")],
    run_dir: Annotated[Path, typer.Option(help="Folder of the socket; one sidecar per folder.")] = _DEFAULTS.run,
    landing_dir: Annotated[
        Path, typer.Option(help="Folder of landing and staging buffer, best a tmpfs; shared with the engine.")
    ] = _DEFAULTS.landing,
    endpoint_file: Annotated[
        Path | None, typer.Option(help="File that names the data plane (host:port), watched; may be missing.")
    ] = _DEFAULTS.endpoint,
    metrics_port_file: Annotated[
        Path | None, typer.Option(help="Write the port of the metrics there (for metricsPort 0).")
    ] = None,
    scope: Annotated[
        str | None,
        typer.Option(help="Whose chunks these are, instead of config.json's scope.", envvar="SHADOWSERVE_SCOPE"),
    ] = None,
    verbose: Annotated[bool, typer.Option(help="Log more.")] = False,
) -> None:
    """Answer the engine's look-ups, have its fetches run, and store what it computed."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("asyncio").setLevel(logging.INFO)
    sys.setswitchinterval(_SWITCH_INTERVAL)
    paths = Paths(run_dir.absolute(), landing_dir.absolute(), endpoint_file, metrics_port_file)
    try:
        asyncio.run(_run(scoped(read_config(config), scope), paths))
    except SettingsError as error:
        typer.echo(f"shadowserve-sidecar: {error}", err=True)
        raise typer.Exit(2) from error


async def _run(config: Config, paths: Paths) -> None:
    from shadowserve_dataplane.sidecar.app import serve  # after --help: it imports the whole pipeline

    await serve(config, paths, stop_event(), lambda line: typer.echo(line))


def main() -> None:
    """Run the command line."""
    end_at_once_while_starting()
    application()


if __name__ == "__main__":
    main()
