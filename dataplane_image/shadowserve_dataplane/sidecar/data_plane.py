"""The data plane that the endpoint file names: attach to it, notice when it is lost or hangs, follow a new endpoint.

It is attached as soon as it is named, not at the first fetch. When the file names another one, batches under way end
where they are and the next ones go to the new one.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from shadowserve_dataplane.errors import Cancelled, ShadowServeError
from shadowserve_dataplane.fetch.plan import FetchJob
from shadowserve_dataplane.sidecar.endpoint import EndpointFile
from shadowserve_dataplane.sidecar.switch import RemoteState

WATCH_SECONDS = 0.2
"""How often the endpoint file is looked at."""

_log = logging.getLogger(__name__)


class Attachment(Protocol):
    """A data plane that is ready for batches; it reports their chunks by itself."""

    @property
    def endpoint(self) -> str:
        """Where it is."""
        ...

    @property
    def busy(self) -> bool:
        """Whether batches are under way."""
        ...

    def submit(self, batch: FetchJob) -> None:
        """Start a batch."""
        ...

    def cancel(self, batch: int) -> None:
        """Stop a batch; harmless for one that is not known."""
        ...

    def silent(self, batch: int) -> bool:
        """Whether it was given that batch and said nothing of some of its chunks."""
        ...

    def break_off(self, reason: str) -> None:
        """Report every chunk under way as failed, a moment later; nothing is reported after that."""
        ...

    async def close(self) -> None:
        """Let go of the data plane."""
        ...


OnLost = Callable[[Attachment, str], None]
"""Takes an attachment that is lost, and why."""


class Attach(Protocol):
    """Makes attachments."""

    def __call__(self, endpoint: str, on_lost: OnLost) -> Awaitable[Attachment]:
        """Attach to the data plane at `endpoint`; `on_lost` is called if it is lost later. Raises `NetworkError`."""
        ...


class DataPlane:
    """A `Runner` on another machine, found by the endpoint file. `state` is what `switch.choose` needs to know."""

    def __init__(self, file: EndpointFile, attach: Attach) -> None:
        self.state = RemoteState()
        self._file = file
        self._attach = attach
        self._current: Attachment | None = None
        self._leaving: list[Attachment] = []
        self._attaching: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def look(self) -> None:
        """See what the file says now, and attach if that is due; to be called every `WATCH_SECONDS`."""
        endpoint = self._file.read()
        if endpoint != self.state.endpoint:
            _log.info("data plane: %s (was %s)", endpoint or "none", self.state.endpoint or "none")
            self.state = self.state.moved(endpoint)
            self._leave_current()
        self._close_idle()
        due = endpoint is not None and not self.state.attached and time.monotonic() >= self.state.retry_at()
        if due and self._attaching is None:
            self._attaching = asyncio.get_running_loop().create_task(self._attach_to(str(endpoint)))

    def submit(self, batch: FetchJob) -> None:
        """Start a batch at the data plane attached now; raises `Cancelled` when there is none."""
        if self._current is None:
            raise Cancelled("no data plane is attached")
        self._current.submit(batch)

    def cancel(self, batch: int) -> None:
        """Stop a batch, wherever it runs."""
        for attachment in self._attachments():
            attachment.cancel(batch)

    def overdue(self, batch: int) -> None:
        """A batch's deadline has passed: if its data plane said nothing at all, leave it alone for a while."""
        for attachment in self._attachments():
            if attachment.silent(batch):
                self._lost(attachment, "it did not answer before the deadline")

    def proved(self) -> None:
        """A chunk landed through the data plane: failures before that are over."""
        if self.state.attached and self.state.failures:
            self.state = self.state.proved()

    async def close(self) -> None:
        """Let go of every data plane."""
        if self._attaching is not None:
            self._attaching.cancel()
            await asyncio.wait([self._attaching])
        for attachment in self._attachments():
            attachment.break_off("the sidecar stops")
            await attachment.close()
        if self._closing:
            await asyncio.wait(self._closing)

    async def _attach_to(self, endpoint: str) -> None:
        try:
            attachment = await self._attach(endpoint, self._lost)
        except ShadowServeError as error:
            self._failed(endpoint, str(error))
            return
        except Exception as error:
            _log.exception("data plane %s: attaching failed in a way nobody thought of", endpoint)
            self._failed(endpoint, repr(error))
            return
        finally:
            self._attaching = None
        if endpoint != self.state.endpoint:
            self._release(attachment)
            return
        _log.info("data plane %s: attached", endpoint)
        self._current, self.state = attachment, self.state.ready()

    def _lost(self, attachment: Attachment, reason: str) -> None:
        if attachment is self._current:
            self._current = None
            self._failed(attachment.endpoint, reason)
        elif attachment in self._leaving:
            self._leaving.remove(attachment)
        else:
            return
        attachment.break_off(f"data plane {attachment.endpoint} was lost: {reason}")
        self._release(attachment)

    def _failed(self, endpoint: str, reason: str) -> None:
        if endpoint == self.state.endpoint:
            self.state = self.state.failed(time.monotonic())
            wait = self.state.retry_at() - time.monotonic()
            _log.warning("data plane %s: %s; next try in %.1f s", endpoint, reason, wait)

    def _leave_current(self) -> None:
        if self._current is not None:
            self._leaving.append(self._current)
            self._current = None

    def _close_idle(self) -> None:
        for attachment in [attachment for attachment in self._leaving if not attachment.busy]:
            self._leaving.remove(attachment)
            self._release(attachment)

    def _release(self, attachment: Attachment) -> None:
        task = asyncio.get_running_loop().create_task(attachment.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _attachments(self) -> list[Attachment]:
        return [*([self._current] if self._current else []), *self._leaving]
