"""Makes test beds."""

import os
from collections.abc import Callable
from pathlib import Path

from shadowserve_lab.home import Home
from shadowserve_testbed.images.catalogue import PAUSE, Images
from shadowserve_testbed.kind.cluster import KindCluster
from shadowserve_testbed.native.cluster import NativeCluster
from shadowserve_testbed.provider import Provider


def native(home: Home) -> NativeCluster:
    """Return the test bed of a home, on network namespaces of this machine."""

    def pause() -> Path:
        images = Images(home)
        return next(images.archive(image).path for image in images.images() if image.reference == PAUSE)

    return NativeCluster(home, pause)


def kind(home: Home) -> KindCluster:
    """Return the test bed of a home by kind; the variable KIND_IMAGE names another node image than ours."""
    return KindCluster(home, os.environ.get("KIND_IMAGE", ""))


PROVIDERS: dict[str, Callable[[Home], Provider]] = {"native": native, "kind": kind}
"""Kinds of test beds by name; each has manifests of that name in `manifests/overlays`."""
