"""The admission webhook as a process of its own: HTTPS in, the pure decision of `desired.admission`, an answer out.

Whatever goes wrong inside, the API server gets an answer in time: a pod is admitted as it is rather than held back.
The certificate's files are read again when they change, so that rotating it needs no restart.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from shadowserve_operator.desired.admission import BadReview, CacheSeen, Verdict, Wish, decide, read_review
from shadowserve_operator.errors import OperatorError, SettingsError
from shadowserve_operator.settings import OperatorSettings

FindCache = Callable[[str, str], Awaitable[CacheSeen | None]]
"""Finds a PrefixCache and its settings by namespace and name. May raise `OperatorError`."""
Count = Callable[[str], None]
"""Counts a review by its result: injected, skipped, untouched, failed."""

_FIND_SECONDS = 2.0
"""Well under the webhook's own time-out: then the pod is admitted without."""
_MAX_REVIEW_BYTES = 8 << 20
_RENEW_SECONDS = 10.0
_GOODBYE_SECONDS = 0.25
"""Connections that are kept alive end by a TLS goodbye, which nobody awaits."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServingFiles:
    """PEM files of the webhook's certificate."""

    certificate: Path
    key: Path

    def stamp(self) -> list[tuple[int, int]]:
        """Return what changes when a file does."""
        return [(about.st_mtime_ns, about.st_ino) for about in (self.certificate.stat(), self.key.stat())]


class AdmissionWebhook:
    """Answers reviews; `find` looks a PrefixCache up, `count` counts the results."""

    def __init__(self, find: FindCache, settings: OperatorSettings, count: Count) -> None:
        self._find, self._settings, self._count = find, settings, count

    def application(self) -> web.Application:
        """Return the web application: `POST /inject`, `GET /healthz`."""
        application = web.Application(client_max_size=_MAX_REVIEW_BYTES)
        application.router.add_post("/inject", self._inject)
        application.router.add_get("/healthz", _healthy)
        return application

    async def _inject(self, request: web.Request) -> web.Response:
        try:
            wish = read_review(await request.json())
        except (BadReview, ValueError) as error:
            self._count("failed")
            return web.Response(status=400, text=str(error))
        verdict = await self._decided(wish)
        self._count("injected" if verdict.injected else "skipped" if verdict.skipped else "untouched")
        if verdict.skipped:
            _log.warning("pod of namespace %s admitted without the sidecar: %s", wish.namespace, verdict.skipped)
        return web.json_response(verdict.response)

    async def _decided(self, wish: Wish) -> Verdict:
        if wish.cache is None:
            return decide(wish, None)
        try:
            async with asyncio.timeout(_FIND_SECONDS):
                seen = await self._find(wish.namespace, wish.cache)
        except (OperatorError, TimeoutError) as error:
            return decide(wish, f"PrefixCache {wish.cache} cannot be looked up now ({error or 'no answer in time'})")
        if seen is None:
            return decide(wish, f"there is no PrefixCache {wish.cache} in namespace {wish.namespace}")
        return decide(wish, seen.terms(self._settings))


@asynccontextmanager
async def served(webhook: AdmissionWebhook, host: str, port: int, files: ServingFiles) -> AsyncIterator[int]:
    """Serve by HTTPS; yields the port. Raises `SettingsError` for files that are no certificate, or a port in use."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        seen = files.stamp()
        context.load_cert_chain(files.certificate, files.key)
    except OSError as error:
        raise SettingsError(f"webhook certificate {files.certificate}, {files.key}: {error}") from error
    runner = web.AppRunner(webhook.application(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, host, port, ssl_context=context)
    try:
        await site.start()
    except OSError as error:
        await runner.cleanup()
        raise SettingsError(f"webhook cannot listen on {host}:{port}: {error}") from error
    renewal = asyncio.create_task(_renewed(context, files, seen))
    try:
        yield int(runner.addresses[0][1])
    finally:
        renewal.cancel()
        await runner.cleanup()
        await asyncio.sleep(_GOODBYE_SECONDS)


async def _renewed(context: ssl.SSLContext, files: ServingFiles, seen: list[tuple[int, int]]) -> None:
    """Keep the context at what the files say; new connections get it."""
    while True:
        await asyncio.sleep(_RENEW_SECONDS)
        try:
            if files.stamp() != seen:
                context.load_cert_chain(files.certificate, files.key)
                seen = files.stamp()
                _log.info("webhook certificate was renewed")
        except OSError as error:  # half renewed, perhaps
            _log.warning("webhook certificate cannot be read again: %s", error)


async def _healthy(request: web.Request) -> web.Response:
    return web.Response(text="ok")
