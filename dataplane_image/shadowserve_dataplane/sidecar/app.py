"""The sidecar as a whole: makes the parts, connects them, and takes them down again without leaving a file behind."""

import asyncio
import logging
import secrets
from collections.abc import Callable
from contextlib import ExitStack, suppress

from shadowserve_dataplane import __version__
from shadowserve_dataplane.codec.tiers import LandingMode
from shadowserve_dataplane.connector.messages import FromSidecar, pack
from shadowserve_dataplane.errors import ChunkOutcome
from shadowserve_dataplane.fetch.pipeline import Pipeline
from shadowserve_dataplane.fetch.report import ChunkResult
from shadowserve_dataplane.fetch.telling import ROUND_TRIP, Answer
from shadowserve_dataplane.sidecar import attachment
from shadowserve_dataplane.sidecar.attachment import Attachment
from shadowserve_dataplane.sidecar.buffer_files import Buffers, BufferSizes, make_buffers
from shadowserve_dataplane.sidecar.canary import HostCanary
from shadowserve_dataplane.sidecar.conversation import Conversation, Parts, Terms
from shadowserve_dataplane.sidecar.data_plane import WATCH_SECONDS, DataPlane
from shadowserve_dataplane.sidecar.endpoint import EndpointFile
from shadowserve_dataplane.sidecar.fetch_places import FetchPlaces
from shadowserve_dataplane.sidecar.fetches import Fetches, FetchLimits
from shadowserve_dataplane.sidecar.index import Index
from shadowserve_dataplane.sidecar.instance import only_instance
from shadowserve_dataplane.sidecar.landing_slots import LandingSlots, owner_of, zero_for
from shadowserve_dataplane.sidecar.metrics import SidecarMetrics
from shadowserve_dataplane.sidecar.remote import RemoteAttach
from shadowserve_dataplane.sidecar.router import Router
from shadowserve_dataplane.sidecar.runners import HostRunner
from shadowserve_dataplane.sidecar.sessions import Session, Sessions
from shadowserve_dataplane.sidecar.settings import Config, Paths, file_mode, namespace_salt, store_settings
from shadowserve_dataplane.sidecar.store_link import StoreLink
from shadowserve_dataplane.sidecar.store_messages import Setup
from shadowserve_dataplane.sidecar.store_queue import StoreQueue
from shadowserve_dataplane.sidecar.switch import Place
from shadowserve_dataplane.store.client import StoreClient

DRAIN_SECONDS = 5.0
"""How long chunks that are queued for the store may take after SIGTERM."""
_SESSION_BITS = 63

_log = logging.getLogger(__name__)


async def serve(config: Config, paths: Paths, stop: asyncio.Event, say: Callable[[str], None]) -> None:
    """Run the sidecar until `stop` is set. Raises `SettingsError` when it cannot start; leaves no file behind."""
    sizes = BufferSizes(
        config.landing_buffer_bytes, config.staging_buffer_bytes, config.staging_slots, file_mode(config)
    )
    with only_instance(paths.run):
        buffers = await make_buffers(paths.landing, sizes)
        try:
            metrics = SidecarMetrics(buffers.landing.count)
            canary = HostCanary(store_settings(config))
            engine = Attachment(config.landing_buffer_bytes, config.settings)
            answers: dict[str, Answer] = {attachment.PATH: lambda _: engine.document()}
            restores = "Host" in config.placement.order
            if restores:
                answers[ROUND_TRIP] = lambda change: canary.verdicts.after(change).document()
            with metrics.served(config.metrics_port, paths.metrics_port, answers) as port, ExitStack() as stack:
                sidecar = Sidecar(config, paths, buffers, metrics, engine)
                if restores:
                    canary.follow(lambda: sidecar.host_pipeline)
                    stack.enter_context(canary)
                say(f"shadowserve-sidecar {__version__}: ready on {paths.socket}, metrics on port {port}")
                await sidecar.run(stop)
        finally:
            buffers.close()


class Sidecar:
    """The parts of a running sidecar; the event loop's thread owns them all."""

    def __init__(
        self, config: Config, paths: Paths, buffers: Buffers, metrics: SidecarMetrics, engine: Attachment
    ) -> None:
        store, order, limits = store_settings(config), config.placement.order, config.limits
        self._landing = buffers.landing
        self._store = StoreClient(store)
        self._host = HostRunner(config.placement.workers, store, buffers.landing, self._report)
        self._uses_host = "Host" in order
        self._attach = RemoteAttach(config.placement, buffers.landing, self._report_remote, metrics.landed)
        self._data_plane = DataPlane(EndpointFile(paths.endpoint if "DPU" in order else None), self._attach)
        self._places = FetchPlaces(order, self._data_plane, self._host, self._report, metrics)
        self._fetches = Fetches(
            buffers.landing,
            self._places,
            FetchLimits(limits.fetch_deadline_ms / 1e3, limits.max_in_flight_chunks, LandingMode(config.landing)),
            self._tell,
            metrics,
        )
        link = StoreLink(Setup(config, str(buffers.staging.path)))
        unfinished, spoiled = (lambda: self._fetches.unfinished), self._fetches.spoiled
        self._stores = StoreQueue(buffers.staging, link, self._tell, unfinished, metrics, spoiled)
        self._conversation = Conversation(
            Sessions(lambda: secrets.randbits(_SESSION_BITS)),
            Terms(limits.lookup_deadline_ms, limits.fetch_deadline_ms, config.isolation, namespace_salt(config)),
            Parts(
                Index(self._store, limits.lookup_deadline_ms / 1e3),
                self._fetches,
                self._stores,
                LandingSlots(buffers.landing),
                buffers.staging,
                metrics,
                self._why_no_fetch,
                self._prepare_for,
                engine,
            ),
            self._send,
        )
        self._router = Router(paths.socket, file_mode(config), self._conversation.take)

    @property
    def host_pipeline(self) -> Pipeline | None:
        """The pipeline in this process, if there is one."""
        return self._host.pipeline

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then drain and close."""
        watching = asyncio.create_task(self._watch())
        try:
            await stop.wait()
            _log.info("stopping: %d fetches and %d stores are under way", self._fetches.unfinished, len(self._stores))
            await self._stores.drain(DRAIN_SECONDS)
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
            await self._close()

    async def _watch(self) -> None:
        """Follow the endpoint file, and keep the metric of the place true while nobody asks."""
        while True:
            self._data_plane.look()
            self._places.choice()
            await asyncio.sleep(WATCH_SECONDS)

    async def _close(self) -> None:
        self._fetches.close()
        await self._stores.close()
        await self._conversation.close()
        self._router.close()
        await self._data_plane.close()
        await self._host.close()
        await self._attach.close()
        await self._store.close()

    def _prepare_for(self, session: Session) -> None:
        """A worker was given a session: get ready for its first fetch, so that this does not have to wait."""
        if self._uses_host:
            self._host.prepare(session.shape)
        zero_for(self._landing, owner_of(session))

    def _why_no_fetch(self) -> str:
        choice = self._places.choice()
        return choice.reason if choice.place is Place.NONE else ""

    def _report(self, result: ChunkResult) -> None:
        self._fetches.report(result)

    def _report_remote(self, result: ChunkResult) -> None:
        if result.outcome is ChunkOutcome.LANDED:
            self._data_plane.proved()
        self._fetches.report(result)

    def _tell(self, session: Session, message: FromSidecar) -> None:
        self._send(session.peer, pack(message))

    def _send(self, peer: bytes, frame: bytes) -> bool:
        return self._router.send(peer, frame)
