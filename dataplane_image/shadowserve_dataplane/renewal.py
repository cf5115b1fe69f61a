"""TLS contexts that follow their certificate files: what is renewed on disk holds for the next connection.

A `RenewedContext` is an ordinary `ssl.SSLContext`, so whoever uses it needs to know nothing: it looks at its files when
a connection begins. Connections that are open go on. An authority that is replaced stays trusted until the restart.
"""

import logging
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)
_Stamp = list[tuple[int, int, int]]


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """PEM files; without `authority` the system's authorities count, without `certificate` none is shown."""

    authority: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    @property
    def files(self) -> list[Path]:
        """Those that are named."""
        return [path for path in (self.authority, self.certificate, self.key) if path is not None]

    def stamp(self) -> _Stamp:
        """Return what changes when a file does. Raises `OSError` for one that is not there."""
        return [(about.st_mtime_ns, about.st_ino, about.st_size) for about in map(Path.stat, self.files)]


class RenewedContext(ssl.SSLContext):
    """A context for one side; both verify the other one. Raises `OSError` when the files are no good at the start."""

    _source: CertificateFiles
    _seen: _Stamp
    _renewing: threading.Lock

    def __new__(cls, source: CertificateFiles, server: bool = False) -> "RenewedContext":
        """Return a context for connecting, or with `server` for being connected to."""
        made = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        made.verify_mode = ssl.CERT_REQUIRED
        made._renewing = threading.Lock()
        made._source, made._seen = source, source.stamp()
        if source.authority is None:
            made.load_default_certs()
        made._read()
        return made

    def wrap_socket(self, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        """As in `SSLContext`, with the files as they are now."""
        self.renew()
        return super().wrap_socket(*arguments, **options)

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """As in `SSLContext`, with the files as they are now."""
        self.renew()
        return super().wrap_bio(*arguments, **options)

    def renew(self) -> None:
        """Read the files again if they have changed; files that are no good are said in the log, and tried again."""
        with self._renewing:
            try:
                stamp = self._source.stamp()
                if stamp == self._seen:
                    return
                self._read()
            except OSError as error:  # half renewed, perhaps
                _log.warning("certificate files cannot be read again: %s", error)
                return
            self._seen = stamp
        _log.info("certificates were renewed: %s", ", ".join(map(str, self._source.files)))

    def _read(self) -> None:
        if self._source.authority is not None:
            self.load_verify_locations(cafile=str(self._source.authority))
        if self._source.certificate is not None:
            self.load_cert_chain(self._source.certificate, self._source.key)
