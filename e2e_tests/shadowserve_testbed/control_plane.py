"""Commands of the control plane's programs: pure, from where things are."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shadowserve_testbed.pki import Identity

SERVICE_NETWORK = "10.96.0.0/16"
SERVICE_ADDRESS = "10.96.0.1"
"""The API server's own address among them: the first."""


@dataclass(frozen=True, slots=True)
class ApiServerFiles:
    """What the API server needs of the test bed's certificates."""

    authority: Path
    serving: Identity
    tokens: Identity


def flags(values: Mapping[str, str]) -> list[str]:
    """Return the words of a command line."""
    return [f"--{name}={value}" for name, value in values.items()]


def etcd_flags(data: Path, client_url: str, peer_url: str) -> list[str]:
    """Return etcd's arguments: one member, which does not wait for the disk."""
    values = {
        "data-dir": str(data),
        "listen-client-urls": client_url,
        "advertise-client-urls": client_url,
        "listen-peer-urls": peer_url,
        "initial-advertise-peer-urls": peer_url,
        "initial-cluster": f"default={peer_url}",
    }
    return ["--unsafe-no-fsync", *flags(values)]


def api_server_flags(files: ApiServerFiles, address: str, port: int, etcd: str) -> dict[str, str]:
    """Return the API server's arguments that every one of ours has."""
    return {
        "etcd-servers": etcd,
        "bind-address": address,
        "secure-port": str(port),
        "service-cluster-ip-range": SERVICE_NETWORK,
        "authorization-mode": "RBAC",
        "client-ca-file": str(files.authority),
        "tls-cert-file": str(files.serving.certificate),
        "tls-private-key-file": str(files.serving.key),
        "service-account-issuer": "https://kubernetes.default.svc",
        "service-account-key-file": str(files.tokens.certificate),
        "service-account-signing-key-file": str(files.tokens.key),
    }
