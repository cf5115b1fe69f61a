"""Who makes the test bed: what is asked for, what is up, kind where Docker runs, else the native one."""

from pathlib import Path

import pytest

from shadowserve_lab.home import Home, say
from shadowserve_testbed.choosing import choose, chosen, docker_trouble, refuse_beside
from shadowserve_testbed.errors import TestbedError

NONE = "Docker is not installed"


def test_kind_is_taken_where_docker_runs_and_says_so() -> None:
    choice = choose("", [], "")
    assert (choice.name, "Docker runs" in choice.reason) == ("kind", True)


def test_without_docker_it_is_the_native_one_and_the_reason_is_said() -> None:
    choice = choose("", [], NONE)
    assert (choice.name, choice.reason.startswith(NONE)) == ("native", True)
    assert "PROVIDER=kind" in choice.reason


@pytest.mark.parametrize("asked", ["native", "kind"])
@pytest.mark.parametrize("docker", ["", NONE])
def test_who_asks_decides(asked: str, docker: str) -> None:
    assert choose(asked, [], docker).name == asked
    assert choose(asked, [asked], docker).name == asked


@pytest.mark.parametrize("running", ["native", "kind"])
@pytest.mark.parametrize("docker", ["", NONE])
def test_a_bed_that_is_up_is_used(running: str, docker: str) -> None:
    choice = choose("", [running], docker)
    assert (choice.name, choice.reason) == (running, "its test bed is up")


def test_two_beds_are_refused_in_words() -> None:
    words = "a test bed by kind is up, and a machine has one at a time: .*testbed down.*PROVIDER=kind uses it"
    with pytest.raises(TestbedError, match=words):
        choose("native", ["kind"], "")
    with pytest.raises(TestbedError, match=words):
        refuse_beside("native", ["kind"])
    refuse_beside("native", ["native"])
    refuse_beside("native", [])


def test_a_provider_that_does_not_exist_is_refused_in_words() -> None:
    with pytest.raises(TestbedError, match="PROVIDER=minikube: there are only kind, native"):
        choose("minikube", [], "")


def _docker(folder: Path, script: str) -> None:
    program = folder / "docker"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("script", "name", "words"),
    [
        (None, "native", "Docker is not installed"),
        ("echo cannot connect >&2; exit 1", "native", "Docker does not run"),
        ("echo 29.1.0", "kind", "Docker runs here"),
    ],
)
def test_the_machine_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, name: str, words: str
) -> None:
    if script is not None:
        _docker(tmp_path, script)
    monkeypatch.setenv("PATH", str(tmp_path))
    _, choice = chosen(Home(tmp_path / "home", say), "")
    assert choice.name == name
    assert choice.reason.startswith(words)
    assert (docker_trouble() == "") is (name == "kind")
