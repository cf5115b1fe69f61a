"""Layers of images, each made once and kept in the home: the tree, and its tar file with digest and size."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from shadowserve_lab.home import Artifact, Home
from shadowserve_testbed.images.oci import Layer, write_layer


@dataclass(frozen=True, slots=True)
class Part:
    """What becomes one layer. `fill(tree, work)` makes the tree; `work` is a folder for what is not to stay."""

    name: str
    ingredients: tuple[str, ...]
    fill: Callable[[Path, Path], None] = field(compare=False)

    @property
    def artifact(self) -> Artifact:
        """Where it is kept."""
        return Artifact(f"layer-{self.name}", self.ingredients)


class Layers:
    """Makes parts."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def tree(self, part: Part) -> Path:
        """Return the part's tree, making it first if need be. Raises `ImageError`."""
        return self._home.make(part.artifact, lambda folder: _build(part, folder)) / "tree"

    def layer(self, part: Part) -> Layer:
        """Return the part as a layer, making it first if need be. Raises `ImageError`."""
        folder = self.tree(part).parent
        known = json.loads((folder / "layer.json").read_text())
        return Layer(folder / "layer.tar", known["digest"], known["size"])


def _build(part: Part, folder: Path) -> None:
    tree, work = folder / "tree", folder / "work"
    tree.mkdir()
    part.fill(tree, work)
    layer = write_layer(tree, folder / "layer.tar")
    (folder / "layer.json").write_text(json.dumps({"digest": layer.digest, "size": layer.size}))
