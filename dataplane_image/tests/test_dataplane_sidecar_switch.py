"""Where the next fetch runs: the rule, as a table."""

import pytest

from shadowserve_dataplane.sidecar.switch import LONGEST_BACKOFF, Place, RemoteState, choose

NONE = RemoteState()
COMING = RemoteState("card:7000")
READY = COMING.ready()
FAILED = READY.failed(now=100.0)
BOTH = ["DPU", "Host"]


@pytest.mark.parametrize(
    ("order", "remote", "now", "place"),
    [
        (BOTH, READY, 0.0, Place.DPU),
        (BOTH, NONE, 0.0, Place.HOST),
        (BOTH, COMING, 0.0, Place.HOST),
        (BOTH, FAILED, 100.5, Place.HOST),
        (BOTH, FAILED.ready(), 101.5, Place.DPU),
        (["DPU"], NONE, 0.0, Place.NONE),
        (["DPU"], FAILED, 100.5, Place.NONE),
        (["DPU"], READY, 0.0, Place.DPU),
        (["Host"], READY, 0.0, Place.HOST),
        (["Host", "DPU"], READY, 0.0, Place.HOST),
    ],
)
def test_the_first_place_that_can(order: list[str], remote: RemoteState, now: float, place: Place):
    assert choose(order, remote, now).place is place


def test_the_choice_says_why():
    assert "not attached" in choose(BOTH, COMING, 0.0).reason
    assert "card:7000 failed 1 times" in choose(["DPU"], FAILED, 100.5).reason
    assert "no data plane is paired" in choose(["DPU"], NONE, 0.0).reason


def test_a_new_endpoint_is_not_blamed_for_the_old_one():
    moved = FAILED.moved("other:7000").ready()
    assert choose(BOTH, moved, 100.1).place is Place.DPU


def test_the_backoff_doubles_up_to_a_bound_and_ends_with_a_restored_chunk():
    state, waits = READY, []
    for _ in range(10):
        state = state.failed(now=0.0)
        waits.append(state.retry_at())
    assert waits[:4] == [1.0, 2.0, 4.0, 8.0]
    assert waits[-1] == LONGEST_BACKOFF
    assert state.ready().failed(0.0).failures == 11
    assert state.ready().proved().failed(0.0).retry_at() == 1.0
