"""A store that follows a script: for what a real server does only when it is broken."""

import select
import socket
import threading
from collections.abc import Callable, Sequence
from types import TracebackType

from shadowserve_dataplane.store.topology import Address

PEER_SECONDS = 60.0


class Peer:
    """The server's end of one connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._file = connection.makefile("rb")

    def command(self) -> list[bytes]:
        """Return the next command; empty when the client has hung up."""
        header = self._file.readline()
        if not header:
            return []
        parts = []
        for _ in range(int(header[1:])):
            size = int(self._file.readline()[1:])
            parts.append(self._file.read(size + 2)[:-2])
        return parts

    def send(self, data: bytes) -> None:
        """Send `data`."""
        self._connection.sendall(data)

    def send_value(self, value: bytes) -> None:
        """Send `value` as GET does."""
        self.send(b"$%d\r\n%b\r\n" % (len(value), value))

    def wait_for_hang_up(self) -> None:
        """Say nothing until the client has gone."""
        while self._file.read(65536):
            pass

    def pause(self, seconds: float) -> None:
        """Wait `seconds`, or until the client says something or hangs up."""
        select.select([self._connection], [], [], seconds)

    def close(self) -> None:
        """Close the connection."""
        self._file.close()
        self._connection.close()


Script = Callable[[Peer], None]


class ScriptedStore:
    """Plays one script per connection, in order; further connections find nobody listening."""

    def __init__(self, scripts: Sequence[Script]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(PEER_SECONDS)
        self.address = Address("127.0.0.1", self._listener.getsockname()[1])
        self._scripts = scripts
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._play, daemon=True)
        self.played = 0
        self.errors: list[Exception] = []

    def __enter__(self) -> "ScriptedStore":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join(2 * PEER_SECONDS)
        self._listener.close()
        assert not self._thread.is_alive(), "the script did not end"

    def _play(self) -> None:
        for script in self._scripts:
            try:
                connection, _ = self._listener.accept()
            except TimeoutError as error:
                self.errors.append(error)
                return
            connection.settimeout(PEER_SECONDS)
            peer = Peer(connection)
            try:
                script(peer)
            except OSError as error:
                self.errors.append(error)
            finally:
                peer.close()
            self.played += 1
        self._listener.close()
