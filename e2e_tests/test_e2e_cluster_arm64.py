"""The arm64 data plane on the card's node, emulated: an engine restores through it what it computed before."""

from collections.abc import Iterator

import pytest

from cluster_story import SECONDS, Bed
from shadowserve_dataplane.chunks import CHUNK_TOKENS
from shadowserve_lab.engine_client import Ask
from shadowserve_lab.home import default_home
from shadowserve_testbed import scenario
from shadowserve_testbed.arm64_cards import use_arm64_cards
from shadowserve_testbed.images.architecture import Architecture, native
from shadowserve_testbed.images.catalogue import DATA_PLANE, Images
from shadowserve_testbed.images.emulation import Emulation
from shadowserve_testbed.images.errors import ImageError
from shadowserve_testbed.installation import remove
from shadowserve_testbed.pods import Pod

pytestmark = pytest.mark.timeout(900)
_SECONDS = 600.0
_PROMPT = [2000 + (61 * index) % 20000 for index in range(2 * CHUNK_TOKENS + 40)]


@pytest.fixture(scope="module")
def plane(bed: Bed) -> Iterator[Pod]:
    """A data plane for arm64 on the card's node."""
    home, emulated = default_home(), Emulation(default_home(), Architecture.ARM64).enabled
    try:
        use_arm64_cards(bed.provider, home)
    except ImageError as error:
        pytest.skip(f"arm64 cannot be emulated here: {error}")
    try:
        bed.apply(scenario.cache_manifest("Lossless"))
        bed.wait("the data plane", lambda: [pod for pod in bed.planes() if pod.ready], _SECONDS)
        yield bed.planes()[0]
    finally:
        remove(bed.kubectl, scenario.NAMESPACE, SECONDS, lambda _: None)
        with home.locked():
            ours = Images(home)
            own = ours.archive(ours.data_plane(native())).path
            if not emulated:
                Emulation(home, Architecture.ARM64).disable()
        bed.provider.load({DATA_PLANE: own})


@pytest.fixture(scope="module")
def engine(bed: Bed, plane: Pod) -> Pod:
    """An engine that restores through it."""
    bed.apply(scenario.pool_manifest(1, ("--dtype", "float32"), {"VLLM_SERVER_DEV_MODE": "1"}))
    bed.wait("the engine is ready", lambda: bed.ready(f"sspool/{scenario.POOL}"), _SECONDS)
    [pod] = bed.engines()
    bed.wait("restored on the card", lambda: bed.place(pod.name) == "dpu")
    return pod


def test_a_chunk_makes_the_round_trip_through_an_arm64_data_plane_on_the_cards_node(bed: Bed, plane: Pod) -> None:
    assert plane.node == "card-0"
    inside = ("exec", plane.name, "--namespace", scenario.NAMESPACE, "--")
    assert bed.kubectl.run(*inside, "uname", "-m").strip() == "aarch64"
    cache = f"pfc/{scenario.CACHE}"
    bed.wait("a chunk was fetched", lambda: bed.condition(cache, "RoundTripVerified") == "True", _SECONDS)
    assert bed.ready(cache)


def test_an_engine_restores_through_it_what_it_computed_before(bed: Bed, plane: Pod, engine: Pod) -> None:
    client, restored = bed.client(engine), bed.restored(plane)
    cold = client.complete(Ask(_PROMPT))

    def external_tokens() -> int:
        """Ask again after the engine has forgotten; storing goes on behind the answer, so the first may come early."""
        client.reset_prefix_cache()
        answer, external = client.counted(Ask(_PROMPT))
        assert answer.tokens == cold.tokens
        return external

    bed.wait("both chunks restored", lambda: external_tokens() == 2 * CHUNK_TOKENS)
    assert bed.restored(plane) - restored >= 2
