"""The reference page for users, from the same models as the CRDs. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from shadowserve_crds.base import Resource
from shadowserve_crds.names import API_VERSION
from shadowserve_crds.quantities import DURATION_PATTERN, QUANTITY_PATTERN
from shadowserve_crds.schema import definition

_INTRODUCTION = f"""<!-- Generated from crds/shadowserve_crds by `make generate`: do not edit. -->
# Reference of the custom resources

Group and version `{API_VERSION}`. `kubectl explain` says the same. Durations are written as in Go (`50ms`), sizes as
Kubernetes quantities (`512Mi`). Fields without a default must be set, or may be left out where it says optional.

A change that *rolls the pods* has the pods of InferencePools replaced one after another, as `spec.rollout` says. Pods
that opted in by a label are not the operator's to replace: they keep the older settings until they are made anew, and
`shadowserve status` and `explain` name them.
"""

_BY_PATTERN = {DURATION_PATTERN: "duration", QUANTITY_PATTERN: "quantity"}


def reference_page(kinds: Sequence[type[Resource]]) -> str:
    """Return the page, in Markdown."""
    return "\n".join([_INTRODUCTION, *(line for kind in kinds for line in _kind(kind))]) + "\n"


def _kind(kind: type[Resource]) -> Iterator[str]:
    schema = definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    scope = "namespaced" if kind.namespaced else "cluster-scoped"
    yield f"## {kind.kind_name}\n"
    yield f"{schema['description']} ({scope}; `kubectl get {kind.short_names[0]}`)\n"
    yield "| field | type | default | meaning |"
    yield "|---|---|---|---|"
    for part in ("spec", "status"):
        yield from _fields(part, schema["properties"][part])
    rules = [*_rules("spec", schema["properties"]["spec"])]
    if rules:
        yield f"\nWhat the API server says of each {kind.kind_name} that it refuses:\n"
        yield from (f"* {message}" for message in rules)
    yield ""


def _fields(path: str, schema: dict[str, Any]) -> Iterator[str]:
    for name, field in schema.get("properties", {}).items():
        here = f"{path}.{name}"
        optional = "" if name in schema.get("required", ()) else "optional"
        nested = field.get("properties")
        default = "" if nested else _default(field, optional)
        yield f"| `{here}` | {_type(field)} | {default} | {_cell(field.get('description', ''))} |"
        inner = field["items"] if field.get("type") == "array" else field
        if not here.endswith("conditions"):
            yield from _fields(here + ("[]" if inner is not field else ""), inner)


def _type(field: dict[str, Any]) -> str:
    if values := field.get("enum"):
        return ", ".join(f"`{value}`" for value in values)
    if field.get("type") == "array":
        return f"list of {_type(field['items'])}"
    if "additionalProperties" in field:
        return "map"
    return _BY_PATTERN.get(field.get("pattern", "")) or str(field["type"])


def _default(field: dict[str, Any], optional: str) -> str:
    value = field.get("default")
    if value is None or value in ("", [], {}):
        return optional
    return f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _rules(path: str, schema: dict[str, Any]) -> Iterable[str]:
    yield from (rule["message"] for rule in schema.get("x-kubernetes-validations", ()))
    for name, field in schema.get("properties", {}).items():
        yield from _rules(f"{path}.{name}", field)
