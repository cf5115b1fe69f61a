from dataclasses import replace
from typing import Any

import pytest

from shadowserve_lab.soak import LEAST_REQUESTS, Load, Look, Seen, main, verdict

GOOD = Seen(
    looks=[Look(200, {"data plane": 100, "sidecar a": 50}), Look(1000, {"data plane": 104, "sidecar a": 49})],
    fresh=300,
    fresh_hits=280,
    gone=200,
    gone_hits=3,
    lookups={"hit": 283, "miss": 215, "late": 2, "error": 0, "refused": 0},
    evictions=650,
    stored_bytes=1e9,
)


def test_a_run_in_which_all_went_well_passes() -> None:
    assert verdict(GOOD) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"errors": ["prompt 7: HTTP Error 500"]}, "failed: prompt 7: HTTP Error 500"),
        ({"looks": [Look(200, {"data plane": 100}), Look(1000, {"data plane": 106})]}, "data plane grew by 6.0%"),
        ({"looks": [Look(200, {"data plane": 100})]}, "not looked at twice"),
        ({"looks": []}, "not looked at twice"),
        ({"evictions": 0}, "evicted nothing"),
        ({"fresh_hits": 0}, "none of 300 prompts"),
        ({"gone_hits": 21}, "21 of 200 prompts that were sure to be evicted were hits"),
        ({"gone": 0, "gone_hits": 0}, "0 of 0 prompts"),
        ({"lookups": {"hit": 500.0, "miss": 0.0}}, "no look-up was counted as a miss"),
        ({"lookups": {"miss": 215.0, "error": 3.0}}, "3 look-ups ended as error"),
        ({"lookups": {"miss": 215.0, "refused": 1.0}}, "1 look-ups ended as refused"),
    ],
)
def test_what_went_wrong_is_said(change: dict[str, Any], words: str) -> None:
    wrong = verdict(replace(GOOD, **change))
    assert len(wrong) == 1
    assert words in wrong[0]


@pytest.mark.parametrize("requests", [LEAST_REQUESTS, 200, 1000, 5000])
def test_evicted_prompts_are_asked_and_memory_is_looked_at_twice(requests: int) -> None:
    load = Load(requests)
    assert load.distance < requests // 2 - 1, "some prompt has one that far before it"
    assert 0 < load.first_look < requests
    assert load.first_look % 2 == 0, "looks are taken after pairs of requests"


def test_memory_is_looked_at_after_200_of_1000_requests() -> None:
    assert Load(1000).first_look == 200


def test_too_few_requests_are_refused_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--requests", "10"])
    assert "at least 100" in capsys.readouterr().err
