"""The master's end of a worker, whatever carries the messages."""

from typing import Protocol

from shadowserve_capacity.prefetch.wire import CallOff, Order


class Link(Protocol):
    """One worker. It may be gone at any time, and says so by `received` raising WorkerError."""

    def fileno(self) -> int:
        """Return what to wait on until there is something to receive."""

    def received(self) -> bytes:
        """Return the next message, empty if there is none yet; raises WorkerError when the worker is gone."""

    def buffered(self) -> bool:
        """Return whether there is a message that `fileno` does not tell of."""

    def order(self, order: Order) -> None:
        """Send an order; raises WorkerError when the worker is gone."""

    def call_off(self, call: CallOff) -> None:
        """Ask the worker to stop with an order; raises WorkerError when it is gone."""

    def close(self) -> None:
        """End the worker."""


class Hiring(Protocol):
    """Where workers come from, at the start and afterwards."""

    def hired(self) -> list[Link]:
        """Return the workers that have come since the last call."""

    def replace(self, link: Link) -> Link | None:
        """Return another worker in place of one that is gone; None when there is none, or none so soon."""

    def fileno(self) -> int | None:
        """Return what to wait on for new workers; None when none come by themselves."""

    def close(self) -> None:
        """Hire no more."""
