"""The samples beside this package: valid resources, and invalid ones as a valid base, a change, and the refusal.

An invalid sample is a YAML file: its first comment is the text that the refusal must hold; `base` is the valid sample
that it changes, by `set` (path: value) or `remove` (paths) before it is created, or by `update` after.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

SAMPLES = Path(__file__).parents[1] / "samples"


@dataclass(frozen=True)
class InvalidSample:
    """`created` is refused; or, when there is an `updated`, is accepted and then refuses to become that."""

    name: str
    expected: str
    created: dict[str, Any]
    updated: dict[str, Any] | None


def valid_samples() -> dict[str, dict[str, Any]]:
    """Return the valid resources by the stem of their file."""
    return {path.stem: yaml.safe_load(path.read_text()) for path in sorted((SAMPLES / "valid").glob("*.yaml"))}


def invalid_samples() -> list[InvalidSample]:
    """Return the invalid ones."""
    return [_invalid(path) for path in sorted((SAMPLES / "invalid").glob("*.yaml"))]


def _invalid(path: Path) -> InvalidSample:
    text = path.read_text()
    change = yaml.safe_load(text)
    base = yaml.safe_load((SAMPLES / change["base"]).read_text())
    created = _changed(base, change.get("set", {}), change.get("remove", ()))
    updated = _changed(base, change["update"], ()) if "update" in change else None
    return InvalidSample(path.stem, text.splitlines()[0].removeprefix("# "), created, updated)


def _changed(base: dict[str, Any], values: Mapping[str, Any], removed: Iterable[str]) -> dict[str, Any]:
    changed = copy.deepcopy(base)
    for path, value in values.items():
        holder, name = _holder(changed, path)
        holder[name] = value
    for path in removed:
        holder, name = _holder(changed, path)
        del holder[name]
    return changed


def _holder(resource: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    *parents, name = path.split(".")
    for parent in parents:
        resource = resource.setdefault(parent, {})
    return resource, name
