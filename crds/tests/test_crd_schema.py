"""The generated CRDs: structural, complete, documented, and what is committed is what the models say."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel

from shadowserve_crds.base import InvalidResource, Rule, Section
from shadowserve_crds.generate import KINDS, drifted
from shadowserve_crds.inferencepool import InferencePool
from shadowserve_crds.prefixcache import PrefixCache
from shadowserve_crds.reference import reference_page
from shadowserve_crds.schema import NotStructural, definition, structural

_ROOT = Path(__file__).parents[2]
_FORBIDDEN = {"$ref", "$defs", "title", "const", "oneOf", "allOf", "not"}


def _everywhere(schema: object) -> list[dict[str, Any]]:
    if isinstance(schema, list):
        return [found for each in schema for found in _everywhere(each)]
    if not isinstance(schema, dict):
        return []
    return [schema, *(found for each in schema.values() for found in _everywhere(each))]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind_name)
def test_a_definition_holds_only_what_a_structural_schema_may(kind: Any) -> None:
    schema = definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for part in _everywhere(schema):
        assert not _FORBIDDEN & set(part), part
        assert part.get("default", "") is not None


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind_name)
def test_every_field_is_documented(kind: Any) -> None:
    def undocumented(path: str, schema: dict[str, Any]) -> list[str]:
        found = []
        for name, field in schema.get("properties", {}).items():
            here = f"{path}.{name}"
            if not field.get("description"):
                found.append(here)
            found += undocumented(here, field.get("items", field))
        return found

    schema = definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    assert not undocumented("spec", schema["spec"]) + undocumented("status", schema["status"])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind_name)
def test_every_refusal_begins_with_the_path_of_its_field_and_ends_with_the_fix(kind: Any) -> None:
    def unclear(path: str, schema: dict[str, Any]) -> list[str]:
        said = [rule["message"] for rule in schema.get("x-kubernetes-validations", ())]
        found = [f"{path}: {each}" for each in said if not each.startswith(path) or ": " not in each]
        for name, field in schema.get("properties", {}).items():
            found += unclear(f"{path}.{name}", field)
        return found

    schema = definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    assert not unclear("spec", schema["spec"])


def test_optional_fields_and_quantities_keep_their_form() -> None:
    spec = definition(KINDS[0])["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    assert "default" not in spec["store"]["properties"]["managed"]
    assert spec["placement"]["properties"]["landingBuffer"]["x-kubernetes-int-or-string"] is True
    assert spec["codec"]["properties"]["tier"]["enum"] == ["Lossless", "High", "Balanced", "Compact"]


def test_pools_can_be_scaled() -> None:
    version = definition(InferencePool)["spec"]["versions"][0]
    assert version["subresources"]["scale"]["labelSelectorPath"] == ".status.selector"


def test_rules_of_a_section_come_with_it() -> None:
    class Inner(Section):
        """Inner."""

        rules: ClassVar = (Rule("self.a > 0", "a must be positive"),)
        a: int = 1

    class Outer(Section):
        """Outer."""

        inner: Inner = Inner()
        perhaps: Inner | None = None

    properties = structural(Outer)["properties"]
    for name in ("inner", "perhaps"):
        assert properties[name]["x-kubernetes-validations"] == [{"message": "a must be positive", "rule": "self.a > 0"}]


def test_a_choice_of_types_is_refused_by_name() -> None:
    class Choice(BaseModel):
        either: int | str = 1

    with pytest.raises(NotStructural, match=r"Choice\.either"):
        structural(Choice)


def test_what_is_committed_is_what_the_models_say() -> None:
    assert not drifted(_ROOT), "run `make generate`"


def test_a_live_object_may_have_fields_of_a_newer_version_a_file_may_not() -> None:
    body = {"metadata": {"name": "kv"}, "spec": {"codec": {"tier": "High", "newer": 1}}}
    assert PrefixCache.parse(body).spec.codec.tier == "High"
    with pytest.raises(InvalidResource, match=r"spec\.codec\.newer"):
        PrefixCache.parse(body, strict=True)


def test_the_reference_says_which_fields_are_quantities_and_durations() -> None:
    page = reference_page(KINDS)
    assert "| `spec.placement.landingBuffer` | quantity | `512Mi` |" in page
    assert "| `spec.limits.lookupDeadline` | duration | `20ms` |" in page
    assert "| any |" not in page
