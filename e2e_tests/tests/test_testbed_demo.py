import re
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from shadowserve_testbed.demo_report import AfterLoss, DemoFigures, Event, RemoteHit, render_goals
from shadowserve_testbed.waiting import unmet

GOOD = DemoFigures(
    provider="native",
    prompt_tokens=2400,
    ready_seconds=80.0,
    engine_seconds=70.0,
    timeline=(Event(0.04, "applied"),),
    cold_ttft=6.0,
    remote=RemoteHit(0.5, 2304, True, "dpu", 9, "card-0"),
    lost=AfterLoss(True, "host", 5.2, 12, 0, 2304, 0.6),
)


def test_what_went_as_it_should_is_no_disappointment() -> None:
    assert GOOD.disappointment(exact=True) == ""


@pytest.mark.parametrize(
    ("remote", "lost", "words"),
    [
        ({"external_tokens": 0}, {}, "took nothing"),
        ({"placement": "host"}, {}, "not by the card"),
        ({"chunks": 0}, {}, "not by the card"),
        ({"tokens_equal": False}, {}, "differs from A's own"),
        ({}, {"failed_requests": 2}, "2 of 12 requests failed"),
        ({}, {"placement": "none"}, "restored at none"),
        ({}, {"external_tokens": 0}, "nothing came from the store"),
        ({}, {"tokens_equal": False}, "differs from the one before"),
    ],
)
def test_what_did_not_is_said(remote: dict[str, object], lost: dict[str, object], words: str) -> None:
    figures = replace(GOOD, remote=replace(GOOD.remote, **remote), lost=replace(GOOD.lost, **lost))  # type: ignore[arg-type]
    assert words in figures.disappointment(exact=True)


def test_the_figures_have_the_names_that_scripts_rely_on() -> None:
    figures = GOOD.as_json()
    assert figures["ready_seconds"] == 80.0
    assert figures["cold"] == {"ttft_seconds": 6.0}
    assert set(figures["remote_hit"]) >= {  # type: ignore[call-overload]
        "ttft_seconds",
        "external_tokens",
        "tokens_equal",
        "placement",
        "data_plane_node",
    }
    assert set(figures["after_card_lost"]) >= {  # type: ignore[call-overload]
        "tokens_equal",
        "placement",
        "switch_seconds",
        "failed_requests",
    }


def test_goals_are_said_beside_what_was_measured_and_one_that_is_missed_is_no_failure() -> None:
    slow = replace(GOOD, ready_seconds=85.0, lost=replace(GOOD.lost, switch_seconds=31.0))
    assert [(goal.most, round(goal.measured, 1), goal.met) for goal in slow.goals()] == [
        (120.0, 85.0, True),
        (10.0, 15.0, False),
        (10.0, 31.0, False),
        (0, 0, True),
    ]
    assert [goal["met"] for goal in slow.as_json()["goals"]] == [True, False, False, True]  # type: ignore[attr-defined]
    assert slow.disappointment(exact=True) == ""
    written = StringIO()
    Console(file=written, width=100).print(render_goals(slow.goals()))
    assert re.search(r"card's death to the host.*10 s.*31.0 s.*no", written.getvalue())


def _with(*conditions: tuple[str, str, str], observed: int = 1) -> dict[str, object]:
    listed = [{"type": kind, "status": status, "reason": "R", "message": text} for kind, status, text in conditions]
    return {"metadata": {"generation": 1}, "status": {"observedGeneration": observed, "conditions": listed}}


def test_what_is_unmet_is_said_by_its_own_conditions() -> None:
    assert unmet(None) == ["it does not exist"]
    assert unmet(_with(("Ready", "True", ""), observed=0)) == ["the operator has not looked at it yet"]
    assert unmet(_with(("Ready", "True", ""), ("StoreReady", "True", ""))) == []
    assert unmet(_with(("Ready", "False", "x"), ("StoreReady", "False", "0 of 1"))) == ["StoreReady: 0 of 1"]
    assert unmet(_with()) == ["not ready"]
