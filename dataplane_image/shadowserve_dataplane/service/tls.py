"""Mutual TLS of the data plane, with certificate files that may be renewed while it runs."""

import logging
import ssl
import threading

import grpc

from shadowserve_dataplane.errors import SettingsError
from shadowserve_dataplane.service.settings import TlsFiles

_log = logging.getLogger(__name__)


class PlacementTls:
    """Gives what placement streams are made with: both sides show a certificate of the same authority.

    A sidecar is reached by its pod's address, which no certificate names: the authority and the token say who it is.
    Raises `SettingsError` when the files are no certificates at the start; later it keeps those that were good.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        try:
            self._seen, self._context = self._stamp(), self._read()
        except OSError as error:
            raise SettingsError(f"--tls-certificate, --tls-key, --tls-authority: {error}") from error

    def __call__(self) -> ssl.SSLContext:
        """Return the context for a new connection; safe from any thread."""
        with self._lock:
            try:
                stamp = self._stamp()
                if stamp != self._seen:
                    self._context = self._read()
                    self._seen = stamp
            except OSError as error:  # half renewed, perhaps
                _log.warning("the certificate files cannot be read again: %s", error)
            return self._context

    def _stamp(self) -> list[tuple[int, int, int]]:
        files = (self._files.certificate, self._files.key, self._files.authority)
        return [(about.st_mtime_ns, about.st_ino, about.st_size) for about in (file.stat() for file in files)]

    def _read(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(self._files.authority))
        context.check_hostname = False
        context.load_cert_chain(self._files.certificate, self._files.key)
        return context


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Return credentials that are read again for every new connection; if that fails, gRPC keeps those it had."""

    def read() -> grpc.ServerCertificateConfiguration:
        pair = (files.key.read_bytes(), files.certificate.read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], files.authority.read_bytes())

    return grpc.dynamic_ssl_server_credentials(read(), read, require_client_authentication=True)
