"""Where the store is and how to be let in; one frozen record, parsed once."""

import math
import ssl
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from shadowserve_dataplane.errors import SettingsError
from shadowserve_dataplane.store.topology import Address, Topology

DEFAULT_PORT = 6379
_PLAIN = ("redis", "valkey")
_TLS = ("rediss", "valkeys")


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """How to reach the store; times are in seconds.

    `endpoints` of a cluster are any of its nodes, for a first look: the rest is discovered. `connect_timeout` covers
    TCP, TLS and authentication together; `read_timeout` is how long a shard that owes a reply may be silent before its
    connection is given up (a caller's deadline ends things earlier). `time_to_live` is set on every chunk put; None
    leaves it to the store's eviction. Raises `SettingsError` for what cannot work.
    """

    endpoints: tuple[Address, ...]
    topology: Topology = Topology.STANDALONE
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    connect_timeout: float = 1.0
    read_timeout: float = 5.0
    time_to_live: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "endpoints", tuple(Address(*endpoint) for endpoint in self.endpoints))
        if not self.endpoints:
            raise SettingsError("store endpoints: none given; name at least one host:port")
        if self.topology is Topology.STANDALONE and len(self.endpoints) > 1:
            raise SettingsError(
                f"store endpoints: {len(self.endpoints)} given, but a Standalone store has one; "
                "leave one, or set topology to Cluster"
            )
        if self.username and self.password is None:
            raise SettingsError("store username: given without a password; set the password too")
        for name in ("connect_timeout", "read_timeout", "time_to_live"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise SettingsError(f"store {name}: {value} is not a positive number of seconds")

    @classmethod
    def parse_url(cls, url: str, tls: ssl.SSLContext | None = None) -> "StoreSettings":
        """Return the settings in `redis://[user:password@]host:port[,host:port...][?topology=Cluster]`.

        `rediss://` means TLS, with `tls` as context or else the system's certificate authorities; `valkey://` and
        `valkeys://` mean the same two. User and password are percent-decoded. Raises `SettingsError`, which never
        repeats the password.
        """
        parts = urlsplit(url)
        if parts.scheme not in _PLAIN + _TLS:
            raise SettingsError(f"store URL: scheme {parts.scheme!r} is none of {', '.join(_PLAIN + _TLS)}")
        if parts.path not in ("", "/", "/0") or parts.fragment:
            raise SettingsError(f"store URL: {parts.path!r}: only database 0 is used; leave the path away")
        if parts.scheme in _PLAIN and tls is not None:
            raise SettingsError(f"store URL: a TLS context was given for {parts.scheme}://; write {parts.scheme}s://")
        credentials, _, hosts = parts.netloc.rpartition("@")
        username, colon, password = credentials.partition(":")
        return cls(
            endpoints=tuple(_address(host) for host in hosts.split(",") if host),
            topology=_topology(parts.query),
            username=unquote(username) or None,
            password=unquote(password) if colon else None,
            tls=(tls or ssl.create_default_context()) if parts.scheme in _TLS else None,
        )


def _address(text: str) -> Address:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(DEFAULT_PORT)
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise SettingsError(f"store URL: {text!r} is not host:port (write an IPv6 address in brackets)")
    return Address(host.strip("[]"), int(port))


def _topology(query: str) -> Topology:
    options = dict(parse_qsl(query, keep_blank_values=True))
    word = options.pop("topology", Topology.STANDALONE.value)
    if options:
        raise SettingsError(f"store URL: unknown option {', '.join(sorted(options))}; only topology is known")
    try:
        return Topology(word)
    except ValueError as error:
        raise SettingsError(f"store URL: topology {word!r} is none of {', '.join(Topology)}") from error
