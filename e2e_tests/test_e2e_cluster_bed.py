"""The native test bed itself: started twice, broken, killed, found after a reboot, removed."""

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace

import pytest

from shadowserve_testbed.errors import TestbedError
from shadowserve_testbed.native.addresses import BRIDGE
from shadowserve_testbed.native.cgroups import present_cgroups
from shadowserve_testbed.native.cleanup import mounted_below
from shadowserve_testbed.native.cluster import NativeCluster, ready_nodes
from shadowserve_testbed.native.commands import succeeds
from shadowserve_testbed.native.daemons import find_running
from shadowserve_testbed.native.fabric import present_namespaces
from shadowserve_testbed.native.state import write_state
from shadowserve_testbed.provider import Provider, Shape

pytestmark = pytest.mark.timeout(600)
SHAPE = Shape(hosts=1, cards=1, rates={"card-0": "1gbit"})


@pytest.fixture
def cluster(provider: Provider) -> Iterator[NativeCluster]:
    if not isinstance(provider, NativeCluster):
        pytest.skip("only the native test bed starts daemons of its own")
    if provider.running():
        pytest.skip("a test bed runs here, and a machine has one at a time: shadowserve testbed down")
    yield provider
    provider.down()


def _is_gone(cluster: NativeCluster) -> None:
    assert [each for each in find_running() if each.folder == str(cluster.folder)] == []
    assert (present_namespaces(), present_cgroups(), mounted_below(cluster.folder)) == ([], [], [])
    assert not succeeds("ip", "link", "show", BRIDGE)
    assert not cluster.folder.exists()


def test_it_is_started_once_mended_and_removed_without_a_trace(cluster: NativeCluster) -> None:
    kubectl = cluster.up(SHAPE)
    first = cluster.daemons.running()
    assert ready_nodes(kubectl) == {"host-0", "card-0"}
    assert cluster.up(SHAPE).get("nodes") is not None
    assert cluster.daemons.running() == first, "a second start changed what ran"
    with pytest.raises(TestbedError, match="a test bed with 1 hosts and 1 cards, card-0 at 1gbit runs"):
        cluster.up(replace(SHAPE, hosts=2))

    for name in ("etcd", "kube-apiserver", "containerd-on-card-0", "kubelet-on-card-0"):
        os.kill(first[name], signal.SIGKILL)
    mended = cluster.up(SHAPE)
    assert ready_nodes(mended) == {"host-0", "card-0"}
    assert cluster.daemons.running().keys() == first.keys()

    cluster.down()
    _is_gone(cluster)
    cluster.down()


def test_what_an_earlier_boot_left_is_removed_first(cluster: NativeCluster) -> None:
    cluster.up(SHAPE)
    cluster.daemons.kill()
    state = cluster.state()
    assert state is not None
    write_state(cluster.folder / "state.json", replace(state, boot="another"))
    with pytest.raises(TestbedError, match="no test bed runs here"):
        cluster.kubectl()
    kubectl = cluster.up(Shape(hosts=1, cards=0))
    assert ready_nodes(kubectl) == {"host-0"}
    assert json.loads((cluster.folder / "state.json").read_text())["shape"]["cards"] == 0
    cluster.down()
    _is_gone(cluster)
