"""What kind and podman are told for a shape of test bed."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from shadowserve_lab.home import Home, say
from shadowserve_testbed.binaries import KIND
from shadowserve_testbed.errors import TestbedError
from shadowserve_testbed.kind.cluster import KindCluster
from shadowserve_testbed.kind.configuration import (
    NODE_IMAGE,
    Made,
    cluster_config,
    container,
    control_plane_patches,
    network_config,
    patches_folder,
    podman_config,
)
from shadowserve_testbed.layout import CARD_TAINT
from shadowserve_testbed.provider import Shape
from shadowserve_testbed.providers import PROVIDERS

MADE = Made(2, 2, "image", bare=True)
NODES = MADE.nodes


def _registrations(config: dict[str, Any]) -> list[dict[str, Any]]:
    return [yaml.safe_load(node["kubeadmConfigPatches"][0])["nodeRegistration"] for node in config["nodes"]]


def test_containers_have_the_names_that_kind_gives_them() -> None:
    expected = ["control-plane", "worker", "worker2", "worker3"]
    assert [container(node) for node in NODES] == [f"shadowserve-{name}" for name in expected]


def test_nodes_have_our_names_and_only_cards_keep_others_away() -> None:
    registered = _registrations(cluster_config(MADE, Path("/home")))
    assert [each["name"] for each in registered] == [node.name for node in NODES]
    assert [[taint["key"] for taint in each["taints"]] for each in registered] == [[], [], [CARD_TAINT], [CARD_TAINT]]


def test_cards_are_labelled_with_their_hosts_and_every_node_sees_the_home() -> None:
    config = cluster_config(MADE, Path("/home"))
    assert [node["labels"] for node in config["nodes"]] == [node.labels for node in NODES]
    for node in config["nodes"]:
        assert node["extraMounts"] == [{"hostPath": "/home", "containerPath": "/home", "readOnly": True}]


def test_the_control_plane_leaves_most_of_two_cores_to_what_runs_on_the_bed() -> None:
    patches = {name.removesuffix(".json"): json.loads(text)["spec"] for name, text in control_plane_patches().items()}
    dns = patches.pop("corednsdeployment")["template"]["spec"]
    containers = {name: patch["containers"][0] for name, patch in patches.items()}
    assert all(part["name"] == target for target, part in containers.items()), "kubeadm goes by the file's name"
    pods = [*containers.values(), *2 * dns["containers"]]
    assert sum(int(part["resources"]["requests"]["cpu"].removesuffix("m")) for part in pods) <= 200


def test_only_the_control_plane_is_patched() -> None:
    nodes = cluster_config(MADE, Path("/home"))["nodes"]
    first, *others = [yaml.safe_load(node["kubeadmConfigPatches"][0]) for node in nodes]
    assert first["patches"] == {"directory": str(patches_folder(Path("/home")))}
    assert not any("patches" in each for each in others)


def test_pods_of_a_node_get_addresses_of_its_own_network() -> None:
    bridge = network_config("10.245.3.0/24")["plugins"][0]
    assert bridge["ipam"]["ranges"] == [[{"subnet": "10.245.3.0/24"}]]


def test_podman_is_kept_below_the_limits_of_this_machine() -> None:
    lines = podman_config({"nofile": 20000, "nproc": 4096}).splitlines()
    limits = next(line for line in lines if line.startswith("default_ulimits"))
    assert json.loads(limits.partition(" = ")[2]) == ["nofile=20000:20000", "nproc=4096:4096"]


def test_nothing_runs_where_it_was_never_started(tmp_path: Path) -> None:
    cluster = KindCluster(Home(tmp_path, say))
    assert not cluster.running()
    with pytest.raises(TestbedError, match="--provider kind"):
        cluster.nodes()
    cluster.down()


def test_links_that_kind_cannot_limit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TestbedError, match=r"--link: .* podman's .* use --provider native"):
        KindCluster(Home(tmp_path, say)).up(Shape(rates={"card-0": "2gbit"}))


def test_nodes_are_made_of_the_image_that_is_named() -> None:
    config = cluster_config(Made(1, 1, "kindest/node:v1", bare=False), Path("/home"))
    assert {node["image"] for node in config["nodes"]} == {"kindest/node:v1"}
    assert not config["networking"]["disableDefaultCNI"], "an image that brings a network for pods keeps it"
    assert cluster_config(MADE, Path("/home"))["networking"]["disableDefaultCNI"]


def test_how_it_was_made_is_remembered() -> None:
    assert Made.parse(MADE.text()) == MADE


@pytest.mark.parametrize("made", [None, '{"hosts": 1, "cards": 1}', "{"], ids=["lost", "older", "cut off"])
def test_a_bed_that_another_version_made_is_told_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str | None
) -> None:
    home, calls = Home(tmp_path / "home", say), tmp_path / "calls"
    folder = home.root / "kind"
    folder.mkdir(parents=True)
    (folder / "containers.conf").write_text(podman_config({}))
    if made is not None:
        (folder / "made.json").write_text(made)
    _program(tmp_path / "podman", "echo shadowserve-control-plane")
    home.make(KIND.artifact, lambda there: _program(there / KIND.name, f'echo "$@" >> {calls}'))
    monkeypatch.setenv("PATH", str(tmp_path))
    cluster = KindCluster(home)
    assert cluster.running()
    with pytest.raises(TestbedError, match=r"older version made it.* shadowserve testbed down removes it"):
        cluster.nodes()
    cluster.down()
    assert calls.read_text().startswith("delete cluster")
    assert not folder.exists()


def _program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_the_variable_names_the_node_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path, say)
    monkeypatch.delenv("KIND_IMAGE", raising=False)
    ours = PROVIDERS["kind"](home)
    monkeypatch.setenv("KIND_IMAGE", "kindest/node:v1")
    theirs = PROVIDERS["kind"](home)
    assert isinstance(ours, KindCluster)
    assert isinstance(theirs, KindCluster)
    assert (ours.image, theirs.image) == (NODE_IMAGE, "kindest/node:v1")
