"""The conversation with the sidecar across its deaths, refusals and restarts."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from connector_fakes import hello
from real_store import wait_until
from stub_sidecar import Behaviour, StubSidecar

from shadowserve_dataplane.connector.client import SidecarClient
from shadowserve_dataplane.connector.messages import Found, FromSidecar, Hello, Lookup, Welcome


class Heard:
    """Records what the client tells its half."""

    def __init__(self) -> None:
        self.events: list[object] = []
        self.refuse_terms = False

    def session_began(self, welcome: Welcome) -> None:
        if self.refuse_terms:
            raise ValueError("slots too small")
        self.events.append(welcome.session)

    def session_lost(self) -> None:
        self.events.append("lost")

    def received(self, message: FromSidecar) -> None:
        self.events.append(message)


@pytest.fixture
def socket(tmp_path: Path) -> str:
    return str(tmp_path / "s")


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def client(socket: str, heard: Heard) -> Iterator[SidecarClient]:
    client = SidecarClient(socket, hello("scheduler"), heard)
    client.start()
    yield client
    client.close()
    assert not any(thread.name == "shadowserve-scheduler" for thread in threading.enumerate())


def test_a_session_begins_whenever_the_sidecar_comes(client: SidecarClient, socket: str, heard: Heard) -> None:
    client.send(Lookup(0, 1, [[b"k"]]))
    assert client.session is None
    stub = StubSidecar(socket, first_session=5)
    wait_until(lambda: client.session is not None, "a session")
    assert heard.events == [5]
    client.send(Lookup(5, 2, [[b"k"]]))
    wait_until(lambda: Found(2, 0) in heard.events, "an answer")
    assert [message.lookup for message in stub.of(Lookup)] == [2]
    stub.close()


def test_a_dead_sidecar_ends_the_session_and_a_new_one_begins_another(
    client: SidecarClient, socket: str, heard: Heard
) -> None:
    stub = StubSidecar(socket)
    wait_until(lambda: client.session is not None, "a session")
    stub.close()
    wait_until(lambda: client.session is None, "the loss")
    again = StubSidecar(socket, first_session=9)
    wait_until(lambda: client.session is not None, "another session")
    assert heard.events == [1, "lost", 9]
    again.close()


def test_a_sidecar_that_forgot_the_session_is_greeted_again_at_once(
    client: SidecarClient, socket: str, heard: Heard
) -> None:
    stub = StubSidecar(socket)
    wait_until(lambda: client.session is not None, "a session")
    stub.forget_sessions()
    client.send(Lookup(1, 1, [[b"k"]]))
    wait_until(lambda: heard.events == [1, "lost", 2], "another session")
    stub.close()


@pytest.mark.parametrize("behaviour", [Behaviour(refuse="too old"), Behaviour(protocol=99)])
def test_a_refusal_is_said_once_and_the_engine_goes_on(
    client: SidecarClient, socket: str, behaviour: Behaviour, caplog: pytest.LogCaptureFixture
) -> None:
    stub = StubSidecar(socket, behaviour)
    reason = behaviour.refuse or "protocol 99"
    wait_until(lambda: reason in caplog.text, "the reason in the log")
    assert client.session is None
    assert len(stub.of(Hello)) == 1
    assert caplog.text.count(reason) == 1
    stub.close()


def test_terms_that_cannot_be_met_mean_no_session(
    client: SidecarClient, socket: str, heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    heard.refuse_terms = True
    stub = StubSidecar(socket)
    wait_until(lambda: "slots too small" in caplog.text, "the reason in the log")
    assert client.session is None
    stub.close()


def test_what_cannot_be_understood_is_skipped(client: SidecarClient, socket: str, heard: Heard) -> None:
    stub = StubSidecar(socket)
    wait_until(lambda: client.session is not None, "a session")
    stub.say_bytes_to_all(b"\xc1 not a message")
    stub.say_to_all(Found(3, 4))
    wait_until(lambda: Found(3, 4) in heard.events, "the next message")
    stub.close()
