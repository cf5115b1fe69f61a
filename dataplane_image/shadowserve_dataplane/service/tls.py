"""Mutual TLS of the data plane, with certificate files that may be renewed while it runs."""

import ssl
from pathlib import Path

import grpc

from shadowserve_dataplane.errors import SettingsError
from shadowserve_dataplane.renewal import CertificateFiles, RenewedContext
from shadowserve_dataplane.service.settings import TlsFiles


def placement_context(files: TlsFiles) -> ssl.SSLContext:
    """Return what placement streams are made with: both sides show a certificate of the same authority.

    A sidecar is reached by its pod's address, which no certificate names: the authority and the token say who it is.
    Raises `SettingsError` when the files are no certificates.
    """
    context = _context(files)
    context.check_hostname = False
    return context


def receiver_context(files: TlsFiles) -> ssl.SSLContext:
    """Return what a placement stream is received with, as a sidecar would. Raises `SettingsError`."""
    return _context(files, server=True)


def store_context(url: str, files: TlsFiles | None, authority: Path | None) -> ssl.SSLContext | None:
    """Return what connections to the store are made with; None leaves it to the URL.

    The store is trusted if its certificate is of `authority`, else of the authority that sidecars are signed by; it is
    shown the data plane's own certificate. Raises `SettingsError`.
    """
    if authority is None and (files is None or not url.startswith(("rediss://", "valkeys://"))):
        return None
    if files is not None:
        return _context(files, authority)
    try:
        return RenewedContext(CertificateFiles(authority))
    except OSError as error:
        raise SettingsError(f"--store-authority: {error}") from error


def _context(files: TlsFiles, authority: Path | None = None, server: bool = False) -> ssl.SSLContext:
    try:
        return RenewedContext(CertificateFiles(authority or files.authority, files.certificate, files.key), server)
    except OSError as error:
        raise SettingsError(f"--tls-certificate, --tls-key, --tls-authority: {error}") from error


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Return credentials that are read again for every new connection; if that fails, gRPC keeps those it had."""

    def read() -> grpc.ServerCertificateConfiguration:
        pair = (files.key.read_bytes(), files.certificate.read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], files.authority.read_bytes())

    return grpc.dynamic_ssl_server_credentials(read(), read, require_client_authentication=True)
