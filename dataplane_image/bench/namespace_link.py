"""A link between two network namespaces of this machine, of a given rate: for rivals that no relay can stand between.

A veth pair; on the far end's way out a token bucket of the kernel (tbf). Needs root, `ip` and `tc`.
"""

import os
import shutil
import subprocess
from types import TracebackType

NEAR, FAR = "10.213.77.1", "10.213.77.2"
_BURST_SECONDS = 0.004
"""The kernel refills the bucket with every tick of its clock: less would be a slower link."""
_QUEUE_SECONDS = 0.05


class NamespaceLink:
    """The far end is the namespace `name`; programs there are started with `command`. Use as a context manager."""

    def __init__(self) -> None:
        self.name = f"shadowserve{os.getpid()}"
        self._near, self._far = f"ssn{os.getpid()}", f"ssf{os.getpid()}"

    @staticmethod
    def missing() -> str | None:
        """Return why there can be no such link here, None when there can."""
        if os.geteuid():
            return "a link between network namespaces needs root"
        absent = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
        return f"not installed: {', '.join(absent)} (package iproute2)" if absent else None

    def command(self, command: list[str]) -> list[str]:
        """Return the command that runs `command` at the far end."""
        return ["ip", "netns", "exec", self.name, *command]

    def limit(self, bits_per_second: float) -> None:
        """Set the rate of what the far end sends; 0 = as fast as it goes."""
        subprocess.run(self.command(["tc", "qdisc", "del", "dev", self._far, "root"]), capture_output=True, check=False)
        if bits_per_second:
            burst, queue = (int(bits_per_second / 8 * seconds) for seconds in (_BURST_SECONDS, _QUEUE_SECONDS))
            rate = f"rate {int(bits_per_second)} burst {burst} limit {queue}".split()
            _run(self.command(["tc", "qdisc", "add", "dev", self._far, "root", "tbf", *rate]))

    def __enter__(self) -> "NamespaceLink":
        _run(["ip", "netns", "add", self.name])
        _run(["ip", "link", "add", self._near, "type", "veth", "peer", "name", self._far, "netns", self.name])
        _run(["ip", "address", "add", f"{NEAR}/24", "dev", self._near])
        _run(["ip", "link", "set", self._near, "up"])
        for step in (["address", "add", f"{FAR}/24", "dev", self._far], ["link", "set", self._far, "up"]):
            _run(["ip", "-n", self.name, *step])
        _run(["ip", "-n", self.name, "link", "set", "lo", "up"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _run(["ip", "netns", "del", self.name])  # and with it the pair


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True)
