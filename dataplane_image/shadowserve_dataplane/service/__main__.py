"""`shadowserve-dataplane`: the process that restores KV chunks, on a SmartNIC's cores or anywhere else."""

import asyncio
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from shadowserve_dataplane import __version__
from shadowserve_dataplane.ending import end_at_once_while_starting
from shadowserve_dataplane.errors import SettingsError
from shadowserve_dataplane.service.settings import DEFAULT_MAX_CHUNK_BYTES, DataPlaneSettings, tls_files
from shadowserve_dataplane.store.settings import StoreSettings

_SWITCH_INTERVAL = 0.0005
"""Seconds a thread may keep the interpreter when another wants it: 10 times less than usual, for short frames."""

application = typer.Typer(add_completion=False, no_args_is_help=True)


@application.callback()
def dataplane() -> None:
    """Restore KV chunks: fetch them from the store, decompress them, place them into landing buffers."""


@application.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


@application.command()
def serve(  # noqa: PLR0913 - one parameter an option is how typer reads a command line
    store: Annotated[
        str,
        typer.Option(
            envvar="SHADOWSERVE_STORE",
            help="Where the chunks are: redis://[user:password@]host:port, rediss:// for TLS, hosts separated by "
            "commas and ?topology=Cluster for a cluster.",
        ),
    ],
    host: Annotated[str, typer.Option(envvar="SHADOWSERVE_HOST", help="Address to listen on.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(envvar="SHADOWSERVE_PORT", help="gRPC port; 0 = any free one.")] = 9464,
    metrics_port: Annotated[
        int, typer.Option(envvar="SHADOWSERVE_METRICS_PORT", help="Prometheus port; 0 = any free one.")
    ] = 9466,
    port_file: Annotated[
        Path | None, typer.Option(help="Write the two ports here, a line each, once they are open.")
    ] = None,
    workers: Annotated[
        int, typer.Option(envvar="SHADOWSERVE_WORKERS", min=1, max=64, help="Threads; best one a core.")
    ] = 2,
    shards: Annotated[
        int, typer.Option(min=1, max=64, help="Chunk buffers a worker has: one for every shard of the store.")
    ] = 4,
    max_chunk_bytes: Annotated[
        int, typer.Option(envvar="SHADOWSERVE_MAX_CHUNK_BYTES", min=4096, help="Largest chunk that is accepted.")
    ] = DEFAULT_MAX_CHUNK_BYTES,
    drain_seconds: Annotated[float, typer.Option(min=0, help="How long jobs may still run after SIGTERM.")] = 10.0,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM certificate; turns on mutual TLS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM key of that certificate.")] = None,
    tls_authority: Annotated[Path | None, typer.Option(help="PEM authority that sidecars must be signed by.")] = None,
    store_authority: Annotated[
        Path | None, typer.Option(help="PEM authority of the store, if it is another than that of sidecars.")
    ] = None,
) -> None:
    """Serve sidecars until SIGTERM; then finish what is under way and exit 0."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    sys.setswitchinterval(_SWITCH_INTERVAL)
    try:
        tls = tls_files(tls_certificate, tls_key, tls_authority)
        from shadowserve_dataplane.service.tls import store_context  # after --help, like what follows

        settings = DataPlaneSettings(
            store=StoreSettings.parse_url(store, store_context(store, tls, store_authority)),
            host=host,
            port=port,
            metrics_port=metrics_port,
            port_file=port_file,
            workers=workers,
            shards=shards,
            max_chunk_bytes=max_chunk_bytes,
            drain_seconds=drain_seconds,
            tls=tls,
        )
        from shadowserve_dataplane.service.process import serve as run  # after --help: it imports the whole pipeline

        asyncio.run(run(settings, lambda line: typer.echo(line)))
    except SettingsError as error:
        typer.echo(f"shadowserve-dataplane: {error}", err=True)
        raise typer.Exit(2) from error


def main() -> None:
    """Run the command line."""
    end_at_once_while_starting()
    application()


if __name__ == "__main__":
    main()
