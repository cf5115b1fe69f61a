"""Settings of the data-plane process: one frozen record, from options or `SHADOWSERVE_*` variables."""

from dataclasses import dataclass
from pathlib import Path

from shadowserve_dataplane.errors import SettingsError
from shadowserve_dataplane.store.settings import StoreSettings

DEFAULT_MAX_CHUNK_BYTES = 64 << 20
"""Holds a lossless chunk of models with up to a third of a megabyte of KV a token; memory is used only when it is."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of mutual TLS: the process shows its certificate, and wants one signed by the authority."""

    certificate: Path
    key: Path
    authority: Path


@dataclass(frozen=True, slots=True)
class DataPlaneSettings:
    """`port` and `metrics_port` 0 mean any free port, told in `port_file` (one number a line: gRPC, metrics)."""

    store: StoreSettings
    host: str = "0.0.0.0"
    port: int = 9464
    metrics_port: int = 9466
    port_file: Path | None = None
    workers: int = 2
    shards: int = 4
    max_chunk_bytes: int = DEFAULT_MAX_CHUNK_BYTES
    drain_seconds: float = 10.0
    tls: TlsFiles | None = None


def tls_files(certificate: Path | None, key: Path | None, authority: Path | None) -> TlsFiles | None:
    """Return the files, None when none is named. Raises `SettingsError` when only some are, or one is not there."""
    if certificate is None and key is None and authority is None:
        return None
    if certificate is None or key is None or authority is None:
        raise SettingsError("--tls-certificate, --tls-key and --tls-authority go together: give all three or none")
    for file in (certificate, key, authority):
        if not file.is_file():
            raise SettingsError(f"{file}: no such file; it is named by a --tls option")
    return TlsFiles(certificate, key, authority)
