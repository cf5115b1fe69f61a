"""`shadowserve-webhook`: the admission webhook as it runs in its Deployment; looks PrefixCaches up, serves, counts."""

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from prometheus_client import start_http_server

from shadowserve_crds import names
from shadowserve_crds.base import InvalidResource
from shadowserve_crds.prefixcache import PrefixCache
from shadowserve_operator.admission_server import AdmissionWebhook, FindCache, ServingFiles, served
from shadowserve_operator.cluster import ApiCluster, Cluster
from shadowserve_operator.desired.admission import CacheSeen
from shadowserve_operator.desired.config import config_map_name
from shadowserve_operator.errors import Forbidden, OperatorError, Refused, SettingsError
from shadowserve_operator.kinds import CONFIG_MAP, PREFIX_CACHE, Json, Ref
from shadowserve_operator.metrics import InjectionMetrics
from shadowserve_operator.settings import OperatorSettings

_log = logging.getLogger(__name__)
application = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def finder(cluster: Cluster) -> FindCache:
    """Return what looks a PrefixCache up."""

    async def find(namespace: str, name: str) -> CacheSeen | None:
        body = await cluster.get(Ref(PREFIX_CACHE, namespace, name))
        if body is None:
            return None
        try:
            cache = PrefixCache.parse(body)
        except InvalidResource as invalid:
            raise Refused(str(invalid)) from invalid
        return CacheSeen(cache, await _settings(cluster, Ref(CONFIG_MAP, namespace, config_map_name(cache))))

    return find


async def _settings(cluster: Cluster, config_map: Ref) -> Json | None:
    """Return the ConfigMap; None also where roles of an older release do not let the webhook read it."""
    try:
        return await cluster.get(config_map)
    except Forbidden as forbidden:
        _log.warning("apply the roles of this release in namespace %s: %s", config_map.namespace, forbidden)
        return None


@application.command()
def webhook(
    certificates: Annotated[Path, typer.Option(help="Folder with tls.crt and tls.key, read again when they change.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(help="Port of HTTPS.")] = 8443,
    metrics_port: Annotated[int, typer.Option(help="Port of the metrics.")] = names.OPERATOR_METRICS_PORT,
) -> None:
    """Inject the sidecar into pods that ask for it by a label, until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        settings = OperatorSettings.read(os.environ)
        files = ServingFiles(certificates / "tls.crt", certificates / "tls.key")
        asyncio.run(_serve(settings, host, port, metrics_port, files))
    except (OperatorError, OSError) as error:
        typer.echo(f"shadowserve-webhook: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, SettingsError) else 1) from error


async def _serve(settings: OperatorSettings, host: str, port: int, metrics_port: int, files: ServingFiles) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    metrics = InjectionMetrics()
    server, _ = start_http_server(metrics_port, registry=metrics.registry)
    try:
        async with ApiCluster() as cluster:
            hook = AdmissionWebhook(finder(cluster), settings, metrics.count)
            async with served(hook, host, port, files) as bound:
                _log.info("webhook serves on port %d", bound)
                await stop.wait()
    finally:
        server.shutdown()


def main() -> None:
    """Run the command line."""
    application()


if __name__ == "__main__":
    main()
