"""What all resource models share: camelCase, frozen, docs under fields, and parsing of live objects.

Models are the single source: the CRD's schema, `kubectl explain` and the reference page are generated from them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from pydantic.alias_generators import to_camel

from shadowserve_crds.names import API_VERSION


class InvalidResource(Exception):
    """A resource that cannot be worked with; the message names the field and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A CEL rule of the API server and what it says to people who break it: the path from `spec.` on, and the fix."""

    rule: str
    message: str


@dataclass(frozen=True, slots=True)
class Column:
    """A column of `kubectl get`."""

    name: str
    path: str
    type: str = "string"
    priority: int = 0


def rule(expression: str, message: str) -> Any:
    """Return metadata of a field: a CEL rule about it."""
    validations: list[JsonValue] = [{"rule": expression, "message": message}]
    return Field(json_schema_extra={"x-kubernetes-validations": validations})


def immutable(path: str) -> Any:
    """Return metadata of a field that is fixed at creation; `path` is that from `spec.` on."""
    return rule("self == oldSelf", f"{path} is fixed at creation: make a new resource with the value you want")


class Section(BaseModel):
    """A part of a spec or a status. `rules` are checked by the API server (CEL)."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
    )
    rules: ClassVar[tuple[Rule, ...]] = ()

    def dump(self) -> dict[str, Any]:
        """Return it as it stands in a manifest: camelCase, without what is not set."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class StatusSection(Section):
    """A part of a status: what a newer operator wrote there is ignored."""

    model_config = ConfigDict(extra="ignore")


class Metadata(Section):
    """The part of `metadata` that is read."""

    model_config = ConfigDict(extra="ignore")
    name: str
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    deletion_timestamp: str | None = None

    @property
    def being_deleted(self) -> bool:
        """Whether the object is on its way out."""
        return self.deletion_timestamp is not None


class Resource(Section):
    """A custom resource; subclasses add `spec` and `status`, and say how the API server shows them."""

    model_config = ConfigDict(extra="ignore")
    kind_name: ClassVar[str]
    plural: ClassVar[str]
    short_names: ClassVar[tuple[str, ...]]
    namespaced: ClassVar[bool] = True
    columns: ClassVar[tuple[Column, ...]] = ()
    scale: ClassVar[Mapping[str, str] | None] = None

    metadata: Metadata

    @property
    def name(self) -> str:
        """Its name."""
        return self.metadata.name

    @property
    def key(self) -> tuple[str, str]:
        """Its namespace and name: no other resource of its kind has both."""
        return self.namespace, self.name

    @property
    def namespace(self) -> str:
        """Its namespace; empty for a cluster-scoped kind."""
        return self.metadata.namespace

    @classmethod
    def parse(cls, body: Mapping[str, Any], strict: bool = False) -> Self:
        """Return an object as a model. Raises `InvalidResource` naming every field that cannot be worked with.

        Fields that this version does not know are left out of a live object: custom resource definitions are upgraded
        before the operator, and their defaults show at once. `strict` refuses them, as mistakes in a person's file.
        """
        name = body.get("metadata", {}).get("name", "?")
        if body.get("kind", cls.kind_name) != cls.kind_name:
            raise InvalidResource(f"{name} is a {body.get('kind')}, not a {cls.kind_name}")
        if body.get("apiVersion", API_VERSION) != API_VERSION:
            raise InvalidResource(f"{cls.kind_name} {name}: apiVersion {body.get('apiVersion')} is not {API_VERSION}")
        try:
            known = {key: body[key] for key in ("metadata", "spec", "status") if key in body}
            return cls.model_validate(known, extra=None if strict else "ignore")
        except ValidationError as error:
            raise InvalidResource(f"{cls.kind_name} {name}: {_explained(error)}") from error


def _explained(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in one['loc'])}: {one['msg'].removeprefix('Value error, ')}"
        for one in error.errors(include_url=False)
    )
