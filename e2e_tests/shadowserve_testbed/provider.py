"""What a test bed can do, however it is made: natively on this machine, or by kind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from shadowserve_testbed.kubectl import Kubectl
from shadowserve_testbed.layout import Node


@dataclass(frozen=True, slots=True)
class Shape:
    """How many nodes; `rates` limits the links of some ("card-0": "2gbit")."""

    hosts: int = 1
    cards: int = 1
    rates: Mapping[str, str] = field(default_factory=dict)


class Provider(Protocol):
    """A test bed. Every method may be called at any time, and again after it failed. All raise `TestbedError`."""

    def build(self) -> None:
        """Make what it runs, as far as that is not there yet; raises `BuildError` as well."""
        ...

    def up(self, shape: Shape) -> Kubectl:
        """Return once every node is ready; starts what does not run."""
        ...

    def down(self) -> None:
        """Remove all of it, whatever is left of it."""
        ...

    def running(self) -> bool:
        """Whether there is one, well or not."""
        ...

    def kubectl(self) -> Kubectl:
        """Return kubectl for the test bed that runs."""
        ...

    def nodes(self) -> Sequence[Node]:
        """Return the nodes of the test bed that runs, whether they are well or not."""
        ...

    def load(self, archives: Mapping[str, Path], nodes: Sequence[str] = ()) -> list[str]:
        """Make images known to nodes, all of them without `nodes`. Return those that were not.

        `archives` are OCI archives by reference. What a node knew under a reference is replaced.
        """
        ...

    def lose(self, node: str) -> None:
        """Let a node die as if its power went: nothing says goodbye, and nothing answers."""
        ...

    def restore(self, node: str) -> None:
        """Bring a lost node back."""
        ...

    def daemons_logged(self) -> Sequence[str]:
        """Return the names of the daemons that `log` knows."""
        ...

    def log(self, name: str, lines: int) -> str:
        """Return the end of a daemon's log; `name` is one of `daemons_logged`."""
        ...
