"""Settings of the connector: `kv_connector_extra_config`, parsed once into a frozen record."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from shadowserve_dataplane.chunks import CHUNK_TOKENS
from shadowserve_dataplane.errors import SettingsError

DEFAULT_SOCKET = "/run/shadowserve/sidecar.sock"


@dataclass(frozen=True, slots=True)
class ConnectorSettings:
    """What the engine's command line says about the cache; durations in seconds.

    `model_identity`: digest that replaces hashing the model's files (None = hash them).
    `idle_wait`: how long a step without a forward may wait for the next completion, to leave the cores to the fetch.
    `store_hold`: how long a finished request's blocks may be kept for stores that still read them.
    """

    socket: str = DEFAULT_SOCKET
    model_identity: bytes | None = None
    chunk_tokens: int = CHUNK_TOKENS
    idle_wait: float = 0.010
    store_hold: float = 2.0

    @classmethod
    def parse(cls, extra: Mapping[str, object]) -> "ConnectorSettings":
        """Return the settings in `extra`. Raises `SettingsError` naming the first key that cannot work."""
        unknown = sorted(set(extra) - set(_PARSERS))
        if unknown:
            known = ", ".join(sorted(_PARSERS))
            raise SettingsError(f"kv_connector_extra_config: unknown key {unknown[0]!r}; known keys: {known}")
        parsed: dict[str, object] = {}
        for key, value in extra.items():
            field, parse = _PARSERS[key]
            try:
                parsed[field] = parse(value)
            except (TypeError, ValueError) as error:
                raise SettingsError(f"kv_connector_extra_config.{key}: {error}, got {value!r}") from error
        return cls(**parsed)  # type: ignore[arg-type]


def _socket(value: object) -> str:
    if not isinstance(value, str) or not value.startswith("/"):
        raise ValueError("must be the absolute path of the sidecar's unix socket")
    return value


def _identity(value: object) -> bytes:
    if not isinstance(value, str) or not value:
        raise ValueError("must be a hexadecimal digest")
    return bytes.fromhex(value)


def _chunk_tokens(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ValueError("must be a positive number of tokens")
    return value


def _milliseconds(limit: float) -> Callable[[object], float]:
    def parse(value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= limit:
            raise ValueError(f"must be milliseconds between 0 and {limit:g}")
        return value / 1e3

    return parse


_PARSERS: dict[str, tuple[str, Callable[[object], object]]] = {
    "socket": ("socket", _socket),
    "model_identity": ("model_identity", _identity),
    "chunk_tokens": ("chunk_tokens", _chunk_tokens),
    "idle_wait_ms": ("idle_wait", _milliseconds(20)),
    "store_hold_ms": ("store_hold", _milliseconds(60_000)),
}
