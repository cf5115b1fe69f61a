"""What kind and podman are told for a shape of test bed."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from shadowserve_lab.home import Home, say
from shadowserve_testbed.errors import TestbedError
from shadowserve_testbed.kind.cluster import KindCluster
from shadowserve_testbed.kind.configuration import cluster_config, container, network_config, podman_config
from shadowserve_testbed.layout import CARD_TAINT, make_nodes
from shadowserve_testbed.provider import Shape

NODES = make_nodes(2, 2)


def _registrations(config: dict[str, Any]) -> list[dict[str, Any]]:
    return [yaml.safe_load(node["kubeadmConfigPatches"][0])["nodeRegistration"] for node in config["nodes"]]


def test_containers_have_the_names_that_kind_gives_them() -> None:
    expected = ["control-plane", "worker", "worker2", "worker3"]
    assert [container(node) for node in NODES] == [f"shadowserve-{name}" for name in expected]


def test_nodes_have_our_names_and_only_cards_keep_others_away() -> None:
    registered = _registrations(cluster_config(NODES, "image", Path("/home")))
    assert [each["name"] for each in registered] == [node.name for node in NODES]
    assert [[taint["key"] for taint in each["taints"]] for each in registered] == [[], [], [CARD_TAINT], [CARD_TAINT]]


def test_cards_are_labelled_with_their_hosts_and_every_node_sees_the_home() -> None:
    config = cluster_config(NODES, "image", Path("/home"))
    assert [node["labels"] for node in config["nodes"]] == [node.labels for node in NODES]
    for node in config["nodes"]:
        assert node["extraMounts"] == [{"hostPath": "/home", "containerPath": "/home", "readOnly": True}]


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
    with pytest.raises(TestbedError, match="use the native provider"):
        KindCluster(Home(tmp_path, say)).up(Shape(rates={"card-0": "2gbit"}))
