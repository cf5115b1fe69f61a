"""One store process, spoken to through the client library; its errors become ours here and nowhere else."""

import asyncio
import ssl
from collections.abc import Callable, Sequence
from typing import Any

from valkey.asyncio import BlockingConnectionPool, Connection, Valkey
from valkey.asyncio.retry import Retry
from valkey.backoff import ExponentialBackoff
from valkey.exceptions import (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    AuthorizationError,
    InvalidResponse,
    NoPermissionError,
    ResponseError,
    ValkeyError,
)
from valkey.exceptions import ConnectionError as ValkeyConnectionError

from shadowserve_dataplane.errors import NetworkError, PeerProtocolError, ShadowServeError, StoreRefused
from shadowserve_dataplane.store.settings import StoreSettings
from shadowserve_dataplane.store.topology import Address

Reply = bytes | int | str | list[Any] | bool | None
"""What a store answers to one command, as the client library returns it."""

_CONNECTIONS = 4
_RECONNECTS = 2
_BACKOFF = ExponentialBackoff(cap=0.25, base=0.05)


class Node:
    """One store process; safe to use from any number of tasks of one event loop."""

    def __init__(self, address: Address, settings: StoreSettings) -> None:
        self.address = address
        self._tls = settings.tls is not None
        self._heard = False
        self._made: list[_Connection] = []
        self._closed = False
        self._client = Valkey.from_pool(_pool(address, settings, self._connection))

    async def run(self, commands: Sequence[tuple[bytes | str, ...]]) -> list[Reply | ResponseError]:
        """Return the replies to `commands`, sent together; an error reply is returned, not raised.

        Raises `NetworkError`, `PeerProtocolError` and `StoreRefused` (not let in).
        """
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        try:
            replies: list[Reply | ResponseError] = await pipeline.execute(raise_on_error=False)
        except (ValkeyError, OSError) as error:
            problem = translated(error, self.address)
            if isinstance(problem, NetworkError) and not self._heard:
                problem = NetworkError(f"{problem} {tls_hint(self._tls)}")
            raise problem from error
        self._heard = True
        return replies

    def close(self) -> None:
        """Close all connections, also those still being made, for good; the event loop's next turn closes the sockets.

        Not the library's own way: who is cancelled while it waits for the farewells leaves connections open.
        """
        self._closed = True
        for connection in self._made:
            connection.abort()

    def _connection(self, **options: Any) -> Connection:
        connection = _Connection(**options)
        if self._closed:
            connection.abort()
        self._made.append(connection)  # the pool keeps what it made, so these are never more than it may have
        return connection


def translated(error: Exception, address: Address) -> ShadowServeError:
    """Return our error for one of the client library's (or the operating system's), naming what to change."""
    cause = error.__context__
    if isinstance(cause, ssl.SSLError):
        return tls_refused(cause, address)
    if isinstance(error, (AuthenticationError, AuthenticationWrongNumberOfArgsError, AuthorizationError)):
        return not_let_in(str(error), address)
    if isinstance(error, NoPermissionError):
        return no_permission(str(error), address)
    if isinstance(error, InvalidResponse):
        return PeerProtocolError(f"{address}: {error}")
    if isinstance(error, ResponseError):
        return StoreRefused(f"{address} answered: {error}")
    if isinstance(error, (OSError, ValkeyConnectionError, asyncio.IncompleteReadError)):
        return NetworkError(f"{address}: {error}")
    return NetworkError(f"{address}: {type(error).__name__}: {error}")


def not_let_in(message: str, address: Address) -> StoreRefused:
    """Return the error for a store that does not accept the credentials, or wants some."""
    return StoreRefused(f"{address} refused authentication ({message}): check username and password of the store")


def no_permission(message: str, address: Address) -> StoreRefused:
    """Return the error for a store user that lacks rights."""
    return StoreRefused(
        f"{address}: {message}: give the store's user the rights listed in shadowserve_dataplane.store.client"
    )


def tls_refused(error: ssl.SSLError, address: Address) -> StoreRefused:
    """Return the error for a TLS handshake that cannot succeed as configured."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return StoreRefused(
            f"{address}: its certificate is not accepted ({error.verify_message}): check the store's tls settings "
            "(certificate authority, host name)"
        )
    return StoreRefused(
        f"{address}: TLS handshake failed ({error.reason or error}): check the store's tls settings; "
        "a store without TLS is named by redis://, not rediss://"
    )


def tls_hint(encrypted: bool) -> str:
    """Return what to suspect when a peer says nothing, or hangs up, before its first reply."""
    if encrypted:
        return "(before its first reply: is it a store without TLS, that is redis://?)"
    return "(before its first reply: does it expect TLS, that is rediss://?)"


class _Connection(Connection):
    """A connection that can be ended at once in any state.

    It has the `ssl.SSLContext` we were given; the library's own makes one from file names only.
    """

    def __init__(self, *, tls: ssl.SSLContext | None, **kwargs: Any) -> None:
        self._tls = tls
        self._aborted = False
        super().__init__(**kwargs)

    def abort(self) -> None:
        """Close without a farewell, and never connect again."""
        self._aborted = True
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None

    async def disconnect(self, nowait: bool = False) -> None:
        """Close at once, with what is still unsent: a peer that takes nothing would keep the socket open for good."""
        if self._writer is not None:
            self._writer.transport.abort()
        await super().disconnect(nowait=True)

    async def _connect(self) -> None:
        if not self._aborted:
            await super()._connect()  # type: ignore[no-untyped-call]
        if self._aborted:
            self.abort()
            raise ValkeyConnectionError("closed while it connected")

    def _connection_arguments(self) -> dict[str, Any]:
        encryption = {"ssl": self._tls, "server_hostname": self.host} if self._tls else {}
        return {**super()._connection_arguments(), **encryption}


def _pool(address: Address, settings: StoreSettings, connection: Callable[..., Connection]) -> BlockingConnectionPool:
    # No lib_name and lib_version: they cost a CLIENT SETINFO, which a user of least rights may not send.
    options: dict[str, Any] = {
        "host": address.host,
        "port": address.port,
        "username": settings.username,
        "password": settings.password,
        "socket_timeout": settings.read_timeout,
        "socket_connect_timeout": settings.connect_timeout,
        "socket_keepalive": True,
        "lib_name": None,
        "lib_version": None,
        "retry": Retry(_BACKOFF, _RECONNECTS, supported_errors=(ValkeyConnectionError,)),
        "max_connections": _CONNECTIONS,
        "timeout": None,
        "tls": settings.tls,
    }
    return BlockingConnectionPool(connection_class=connection, **options)  # type: ignore[arg-type]  # it only calls it
