"""`python -m shadowserve_operator.install [--check]`: writes manifests/install.yaml, all of the base in one file.

The base needs no kustomize: every object in it is whole. So the file is its parts one after the other, and a story
compares it with what `kubectl kustomize` makes of the base.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

_ROOT = Path(__file__).parents[2]
_HEADER = "# Generated from manifests/base by `make generate`: do not edit.\n"


def parts(folder: Path) -> list[Path]:
    """Return the files that a kustomization names, in its order. Raises `OSError` for one that is not there."""
    found: list[Path] = []
    listing = yaml.safe_load((folder / "kustomization.yaml").read_text())
    for name in [*listing.get("resources", ()), *listing.get("components", ())]:
        place = (folder / name).resolve()
        found += parts(place) if place.is_dir() else [place]
    return found


def install_text(root: Path = _ROOT) -> str:
    """Return what install.yaml should be."""
    texts = (path.read_text().strip().removeprefix("---\n") for path in parts(root / "manifests/base"))
    return _HEADER + "\n---\n".join(texts) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Run; 1 when `--check` finds drift."""
    target = _ROOT / "manifests/install.yaml"
    fresh = target.is_file() and target.read_text() == install_text()
    if "--check" in arguments:
        if not fresh:
            print("manifests/install.yaml is not what manifests/base says: run `make generate`", file=sys.stderr)  # noqa: T201
        return 0 if fresh else 1
    if not fresh:
        target.write_text(install_text())
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
