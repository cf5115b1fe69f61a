"""Who makes the test bed: what is asked for, what is up, kind where it can, else the native one."""

import os
from pathlib import Path

import pytest

from shadowserve_lab.home import Home, say
from shadowserve_testbed.choosing import choose, chosen, kind_obstacle, refuse_beside
from shadowserve_testbed.errors import TestbedError

NONE = "Docker is not installed"


def test_kind_is_taken_where_docker_and_podman_are_and_says_so() -> None:
    choice = choose("", [], "")
    assert (choice.name, "Docker and podman" in choice.reason) == ("kind", True)


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


def _program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("docker", "podman", "user", "words"),
    [
        (None, True, 0, "Docker is not installed"),
        ("echo cannot connect >&2; exit 1", True, 0, "Docker does not run"),
        ("echo 29.1.0", False, 0, "Docker runs here, but kind's nodes are made with podman, which is not installed"),
        ("echo 29.1.0", True, 1000, "Docker runs here, but kind's nodes are made with podman by root, and you are not"),
        ("echo 29.1.0", True, 0, ""),
    ],
)
def test_the_machine_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, docker: str | None, podman: bool, user: int, words: str
) -> None:
    if docker is not None:
        _program(tmp_path / "docker", docker)
    if podman:
        _program(tmp_path / "podman", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert kind_obstacle(user) == words
    _, choice = chosen(Home(tmp_path / "home", say), "")
    assert choice.name == ("native" if words else "kind")
    assert choice.reason.startswith(words or "Docker and podman are here")
