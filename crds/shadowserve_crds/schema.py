"""A pydantic model's JSON schema as Kubernetes takes it: structural OpenAPI 3, nothing referenced. Pure.

What Kubernetes cannot express is refused here, at generation time, and not by an API server in front of a user.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from shadowserve_crds.base import Resource, Section
from shadowserve_crds.names import CATEGORY, GROUP, VERSION

Schema = dict[str, Any]
_DROPPED = frozenset({"title", "additionalProperties", "$defs"})
_AS_IT_IS = ("x-kubernetes-preserve-unknown-fields", "x-kubernetes-int-or-string")


class NotStructural(Exception):
    """A model that no CRD can express; the message says where and why."""


def definition(kind: type[Resource]) -> Schema:
    """Return the CustomResourceDefinition of a kind."""
    singular = kind.kind_name.lower()
    names = {
        "categories": [CATEGORY],
        "kind": kind.kind_name,
        "listKind": f"{kind.kind_name}List",
        "plural": kind.plural,
        "shortNames": list(kind.short_names),
        "singular": singular,
    }
    subresources: Schema = {"status": {}, **({"scale": dict(kind.scale)} if kind.scale else {})}
    version = {
        "additionalPrinterColumns": [_column(column) for column in kind.columns],
        "name": VERSION,
        "schema": {"openAPIV3Schema": _object_schema(kind)},
        "served": True,
        "storage": True,
        "subresources": subresources,
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": names,
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "versions": [version],
        },
    }


def structural(model: type[BaseModel]) -> Schema:
    """Return the structural schema of a model. Raises `NotStructural`."""
    schema = model.model_json_schema(by_alias=True, mode="validation")
    return _converted(schema, schema.get("$defs", {}), model.__name__, _rules_by_name(model))


def _object_schema(kind: type[Resource]) -> Schema:
    whole = structural(kind)
    properties = whole["properties"]
    required = ["spec"] if "spec" in whole.get("required", ()) else []
    fields = {
        "apiVersion": {"description": f"{GROUP}/{VERSION}", "type": "string"},
        "kind": {"description": kind.kind_name, "type": "string"},
        "metadata": {"type": "object"},
        "spec": properties["spec"],
        "status": _without_defaults(properties["status"]),
    }
    shape: Schema = {"description": _first_paragraph(kind), "properties": fields, "type": "object"}
    return {**shape, "required": required} if required else shape


def _column(column: Any) -> Schema:
    shown = {"jsonPath": column.path, "name": column.name, "type": column.type}
    return {**shown, "priority": column.priority} if column.priority else shown


def _rules_by_name(model: type[BaseModel]) -> Mapping[str, list[Schema]]:
    """Return the CEL rules of every section that can be reached, by the section's name."""
    found: dict[str, list[Schema]] = {}
    waiting: list[Any] = [model]
    while waiting:
        each = waiting.pop()
        waiting.extend(getattr(each, "__args__", ()))
        if isinstance(each, type) and issubclass(each, BaseModel) and each.__name__ not in found:
            rules = each.rules if issubclass(each, Section) else ()
            found[each.__name__] = [{"message": rule.message, "rule": rule.rule} for rule in rules]
            waiting.extend(field.annotation for field in each.model_fields.values())
    return found


def _converted(schema: Schema, definitions: Schema, path: str, rules: Mapping[str, list[Schema]]) -> Schema:
    if reference := schema.get("$ref"):
        name = reference.rsplit("/", 1)[-1]
        target = {**definitions[name], **{key: value for key, value in schema.items() if key != "$ref"}}
        converted = _converted(target, definitions, path, rules)
        own = [*rules.get(name, ()), *converted.pop("x-kubernetes-validations", ())]
        return {**converted, "x-kubernetes-validations": own} if own else converted
    if any(schema.get(word) for word in _AS_IT_IS):
        return {key: value for key, value in schema.items() if key not in _DROPPED}
    if options := schema.get("anyOf"):
        return _optional(schema, options, definitions, path, rules)
    if unknown := {"oneOf", "allOf", "not"} & set(schema):
        raise NotStructural(f"{path}: {', '.join(unknown)} has no structural form")
    result = {key: value for key, value in schema.items() if key not in _DROPPED and key != "const"}
    result |= _nested(schema, definitions, path, rules)
    if "default" in result:
        result["default"] = _without_nulls(result["default"])
    if "type" not in result and "enum" not in result:
        raise NotStructural(f"{path}: no type")
    return result


def _nested(schema: Schema, definitions: Schema, path: str, rules: Mapping[str, list[Schema]]) -> Schema:
    """Return what differs because of the schemas inside this one."""
    nested: Schema = {}
    if "const" in schema:
        nested["enum"] = [schema["const"]]
    if "items" in schema:
        nested["items"] = _converted(schema["items"], definitions, f"{path}[]", rules)
    if "properties" in schema:
        fields = schema["properties"].items()
        nested["properties"] = {name: _converted(field, definitions, f"{path}.{name}", rules) for name, field in fields}
    elif isinstance(values := schema.get("additionalProperties"), dict):
        nested["additionalProperties"] = _converted(values, definitions, f"{path}.*", rules)
    return nested


def _optional(
    schema: Schema, options: list[Schema], definitions: Schema, path: str, rules: Mapping[str, list[Schema]]
) -> Schema:
    """Return the schema of `X | None`: a field that may be absent."""
    real = [option for option in options if option.get("type") != "null"]
    if len(real) != 1 or len(real) == len(options):
        raise NotStructural(f"{path}: a choice of several types has no structural form")
    rest = {key: value for key, value in schema.items() if key != "anyOf" and not (key == "default" and value is None)}
    return _converted({**real[0], **rest}, definitions, path, rules)


def _without_nulls(value: Any) -> Any:
    """Return a default as the API server takes it: what is not set is absent."""
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return value


def _without_defaults(schema: Schema) -> Schema:
    """Return the schema of a status: what is not known yet is absent, never a default."""
    kept = {key: value for key, value in schema.items() if key != "default"}
    if "properties" in kept:
        kept["properties"] = {name: _without_defaults(field) for name, field in kept["properties"].items()}
    if "items" in kept:
        kept["items"] = _without_defaults(kept["items"])
    return kept


def _first_paragraph(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().split("\n\n")[0]
