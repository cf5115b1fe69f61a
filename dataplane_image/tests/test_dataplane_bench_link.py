import pytest
from link import TokenBucket

BYTES_IN_A_SECOND = 125_000_000
"""At 1 Gb/s."""


def test_bytes_pass_at_the_rate():
    bucket, now = TokenBucket(1e9, 100.0), 100.0
    for _ in range(1000):
        now += max(0.0, bucket.wait(BYTES_IN_A_SECOND // 1000, now))
    assert now == pytest.approx(101.0)


def test_a_link_that_rested_is_no_faster_afterwards():
    bucket = TokenBucket(1e9, 0.0)
    assert bucket.wait(BYTES_IN_A_SECOND, 60.0) == pytest.approx(1.0, abs=0.005)


def test_a_wait_that_ended_late_is_made_up_for():
    bucket = TokenBucket(1e9, 0.0)
    late = bucket.wait(BYTES_IN_A_SECOND // 100, 0.0) + 0.002
    assert late + bucket.wait(BYTES_IN_A_SECOND // 100, late) == pytest.approx(0.02)


def test_no_limit_makes_nobody_wait():
    assert TokenBucket(0.0, 0.0).wait(BYTES_IN_A_SECOND, 0.0) == 0.0
