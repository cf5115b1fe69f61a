"""Observations, loads and objectives: what is read, and what is refused by row and field."""

import copy
from typing import Any

import pytest
from capacity_windows import as_json, known_pool

from shadowserve_capacity.errors import InputFault
from shadowserve_capacity.model.observations import Histogram
from shadowserve_capacity.model.parsing import read_load, read_objective, read_observations
from shadowserve_capacity.model.planning import Objective, Quantity


@pytest.fixture(scope="module")
def good() -> dict[str, Any]:
    return as_json(known_pool(3)[1])


def test_what_was_written_is_read(good: dict[str, Any]) -> None:
    assert as_json(read_observations(good)) == good


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("hit_tokens", 10**9, "windows[1].hit_tokens: 1000000000 is more than prompt_tokens"),
        ("seconds", -1, "windows[1].seconds: -1 is negative"),
        ("seconds", 0, "windows[1].seconds: must be above 0"),
        ("seconds", float("nan"), "windows[1].seconds: wanted a number"),
        ("arrivals", 0, "windows[1].arrivals: an empty window says nothing"),
        ("arrivals", 2.5, "windows[1].arrivals: 2.5 is not a whole number"),
        ("replicas", 0, "windows[1].replicas: 0 is less than 1"),
        ("running", -0.5, "windows[1].running: -0.5 is negative"),
        ("prompt_tokens", None, "windows[1].prompt_tokens: is missing"),
        ("ttft", None, "windows[1].ttft: is missing"),
        ("ttft", {"bounds": [1.0, 0.5], "counts": [1, 2, 3]}, "windows[1].ttft.bounds: must rise"),
        ("ttft", {"bounds": [0.5], "counts": [1, 2, 3]}, "windows[1].ttft.counts: wanted 2 counts for 1 bounds, got 3"),
        ("ttft", {"bounds": [0.5], "counts": [-1, 2]}, "windows[1].ttft.counts: wanted whole numbers of at least 0"),
        ("ttft", {"bounds": [0.5], "counts": [0, 0]}, "windows[1].ttft.counts: no first token"),
        ("hit_requests", 10**6, "windows[1].hit_requests: 1000000 is more than arrivals"),
        ("fetches", {"count": 3, "seconds": 0.0, "bytes": 5.0}, "windows[1].fetches.count: 3 fetches without seconds"),
        ("promt_tokens", 5, "windows[1].promt_tokens: unknown field; known are arrivals, "),
    ],
)
def test_contradictions_are_refused_by_row_and_field(good: dict[str, Any], field: str, value: Any, words: str) -> None:
    bad = copy.deepcopy(good)
    bad["windows"][1][field] = value
    with pytest.raises(InputFault) as refused:
        read_observations(bad)
    assert any(problem.startswith(words) for problem in refused.value.problems), refused.value.problems
    assert all(problem.startswith("windows[1].") for problem in refused.value.problems)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "input: wanted an object"),
        ({"windows": []}, "windows: wanted at least one window"),
        ({"hardware": "abacus", "windows": [3]}, "hardware: 'abacus' is no class of hardware; known are cpu"),
        ({"windows": [3]}, "windows[0]: wanted an object, got 3"),
    ],
)
def test_what_is_no_observations_is_refused(value: Any, words: str) -> None:
    with pytest.raises(InputFault) as refused:
        read_observations(value)
    assert refused.value.problems[0].startswith(words)


def test_many_problems_are_cut_short(good: dict[str, Any]) -> None:
    with pytest.raises(InputFault, match="and 30 more"):
        read_observations({**good, "windows": [{**good["windows"][0], "running": -1.0}] * 50})


def test_histograms_interpolate_inside_buckets() -> None:
    histogram = Histogram((1.0, 2.0, 4.0), (0, 8, 2, 0))
    assert histogram.quantile(0.4) == pytest.approx(1.5)
    assert histogram.quantile(0.9) == pytest.approx(3.0)
    assert Histogram((1.0, 2.0), (0, 0, 3)).quantile(0.5) == 2.0


def test_loads_name_what_is_wrong() -> None:
    with pytest.raises(InputFault, match=r"hit_tokens: 900 is more than the prompts of those that hit have \(500\)"):
        read_load({"arrival_rate": 1, "prompt_tokens": 1000, "hit_tokens": 900, "hit_share": 0.5})
    with pytest.raises(InputFault, match="arrival_rate: 0 is not above 0"):
        read_load({"arrival_rate": 0, "prompt_tokens": 1000})


@pytest.mark.parametrize("text", ["TTFT p90 <= 2s", "ttft p90 2000ms", "TTFT p90 < 2.0 s", "ttft p90:2s"])
def test_objectives_are_read_as_people_write_them(text: str) -> None:
    assert read_objective(text) == Objective(Quantity.TTFT, 0.9, 2.0)


@pytest.mark.parametrize("text", ["TTFT p90", "TTFT p100 <= 2s", "E2E p90 <= 2s", "TPOT p50 <= 0s"])
def test_other_objectives_are_refused(text: str) -> None:
    with pytest.raises(InputFault, match="objective"):
        read_objective(text)
