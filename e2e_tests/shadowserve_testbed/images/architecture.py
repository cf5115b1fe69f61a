"""Processor architectures, under the names that Debian and OCI share."""

import platform
from enum import StrEnum


class Architecture(StrEnum):
    """What an image runs on."""

    AMD64 = "amd64"
    ARM64 = "arm64"

    @property
    def machine(self) -> str:
        """Return the kernel's name, which wheels, qemu and binfmt_misc use."""
        return {Architecture.AMD64: "x86_64", Architecture.ARM64: "aarch64"}[self]


def native() -> Architecture:
    """Return this machine's architecture. Raises `ValueError` for one that we have no images for."""
    found = platform.machine()
    for each in Architecture:
        if each.machine == found:
            return each
    raise ValueError(f"there are no images for {found}, only for {', '.join(each.machine for each in Architecture)}")
