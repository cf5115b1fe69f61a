"""Certificates are renewed under a running process: the next connection has them, half-written files do no harm."""

import shutil
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from real_store import Certificate, RedisServer

from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.renewal import CertificateFiles, RenewedContext
from shadowserve_dataplane.store.client import StoreClient


@pytest.fixture
def first(tmp_path: Path) -> Certificate:
    return Certificate.make(tmp_path / "first")


@pytest.fixture
def second(tmp_path: Path) -> Certificate:
    return Certificate.make(tmp_path / "second")


def files_of(certificate: Certificate) -> CertificateFiles:
    return CertificateFiles(certificate.authority, certificate.certificate, certificate.key)


def replace(old: Certificate, new: Certificate) -> None:
    for name in ("authority", "certificate", "key"):
        fresh = getattr(old, name).with_suffix(".new")
        shutil.copy(getattr(new, name), fresh)
        fresh.rename(getattr(old, name))


def shown(client: ssl.SSLContext, server: ssl.SSLContext) -> tuple[bytes | None, bytes | None]:
    """Shake hands; return the certificates that the client and the server saw. Raises `ssl.SSLError`."""
    ends = socket.socketpair()
    seen: list[bytes | None] = []

    def serve() -> None:
        try:
            with server.wrap_socket(ends[1], server_side=True) as stream:
                seen.append(stream.getpeercert(True))
        except OSError:
            ends[1].close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(ends[0], server_hostname="127.0.0.1") as stream:
            stream.settimeout(60)
            certificate = stream.getpeercert(True)
            stream.recv(1)  # with TLS 1.3 the server's refusal comes after the handshake
    finally:
        thread.join(60)
    return certificate, seen[0] if seen else None


def test_both_sides_show_what_is_on_disk_now(first: Certificate, second: Certificate) -> None:
    client, server = RenewedContext(files_of(first)), RenewedContext(files_of(first), server=True)
    before = shown(client, server)
    assert before[0] == before[1] is not None
    replace(first, second)
    after = shown(client, server)
    assert after[0] == after[1] is not None
    assert after[0] != before[0]


def test_half_written_files_leave_what_was_there(first: Certificate, second: Certificate) -> None:
    client, server = RenewedContext(files_of(first)), RenewedContext(files_of(first), server=True)
    before = shown(client, server)
    key = first.key.read_bytes()
    first.key.write_bytes(key[: len(key) // 2])
    assert shown(client, server) == before
    replace(first, second)
    assert shown(client, server) != before


def test_a_stranger_is_refused(first: Certificate, second: Certificate) -> None:
    server = RenewedContext(files_of(first), server=True)
    stranger = RenewedContext(CertificateFiles(first.authority, second.certificate, second.key))
    with pytest.raises(OSError, match=r"(?i)unknown ca|certificate|closed|reset|eof"):
        shown(stranger, server)
    with pytest.raises(ssl.SSLError):
        shown(RenewedContext(files_of(second)), server)


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_text("no certificate")])
def test_bad_files_are_refused_at_the_start(first: Certificate, spoil: Callable[[Path], object]) -> None:
    spoil(first.certificate)
    with pytest.raises(OSError, match=r"No such file|PEM"):
        RenewedContext(files_of(first))


async def test_a_store_client_trusts_a_store_whose_authority_was_renewed(
    first: Certificate, second: Certificate, tmp_path: Path
) -> None:
    trusted = tmp_path / "authority.pem"
    shutil.copy(second.authority, trusted)
    context = RenewedContext(CertificateFiles(trusted))
    shutil.copy(first.authority, trusted)
    with RedisServer(tmp_path / "store", tls=first) as server:
        client = StoreClient(server.settings(tls=context))
        try:
            await client.ping(Deadline.after(60))
        finally:
            await client.close()
