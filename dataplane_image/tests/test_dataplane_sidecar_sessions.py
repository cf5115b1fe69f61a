"""Sessions: who is welcome, and who is replaced by whom."""

from itertools import count

import msgspec
import pytest

from shadowserve_dataplane.chunks import KvDtype, KvShape
from shadowserve_dataplane.connector.messages import PROTOCOL, Hello
from shadowserve_dataplane.sidecar.sessions import Greeted, Refusal, Session, Sessions

WORKER = Hello(PROTOCOL, "worker", "engine-a", 4, 2, 16, "float16", 256, 0, 1)
SCHEDULER = msgspec.structs.replace(WORKER, role="scheduler")


@pytest.fixture
def sessions() -> Sessions:
    return Sessions(count(1).__next__)


def greet(sessions: Sessions, hello: Hello, peer: bytes = b"peer") -> Session:
    greeted = sessions.greet(peer, hello)
    assert isinstance(greeted, Greeted)
    return greeted.session


def test_both_halves_of_an_engine_live_side_by_side(sessions: Sessions):
    worker, scheduler = greet(sessions, WORKER, b"w"), greet(sessions, SCHEDULER, b"s")
    assert worker.shape == KvShape(4, 2, 16, KvDtype.FLOAT16, 256)
    assert sessions.find(worker.number, b"w") is worker
    assert sessions.find(scheduler.number, b"s") is scheduler


def test_a_session_belongs_to_the_peer_that_opened_it(sessions: Sessions):
    worker = greet(sessions, WORKER, b"w")
    assert sessions.find(worker.number, b"other") is None
    assert sessions.find(worker.number + 1, b"w") is None


def test_a_second_hello_replaces_the_same_half_only(sessions: Sessions):
    two = msgspec.structs.replace(WORKER, world=2)
    first, other = greet(sessions, two), greet(sessions, msgspec.structs.replace(two, rank=1))
    again = sessions.greet(b"peer", two)
    assert isinstance(again, Greeted)
    assert again.replaced == (first,)
    assert sessions.find(other.number, b"peer") is other
    assert sessions.find(first.number, b"peer") is None


def test_a_new_engine_replaces_every_session_of_the_one_before(sessions: Sessions):
    old = {greet(sessions, WORKER), greet(sessions, SCHEDULER)}
    new = sessions.greet(b"new", msgspec.structs.replace(SCHEDULER, engine="engine-b"))
    assert isinstance(new, Greeted)
    assert set(new.replaced) == old
    assert len(sessions) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"protocol": PROTOCOL + 1}, f"speaks protocol {PROTOCOL + 1}, this sidecar protocol {PROTOCOL}"),
        ({"layers": 0}, "layers is 0"),
        ({"kv_heads": -3}, "kv_heads is -3"),
        ({"head_dim": 1 << 20}, "head_dim is 1048576"),
        ({"chunk_tokens": 0}, "chunk_tokens is 0"),
        ({"dtype": "fp8"}, "dtype 'fp8' is none of bfloat16"),
        ({"rank": 2, "world": 2}, "rank 2 of 2"),
        ({"world": 1000}, "at most 64"),
        ({"engine": ""}, "engine's name"),
    ],
)
def test_a_hello_that_cannot_work_is_refused_and_changes_nothing(
    sessions: Sessions, change: dict[str, object], words: str
):
    worker = greet(sessions, WORKER)
    refused = sessions.greet(b"peer", msgspec.structs.replace(WORKER, **change))
    assert isinstance(refused, Refusal)
    assert words in refused.reason
    assert sessions.find(worker.number, b"peer") is worker


def test_ranks_of_one_engine_must_have_the_same_shape(sessions: Sessions):
    greet(sessions, msgspec.structs.replace(WORKER, world=2))
    refused = sessions.greet(b"peer", msgspec.structs.replace(WORKER, world=2, rank=1, layers=8))
    assert isinstance(refused, Refusal)
    assert "same chunk shape" in refused.reason
