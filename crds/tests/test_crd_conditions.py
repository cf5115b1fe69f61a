"""Conditions: a settled object keeps its status to the byte; Ready says the worst of the others."""

from datetime import UTC, datetime, timedelta

from shadowserve_crds.conditions import ConditionStatus, Reason, condition, merged, summary

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def test_an_unchanged_status_keeps_its_time_even_if_the_words_change() -> None:
    first = merged((), [condition("StoreReady", True, Reason.SUCCEEDED, "1 of 1")], 1, NOW)
    later = merged(first, [condition("StoreReady", True, Reason.SUCCEEDED, "2 of 2")], 2, NOW + timedelta(hours=1))
    assert later[0].last_transition_time == first[0].last_transition_time == "2026-11-24T12:00:00Z"
    assert (later[0].message, later[0].observed_generation) == ("2 of 2", 2)


def test_a_changed_status_gets_the_time_of_the_change() -> None:
    first = merged((), [condition("StoreReady", True, Reason.SUCCEEDED, "up")], 1, NOW)
    later = merged(first, [condition("StoreReady", False, Reason.ERROR, "down")], 1, NOW + timedelta(hours=1))
    assert later[0].last_transition_time == "2026-11-24T13:00:00Z"


def test_the_same_again_is_the_same_to_the_byte() -> None:
    fresh = [condition("StoreReady", False, Reason.PENDING, "0 of 1 servers answer")]
    first = merged((), fresh, 3, NOW)
    assert merged(first, fresh, 3, NOW + timedelta(days=1)) == first


def test_ready_says_what_is_wrong_before_what_is_unknown() -> None:
    unknown = condition("StoreReady", ConditionStatus.UNKNOWN, Reason.PENDING, "not looked at yet")
    wrong = condition("PairingResolved", False, "HostNotFound", "card c1 names host h9, which does not exist")
    ready = summary([unknown, wrong], "all is well")
    assert ready.status is ConditionStatus.FALSE
    assert ready.reason == "HostNotFound"
    assert ready.message == "PairingResolved: card c1 names host h9, which does not exist"
    assert summary([unknown], "all is well").status is ConditionStatus.UNKNOWN
    assert summary([condition("StoreReady", True, Reason.SUCCEEDED, "1 of 1")], "all is well").message == "all is well"
