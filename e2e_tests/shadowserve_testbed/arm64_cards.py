"""Cards of the test bed that run the arm64 data plane, as real ones do: emulated, from the image for arm64."""

from shadowserve_lab.home import Home
from shadowserve_testbed.images.architecture import Architecture
from shadowserve_testbed.images.catalogue import Images
from shadowserve_testbed.images.emulation import Emulation
from shadowserve_testbed.provider import Provider


def use_arm64_cards(provider: Provider, home: Home) -> None:
    """Let data planes that start on cards from now on be arm64's. Raises `TestbedError`, `ImageError`.

    `Provider.load` of this machine's images brings back what was before.
    """
    with home.locked():
        Emulation(home, Architecture.ARM64).enable()
        archives = Images(home).archives(Architecture.ARM64)
    provider.load(archives, [node.name for node in provider.nodes() if node.host])
