import json
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shadowserve_lab.processes import wait_until
from shadowserve_testbed.cli import application
from shadowserve_testbed.errors import TestbedError
from shadowserve_testbed.layout import CARD_TAINT, make_nodes
from shadowserve_testbed.native.addresses import address, pod_network
from shadowserve_testbed.native.cleanup import mounted_below
from shadowserve_testbed.native.daemons import Daemon, Daemons
from shadowserve_testbed.native.node_files import (
    NodePaths,
    containerd_configuration,
    kubelet_configuration,
    network_configuration,
)
from shadowserve_testbed.native.state import State, read_state, write_state
from shadowserve_testbed.provider import Shape


def test_cards_are_spread_over_hosts_and_name_them() -> None:
    nodes = make_nodes(2, 3, {"card-1": "2gbit"})
    assert [node.name for node in nodes] == ["host-0", "host-1", "card-0", "card-1", "card-2"]
    assert [node.host for node in nodes] == ["", "", "host-0", "host-1", "host-0"]
    assert [node.rate for node in nodes] == ["", "", "", "2gbit", ""]
    assert len({address(node) for node in nodes} | {pod_network(node) for node in nodes}) == 10


@pytest.mark.parametrize(
    ("hosts", "cards", "rates", "words"),
    [
        (0, 1, {}, "at least one host"),
        (1, 20, {}, "at most 20 nodes"),
        (1, -1, {}, "at least one host"),
        (1, 1, {"card-7": "1gbit"}, "no such node, only card-0, host-0"),
        (1, 1, {"card-0": "fast"}, "for example 2gbit"),
    ],
)
def test_a_shape_that_cannot_be_is_refused_in_words(hosts: int, cards: int, rates: dict[str, str], words: str) -> None:
    with pytest.raises(TestbedError, match=words):
        make_nodes(hosts, cards, rates)


def test_a_card_keeps_everything_off_that_does_not_tolerate_it() -> None:
    host, card = make_nodes(1, 1)
    paths = NodePaths(Path("/x"))
    assert kubelet_configuration(host, paths, Path("/ca"))["registerWithTaints"] == []
    assert kubelet_configuration(card, paths, Path("/ca"))["registerWithTaints"][0]["key"] == CARD_TAINT
    assert card.labels == {"provisioning.dpu.nvidia.com/host": "host-0"}


def test_what_a_node_mounts_is_below_its_folder() -> None:
    node, paths = make_nodes(1, 0)[0], NodePaths(Path("/home/nodes/host-0"))
    runtime = tomllib.loads(containerd_configuration(paths, Path("/usr/lib/cni"), "/usr/sbin/runc"))
    assert runtime["plugins"]["io.containerd.cri.v1.runtime"]["netns_mounts_under_state_dir"] is True
    for place in (
        runtime["root"],
        runtime["state"],
        network_configuration(node, paths)["plugins"][0]["ipam"]["dataDir"],
    ):
        assert Path(place).is_relative_to(paths.folder)


def test_a_shape_is_remembered_and_damage_is_nothing(tmp_path: Path) -> None:
    path, state = tmp_path / "below/state.json", State(Shape(2, 1, {"card-0": "1gbit"}), "boot")
    assert read_state(path) is None
    write_state(path, state)
    assert read_state(path) == state
    for text in ("", "{", "[]", json.dumps({"shape": {"unknown": 1}, "boot": ""})):
        path.write_text(text)
        assert read_state(path) is None


def test_daemons_are_found_by_another_process_and_killed(tmp_path: Path) -> None:
    started = Daemons(tmp_path)
    sleep = Daemon("sleep", ("sleep", "600"))
    started.ensure([sleep])
    try:
        wait_until(lambda: "sleep" in Daemons(tmp_path).running(), 10, "the daemon to be found")
        pid = started.running()["sleep"]
        started.ensure([sleep])
        assert started.running() == {"sleep": pid}, "it was started twice"
        assert Daemons(tmp_path / "other").running() == {}
    finally:
        Daemons(tmp_path).kill()
    assert started.running() == {}
    with pytest.raises(TestbedError, match="sleep ended"):
        started.require(["sleep"])


def test_a_daemon_that_becomes_another_program_is_alive_all_the_while(tmp_path: Path) -> None:
    restless = tmp_path / "restless"
    restless.write_text('#!/bin/sh\nexec "$0"\n')
    restless.chmod(0o755)
    daemons = Daemons(tmp_path)
    daemons.ensure([Daemon("restless", (str(restless),))])
    try:
        for _ in range(100):
            daemons.require(["restless"])
    finally:
        daemons.kill()
    with pytest.raises(TestbedError, match="restless ended"):
        daemons.require(["restless"])


def test_only_mounts_below_the_folder_count() -> None:
    assert mounted_below(Path("/nowhere")) == []
    assert "/proc/sys" not in mounted_below(Path("/pro"))


@pytest.mark.parametrize(("options", "exit_code"), [([], 3), (["--api-stories"], 0)])
def test_without_go_nothing_is_built_and_the_stories_that_need_it_are_optional(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], exit_code: int
) -> None:
    monkeypatch.setenv("SHADOWSERVE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    done = CliRunner().invoke(application, ["build", *options])
    assert (done.exit_code, "Go, not installed: see https://go.dev" in done.stderr) == (exit_code, True)
    assert ("stories on an API server will be skipped" in done.stderr) == bool(options)
