"""`python -m shadowserve_crds.generate [--check]`: writes the CRDs and the reference page; `--check` finds drift."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from shadowserve_crds.base import Resource
from shadowserve_crds.dpubinding import DPUBinding
from shadowserve_crds.inferencepool import InferencePool
from shadowserve_crds.names import GROUP
from shadowserve_crds.prefixcache import PrefixCache
from shadowserve_crds.reference import reference_page
from shadowserve_crds.schema import definition

KINDS: tuple[type[Resource], ...] = (PrefixCache, InferencePool, DPUBinding)
_ROOT = Path(__file__).parents[2]
_HEADER = "# Generated from crds/shadowserve_crds by `make generate`: do not edit.\n"


def generated_files() -> dict[Path, str]:
    """Return everything that is generated, by its path in the repository."""
    folder = Path("crds/generated")
    files = {folder / f"{GROUP}_{kind.plural}.yaml": _HEADER + _as_yaml(definition(kind)) for kind in KINDS}
    listing = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": sorted(path.name for path in files),
    }
    files[folder / "kustomization.yaml"] = _HEADER + _as_yaml(listing)
    files[Path("docs/reference.md")] = reference_page(KINDS)
    return files


def drifted(root: Path) -> list[Path]:
    """Return the files under `root` that differ from what would be generated."""
    wanted = generated_files()
    return [path for path, text in wanted.items() if not (root / path).is_file() or (root / path).read_text() != text]


def main(arguments: Sequence[str]) -> int:
    """Run; 1 when `--check` finds drift."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, say what would change")
    options = parser.parse_args(arguments)
    stale = drifted(_ROOT)
    if options.check:
        for path in stale:
            print(f"{path} is not what its models say: run `make generate`", file=sys.stderr)  # noqa: T201
        return 1 if stale else 0
    for path in stale:
        (_ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (_ROOT / path).write_text(generated_files()[path])
    return 0


def _as_yaml(document: object) -> str:
    return yaml.safe_dump(document, sort_keys=True, width=120, allow_unicode=True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
