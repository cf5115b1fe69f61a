"""The arm64 data plane on the card's node, emulated: what was stored is fetched through it."""

from collections.abc import Iterator

import pytest

from cluster_story import SECONDS, Bed
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


def test_a_chunk_makes_the_round_trip_through_an_arm64_data_plane_on_the_cards_node(bed: Bed, plane: Pod) -> None:
    assert plane.node == "card-0"
    inside = ("exec", plane.name, "--namespace", scenario.NAMESPACE, "--")
    assert bed.kubectl.run(*inside, "uname", "-m").strip() == "aarch64"
    cache = f"pfc/{scenario.CACHE}"
    bed.wait("a chunk was fetched", lambda: bed.condition(cache, "RoundTripVerified") == "True", _SECONDS)
    assert bed.ready(cache)
