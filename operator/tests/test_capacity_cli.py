"""`shadowserve capacity`: from a file of windows to a number of replicas, and clear refusals."""

import json
from pathlib import Path

import pytest
from capacity_windows import as_json, known_pool
from typer.testing import CliRunner

from shadowserve_capacity.model.files import write_posterior
from shadowserve_capacity.model.fit import fit
from shadowserve_cli.capacity import application


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(application, [str(each) for each in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from capacity_windows import QUICK

    folder = tmp_path_factory.mktemp("capacity")
    _, observations = known_pool(30)
    (folder / "windows.json").write_text(json.dumps(as_json(observations)))
    (folder / "posterior.json").write_text(json.dumps(write_posterior(fit(observations, 1, QUICK))))
    return folder


pytestmark = pytest.mark.timeout(300)  # chains are computed: seconds, minutes on a busy machine
LOAD = ("--rate", 2, "--prompt-tokens", 300, "--output-tokens", 20)


def test_fit_writes_what_plan_reads(files: Path, tmp_path: Path) -> None:
    posterior, trace = tmp_path / "p.json", tmp_path / "trace.png"
    code, out, err = run("fit", files / "windows.json", "-o", posterior, "--steps", 200, "--plot", trace, "--json")
    assert code == 0, err
    said = json.loads(out)
    assert said["seen"]["windows"] == 30
    assert said["diagnostics"]["prefill_rate"]["ess_bulk"] > 0
    assert trace.read_bytes().startswith(b"\x89PNG")
    assert run("plan", posterior, *LOAD, "--slo", "TTFT p90 <= 30s")[0] == 0


def test_plan_says_how_many_and_why(files: Path) -> None:
    code, out, _ = run("plan", files / "posterior.json", *LOAD, "--slo", "TTFT p90 <= 3s")
    assert code == 0
    assert "replicas: with " in out
    assert "TTFT p90 stays within 3 s with probability" in out


def test_plan_in_json_has_the_same_number(files: Path) -> None:
    code, out, _ = run("plan", files / "posterior.json", *LOAD, "--slo", "TTFT p90 <= 3s", "--json")
    plan = json.loads(out)
    assert code == 0
    assert plan["replicas"] >= 1
    assert plan["risk"] <= 0.1
    assert plan["load"]["arrival_rate"] == 2


def test_plan_fails_when_nothing_is_enough(files: Path) -> None:
    code, out, _ = run("plan", files / "posterior.json", *LOAD, "--slo", "TTFT p90 <= 1ms")
    assert code == 1
    assert out.startswith("no number of replicas")


def test_predict_gives_intervals(files: Path) -> None:
    code, out, _ = run("predict", files / "posterior.json", *LOAD, "--replicas", 3, "--json")
    ttft = json.loads(out)["ttft"]["p90"]
    assert code == 0
    assert 0 < ttft["low"] < ttft["median"] < ttft["high"]


def test_predict_compares_with_windows(files: Path, tmp_path: Path) -> None:
    plot = tmp_path / "plot.svg"
    code, out, _ = run("predict", files / "posterior.json", "--windows", files / "windows.json", "--plot", plot)
    assert code == 0
    assert "of 30 windows inside the 80% interval" in out
    assert "<svg" in plot.read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("fit", "nowhere.json"), "nowhere.json: No such file or directory"),
        (("plan", "posterior.json"), "say what the load is"),
        (("plan", "windows.json", *LOAD), "no posterior of this version"),
        (("plan", "posterior.json", *LOAD, "--slo", "fast"), "write it like"),
        (("plan", "posterior.json", *LOAD, "--hit-tokens", "400"), "hit_tokens: 400 is more than"),
        (("predict", "posterior.json", "--windows", "windows.json", "--plot", "p.bmp"), "written as .png or .svg"),
    ],
)
def test_wrong_input_is_refused_in_words(
    files: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(files)
    code, _, err = run(*arguments)
    assert code == 2
    assert words in err
