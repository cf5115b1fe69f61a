import json

import pytest
from results import BUSY, Report, Result, at_least, at_most


def figures(capsys: pytest.CaptureFixture[str]) -> tuple[list[dict[str, object]], str]:
    said = capsys.readouterr()
    return [json.loads(line) for line in said.out.splitlines()], said.err


def test_figure_has_every_field(capsys):
    Report("bench", {"chunks": 24}).figure("case", "ratio", [2.0, 1.0, 3.0], "x", at_least(1.5), rival="other", rate=5)
    (figure,), said = figures(capsys)
    assert figure["value"] == 2.0
    assert figure["spread"] == 1.0
    assert figure["goal"] == ">= 1.5"
    assert figure["holds"] is True
    assert figure["rival"] == "other"
    assert {"chunks": 24, "rate": 5}.items() <= figure["parameters"].items()
    assert {"bench", "case", "metric", "unit", "samples", "load"} <= figure.keys()
    assert not said


def test_missed_goal_is_said_and_still_reported(capsys):
    report = Report("bench", {})
    report.figure("case", "ratio", [2.0], "x", at_most(1.5))
    (figure,), said = figures(capsys)
    assert figure["holds"] is False
    assert "goal missed: bench case ratio = 2 x, wanted <= 1.5" in said
    assert report.exit_code == 0


def test_noisy_figure_is_refused(capsys):
    report = Report("bench", {}, noise_bound=0.2)
    report.figure("case", "ratio", [1.0, 1.5, 2.0, 2.5, 3.0], "x", at_least(1.0))
    report.figure("case", "steady", [1.0, 1.0, 1.01, 0.99, 9.0], "x")
    (figure,), said = figures(capsys)
    assert figure["metric"] == "steady", "one disturbed sample does not make a figure worthless"
    assert "not reported: bench case ratio: its quartiles are 50% of the median apart, more than 20%" in said
    assert report.exit_code == BUSY


def test_a_figure_made_elsewhere_is_refused_alike(capsys):
    report = Report("bench", {}, noise_bound=0.2)
    assert report.show(Result("gpu", "40 Gb/s", "ratio", [1.0, 1.01, 1.02, 1.03], "x"))
    assert not report.show(Result("gpu", "5 Gb/s", "ratio", [1.0, 1.5, 2.0, 2.5], "x"))
    (figure,), said = figures(capsys)
    assert figure["case"] == "40 Gb/s"
    assert "not reported: gpu 5 Gb/s ratio" in said
    assert report.exit_code == BUSY
