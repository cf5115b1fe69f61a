"""Workers that come by TCP, and the commands around the sampler."""

import json
import os
import select
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shadowserve_capacity.errors import WorkerError
from shadowserve_capacity.prefetch.chain import run_serial
from shadowserve_capacity.prefetch.links import Link
from shadowserve_capacity.prefetch.parallel import Options, run_parallel
from shadowserve_capacity.prefetch.predictors import PartialData
from shadowserve_capacity.problems.named import Named
from shadowserve_capacity.remote import RemoteWorkers, serve_master
from shadowserve_cli.capacity import application

NAMED = Named("logistic", 4000, 3, 20)
SECRET = b"a secret of a length"


def start_worker(workers: RemoteWorkers, secret_file: Path) -> subprocess.Popen[bytes]:
    host, port = workers.address
    command = ["-m", "shadowserve_capacity", "worker", "--connect", f"{host}:{port}", "--secret-file", str(secret_file)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, *command], env=environment, stderr=subprocess.PIPE)


@dataclass
class Present:
    """Hires at once who has come already, and who comes later."""

    remote: RemoteWorkers
    links: list[Link]

    def hired(self) -> list[Link]:
        links, self.links = self.links, []
        return links + self.remote.hired()

    def replace(self, link: Link) -> Link | None:
        return self.remote.replace(link)

    def fileno(self) -> int | None:
        return self.remote.fileno()

    def close(self) -> None:
        self.remote.close()


def come(remote: RemoteWorkers, count: int) -> list[Link]:
    """Return so many workers, once they have come."""
    links: list[Link] = []
    while len(links) < count:
        ready, _, _ = select.select([remote.fileno()], [], [], 60)
        assert ready, f"{len(links)} workers have come, expected {count}"
        links += remote.hired()
    return links


def test_remote_workers_give_the_serial_bytes_and_may_die(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET + b"\n")
    problem = NAMED.problem(120)
    remote = RemoteWorkers(NAMED, ("127.0.0.1", 0), SECRET)
    workers = [start_worker(remote, secret) for _ in range(2)]
    try:
        present = Present(remote, come(remote, 2))
        killed = threading.Event()

        def tell(_: object) -> None:
            if not killed.is_set():
                workers[1].kill()
                killed.set()

        options = Options(tell=tell, told_every=0.0, stall_seconds=1.0)
        chain, _ = run_parallel(problem, present, 2, PartialData(), options)
        assert chain.sha256 == run_serial(problem).sha256
        assert killed.is_set()
        remote.close()
        assert workers[0].wait(60) == 0
    finally:
        remote.close()
        for worker in workers:
            worker.kill()
            worker.communicate()


def test_a_worker_without_the_secret_is_refused() -> None:
    remote = RemoteWorkers(NAMED, ("127.0.0.1", 0), SECRET)
    try:
        with pytest.raises(WorkerError, match="secret"):
            serve_master(remote.address, b"another secret, long")
        with pytest.raises(WorkerError, match="at least 16"):
            serve_master(remote.address, b"short")
        assert remote.hired() == []
    finally:
        remote.close()


def test_nobody_there_is_said_after_a_while() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        address = unused.getsockname()[:2]
    with pytest.raises(WorkerError, match="no master there"):
        serve_master(address, SECRET, patience=0.0)


SMALL = ["sample", "--problem", "logistic", "--size", "2000", "--batches", "20", "--iterations", "40", "--workers", "2"]


def test_sample_prints_the_chain_and_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    whole = CliRunner().invoke(application, [*SMALL, "--check", "--json"])
    assert whole.exit_code == 0, whole.output
    said = json.loads(whole.stdout)
    assert said["equal_to_serial"] is True
    assert said["chain_sha256"] == run_serial(Named("logistic", 2000, 1, 20).problem(40)).sha256
    assert {"speedup", "acceptance", "useful", "wasted", "idle"} <= said.keys()
    kept = ["--checkpoint", str(tmp_path / "chain.npz"), "--json"]
    half = [*SMALL[:8], "15", *SMALL[9:], *kept]
    assert json.loads(CliRunner().invoke(application, half).stdout)["iterations"] == 15
    resumed = json.loads(CliRunner().invoke(application, [*SMALL, *kept]).stdout)
    assert resumed["iterations_from_checkpoint"] == 15, "it went on, and did not begin anew"
    assert resumed["speedup"] > 0.0
    assert resumed["iterations"] == 40, "the length of the chain that was printed, not of what was left to do"
    assert resumed["chain_sha256"] == said["chain_sha256"]


def test_a_finished_chain_is_printed_again_without_complaints(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kept = ["--checkpoint", str(tmp_path / "chain.npz"), "--json"]
    first, again = (json.loads(CliRunner().invoke(application, [*SMALL, *kept]).stdout) for _ in range(2))
    assert (first["iterations_from_checkpoint"], first["iterations"]) == (0, 40)
    assert (again["iterations_from_checkpoint"], again["iterations"]) == (40, 40)
    assert again["chain_sha256"] == first["chain_sha256"]
    assert again["speedup"] is again["useful"] is None, "nothing was computed, which is no speed-up of 0"
    words = CliRunner().invoke(application, [*SMALL, *kept[:2], "--check"]).stdout
    assert "the chain was complete already" in words
    assert words.splitlines()[-2].split() == ["speedup", "measured", "none"]
    assert "Traceback" not in capfd.readouterr().err


def test_sample_tells_how_often_its_guesses_came_true() -> None:
    plain = json.loads(CliRunner().invoke(application, [*SMALL, "--json"]).stdout)
    asked = CliRunner().invoke(application, [*SMALL, "--predictor", "constant", "--calibration", "--json"])
    said = json.loads(asked.stdout)
    assert said["chain_sha256"] == plain["chain_sha256"], "who records changes nothing"
    parts = said["calibration"]
    assert parts[0]["seen_from"] == 0.0
    assert parts[0]["count"] == 40, "one guess for each decision of the chain before data were seen"
    came_true = sum(each["observed"] * each["count"] for each in parts[0]["reliability"])
    assert came_true == pytest.approx(40 * said["acceptance"])
    assert "calibration" not in plain
    words = CliRunner().invoke(application, [*SMALL, "--calibration"]).stdout
    assert "with 0% to 20% of the data seen: " in words
    assert "Brier score" in words


def test_simulate_prints_speedups_for_several_clusters() -> None:
    asked = ["simulate", "--problem", "lasso", "--size", "500", "--iterations", "30", "--workers", "4", "--json"]
    runs = json.loads(CliRunner().invoke(application, asked).stdout)["runs"]
    assert [run["workers"] for run in runs] == [4]
    assert 1.0 < runs[0]["speedup"] <= 4.0


def test_speedups_are_drawn(tmp_path: Path) -> None:
    asked = ["simulate", "--size", "500", "--iterations", "20", "--workers", "4", "--workers", "2"]
    simulated, sampled = tmp_path / "simulated.svg", tmp_path / "sampled.png"
    assert CliRunner().invoke(application, [*asked, "--plot", str(simulated)]).exit_code == 0
    assert "<svg" in simulated.read_text()
    assert CliRunner().invoke(application, [*SMALL, "--plot", str(sampled)]).exit_code == 0
    assert sampled.read_bytes().startswith(b"\x89PNG")
    refused = CliRunner().invoke(application, [*asked, "--plot", str(tmp_path / "p.bmp")])
    assert refused.exit_code == 2
    assert "written as .png or .svg" in refused.stderr


def test_what_makes_no_sense_is_refused() -> None:
    refused = CliRunner().invoke(application, ["sample", "--size", "10"])
    assert refused.exit_code == 2
    assert "size: 10 data do not fill 100 batches" in refused.stderr
