"""What is remembered of a test bed: its shape, and the boot of the machine in which it was made."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from shadowserve_testbed.layout import Node, make_nodes
from shadowserve_testbed.provider import Shape

_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class State:
    """`boot` is the kernel's boot id: what ran under another one does not run any more."""

    shape: Shape
    boot: str

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Its nodes."""
        return make_nodes(self.shape.hosts, self.shape.cards, self.shape.rates)


def boot_id() -> str:
    """Return which boot of the machine this is."""
    return _BOOT.read_text().strip()


def read_state(path: Path) -> State | None:
    """Return what was remembered; None when there is nothing, or it cannot be read: then it is worth nothing."""
    try:
        known = json.loads(path.read_text())
        return State(Shape(**known["shape"]), known["boot"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_state(path: Path, state: State) -> None:
    """Remember it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(state)))
    partial.rename(path)
