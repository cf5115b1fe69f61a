"""Errors, sorted by what the caller can do about them.

Everything here ends, for the engine, as "these blocks failed to load": a cache fault never fails a request.
"""

from enum import StrEnum


class ShadowServeError(Exception):
    """Base of all errors raised on purpose by this package."""


class DeadlineExceeded(ShadowServeError):
    """The time allowed has passed: give up, the engine recomputes."""


class Cancelled(ShadowServeError):
    """The caller cancelled this work: nothing more will be written."""


class NetworkError(ShadowServeError):
    """A peer cannot be reached or hung up: reconnect with backoff."""


class PeerProtocolError(ShadowServeError):
    """A peer sent what the protocol does not allow: close the connection, nothing it said can be trusted."""


class StoreRefused(ShadowServeError):
    """The store answered with an error (no permission, out of memory, ...): retrying unchanged will not help."""


class SettingsError(ShadowServeError):
    """A setting cannot work: the message names the field and the fix."""


class ChunkRefused(ShadowServeError):
    """The chunk is whole but not for this reader: unknown version, codec or tier, or another key or shape."""


class ChunkDamaged(ShadowServeError):
    """The chunk's bytes are not those that were written; says where, and the expected and found checksum."""

    def __init__(self, place: str, expected: int | str, found: int | str) -> None:
        self.place = place
        self.expected = expected
        self.found = found
        super().__init__(f"damaged chunk: {place}: expected {_shown(expected)}, found {_shown(found)}")


def _shown(value: int | str) -> str:
    return f"{value:#018x}" if isinstance(value, int) else value


class ChunkOutcome(StrEnum):
    """How the fetch of one chunk ended; also the `result` label of metrics."""

    LANDED = "landed"
    MISSING = "missing"
    REFUSED = "refused"
    DAMAGED = "damaged"
    STORE_ERROR = "store_error"
    PLACE_ERROR = "place_error"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
