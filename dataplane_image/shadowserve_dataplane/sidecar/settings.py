"""Settings of the sidecar: `config.json` (a ConfigMap in a pod), parsed once at the edge into frozen records.

One record per concern, keys as in the file. What cannot work ends as `SettingsError` with the path of the key, what
was found, and what would work; nothing after this module looks at raw settings again.
"""

import hashlib
import re
import ssl
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from shadowserve_dataplane.errors import SettingsError
from shadowserve_dataplane.renewal import CertificateFiles, RenewedContext
from shadowserve_dataplane.store.settings import StoreSettings
from shadowserve_dataplane.store.topology import Address, Topology

Milliseconds = Annotated[int, msgspec.Meta(ge=1, le=3_600_000)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=315_360_000)]
Count = Annotated[int, msgspec.Meta(ge=1, le=65_536)]
Size = Annotated[int, msgspec.Meta(ge=4096, le=1 << 40)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
NonEmpty = Annotated[str, msgspec.Meta(min_length=1)]
PlaceName = Literal["DPU", "Host"]

_MI = 1 << 20


class _Section(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A part of config.json: camelCase keys, unknown ones refused."""


class TlsFiles(_Section, frozen=True):
    """PEM files of one TLS client or server. Without `authority_file` the system's certificate authorities count."""

    authority_file: NonEmpty | None = None
    certificate_file: NonEmpty | None = None
    key_file: NonEmpty | None = None


class StoreSection(_Section, frozen=True):
    """Where the store is. `password_file` is read once at start; a final newline does not belong to the password."""

    endpoints: Annotated[list[NonEmpty], msgspec.Meta(min_length=1)]
    topology: Literal["Standalone", "Cluster"] = "Standalone"
    username: NonEmpty | None = None
    password_file: NonEmpty | None = None
    tls: TlsFiles | None = None
    connect_timeout_ms: Milliseconds = 1000
    read_timeout_ms: Milliseconds = 5000


class Limits(_Section, frozen=True):
    """Past a deadline the engine computes. `time_to_live_seconds` None leaves old chunks to the store's eviction."""

    lookup_deadline_ms: Milliseconds = 20
    fetch_deadline_ms: Milliseconds = 5000
    store_deadline_ms: Milliseconds = 5000
    max_in_flight_chunks: Count = 64
    time_to_live_seconds: Seconds | None = None


class Placement(_Section, frozen=True):
    """Where a fetch may run, best first; recomputing is always the last resort.

    `workers`: threads of the pipeline inside the sidecar. `receiver_host`/`receiver_port`: where this sidecar listens
    for what a remote data plane places (port 0 = any free one); `advertised_host`: the name that the data plane is
    told, None = the address from which this pod reaches it. `server_name`: the name in the certificates of data planes,
    which are reached by address; None = the address itself has to be in them.
    """

    order: Annotated[list[PlaceName], msgspec.Meta(min_length=1, max_length=2)] = msgspec.field(
        default_factory=lambda: ["DPU", "Host"]
    )
    workers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    receiver_host: NonEmpty = "0.0.0.0"
    receiver_port: Port = 0
    advertised_host: NonEmpty | None = None
    server_name: NonEmpty | None = None
    tls: TlsFiles | None = None


class Config(_Section, frozen=True):
    """The whole of config.json. Sizes are in bytes; `file_mode` is octal and holds for socket and buffer files.

    `scope` names the pool: unless isolation is `Shared`, sidecars of another scope find nothing of this one's.
    `settings` names these settings; it is told to whoever asks what this sidecar was started with.
    """

    store: StoreSection
    tier: Literal["Lossless", "High", "Balanced", "Compact"] = "Balanced"
    landing: Literal["Codes", "Values"] = "Codes"
    landing_buffer_bytes: Size = 512 * _MI
    staging_buffer_bytes: Size = 128 * _MI
    staging_slots: Count = 8
    limits: Limits = Limits()
    placement: Placement = Placement()
    isolation: Literal["Shared", "PerPool", "PerTenant"] = "PerPool"
    salt_file: NonEmpty | None = None
    scope: NonEmpty | None = None
    settings: str = ""
    file_mode: Annotated[str, msgspec.Meta(pattern="^0?[0-7]{3}$")] = "0660"
    metrics_port: Port = 9465


@dataclass(frozen=True, slots=True)
class Paths:
    """Where the sidecar's files are; `endpoint` names the data plane (see `endpoint.py`), None = never any.

    The port of the metrics is written to `metrics_port`, if there is one.
    """

    run: Path
    landing: Path
    endpoint: Path | None = None
    metrics_port: Path | None = None

    @property
    def socket(self) -> Path:
        """The unix socket for the connector."""
        return self.run / "sidecar.sock"


def parse_config(text: bytes | str) -> Config:
    """Return the settings in `text`. Raises `SettingsError` that names the key and the fix."""
    try:
        config = msgspec.json.decode(text, type=Config)
    except msgspec.ValidationError as error:
        raise SettingsError(f"config.json: {_explain(str(error))}") from error
    except msgspec.DecodeError as error:
        raise SettingsError(f"config.json: not JSON: {error}") from error
    _check(config)
    return config


def read_config(path: Path) -> Config:
    """Return the settings in the file; raises `SettingsError` also when it cannot be read."""
    try:
        return parse_config(path.read_bytes())
    except OSError as error:
        raise SettingsError(f"config file {path}: {error.strerror}; --config names a readable file") from error


def store_settings(config: Config) -> StoreSettings:
    """Return the store client's settings; reads the password and TLS files. Raises `SettingsError`."""
    section = config.store
    password = _secret(section.password_file, "store.passwordFile") if section.password_file else None
    return StoreSettings(
        endpoints=tuple(_address(text) for text in section.endpoints),
        topology=Topology(section.topology),
        username=section.username,
        password=None if password is None else password.decode("utf-8", "strict"),
        tls=None if section.tls is None else client_context(section.tls, "store.tls"),
        connect_timeout=section.connect_timeout_ms / 1e3,
        read_timeout=section.read_timeout_ms / 1e3,
        time_to_live=config.limits.time_to_live_seconds,
    )


def namespace_salt(config: Config) -> bytes:
    """Return what is mixed into every namespace: `saltFile` and `scope`, nothing when the cache is shared."""
    if config.isolation == "Shared":
        return b""
    salt = _secret(config.salt_file, "saltFile") if config.salt_file else b""
    if config.scope is None:
        return salt
    parts = struct.pack("<I", len(salt)) + salt + config.scope.encode()
    return hashlib.blake2b(parts, digest_size=32, person=b"shadowserve-pool").digest()


def scoped(config: Config, scope: str | None) -> Config:
    """Return the settings with another scope, if one is given: a config.json may be that of several pools."""
    return msgspec.structs.replace(config, scope=scope) if scope else config


def client_context(files: TlsFiles, key: str) -> ssl.SSLContext:
    """Return a context that verifies the server, and shows a certificate if there is one. Raises `SettingsError`."""
    try:
        return RenewedContext(_certificate_files(files))
    except OSError as error:
        raise SettingsError(f"{key}: {error}; the files must be readable PEM") from error


def server_context(files: TlsFiles, key: str) -> ssl.SSLContext:
    """Return a context that demands a certificate of `authorityFile` from whoever connects. Raises `SettingsError`."""
    if not (files.authority_file and files.certificate_file):
        raise SettingsError(f"{key}: authorityFile, certificateFile and keyFile are all needed for mutual TLS")
    try:
        return RenewedContext(_certificate_files(files), server=True)
    except OSError as error:
        raise SettingsError(f"{key}: {error}; the files must be readable PEM") from error


def _certificate_files(files: TlsFiles) -> CertificateFiles:
    named = (files.authority_file, files.certificate_file, files.key_file)
    return CertificateFiles(*(None if name is None else Path(name) for name in named))


def _check(config: Config) -> None:
    order = config.placement.order
    if len(set(order)) != len(order):
        raise SettingsError(f"config.json: placement.order: {order} names a place twice; name each once")
    if config.isolation == "PerTenant" and config.salt_file is None:
        raise SettingsError(
            "config.json: saltFile: missing, but isolation PerTenant mixes a secret into every key; "
            "name the file that holds it, or set isolation to PerPool"
        )
    if config.store.topology == "Standalone" and len(config.store.endpoints) > 1:
        raise SettingsError(
            f"config.json: store.endpoints: {len(config.store.endpoints)} given, but a Standalone store has one; "
            "leave one, or set store.topology to Cluster"
        )
    for text in config.store.endpoints:
        _address(text)


def _address(text: str) -> Address:
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isdecimal() and 0 < int(port) < 65_536):
        raise SettingsError(f"config.json: store.endpoints: {text!r} is not host:port, for example store:6379")
    return Address(host.strip("[]"), int(port))


def _secret(path: str, key: str) -> bytes:
    try:
        secret = Path(path).read_bytes()
    except OSError as error:
        raise SettingsError(f"config.json: {key}: {path}: {error.strerror}; mount the Secret there") from error
    return secret.removesuffix(b"\n")


def _explain(error: str) -> str:
    what, _, where = error.partition(" - at `")
    path = where.rstrip("`").removeprefix("$").lstrip(".") or "top level"
    unknown = re.search(r"contains unknown field `(.*)`", what)
    if unknown:
        return f"{path}: unknown key {unknown[1]!r}; known keys: {', '.join(_known_keys(path))}"
    missing = re.search(r"missing required field `(.*)`", what)
    if missing:
        return f"{path}: key {missing[1]!r} is missing and has no default; add it"
    return f"{path}: {what[0].lower()}{what[1:]}; write such a value, or leave the key away for its default"


_SECTIONS: dict[str, type[_Section]] = {
    "top level": Config,
    "store": StoreSection,
    "limits": Limits,
    "placement": Placement,
    "store.tls": TlsFiles,
    "placement.tls": TlsFiles,
}


def _known_keys(path: str) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(_SECTIONS[path])]


def file_mode(config: Config) -> int:
    """Return the permission bits of the socket and the buffer files."""
    return int(config.file_mode, 8)


def default_paths() -> Paths:
    """Return where the files are inside a pod."""
    return Paths(Path("/run/shadowserve"), Path("/run/shadowserve/landing"), Path("/etc/shadowserve/pod/annotations"))
