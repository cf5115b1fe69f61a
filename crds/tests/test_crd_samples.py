"""The samples: valid ones are understood; invalid ones say what they expect. The API server's word is an e2e story."""

from pathlib import Path

import pytest
import yaml

from shadowserve_crds.base import InvalidResource
from shadowserve_crds.generate import KINDS
from shadowserve_crds.placement import PlaceName
from shadowserve_crds.prefixcache import CodecTier, PrefixCache
from shadowserve_crds.samples import SAMPLES, invalid_samples, valid_samples
from shadowserve_crds.store import StoreType

_BY_NAME = {kind.kind_name: kind for kind in KINDS}


@pytest.mark.parametrize("path", sorted((SAMPLES / "valid").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_valid_sample_is_understood_and_begins_with_its_story(path: Path) -> None:
    assert path.read_text().startswith("# ")
    body = yaml.safe_load(path.read_text())
    resource = _BY_NAME[body["kind"]].parse(body)
    assert resource.name == body["metadata"]["name"]


def test_every_kind_has_a_valid_and_an_invalid_sample() -> None:
    assert {body["kind"] for body in valid_samples().values()} == set(_BY_NAME)
    assert {sample.created["kind"] for sample in invalid_samples()} == set(_BY_NAME)


def test_every_rule_of_every_kind_has_a_sample_that_breaks_it() -> None:
    from shadowserve_crds.schema import definition

    said = {sample.expected for sample in invalid_samples()}

    def rules(schema: object) -> list[str]:
        if isinstance(schema, list):
            return [message for each in schema for message in rules(each)]
        if not isinstance(schema, dict):
            return []
        own = [rule["message"] for rule in schema.get("x-kubernetes-validations", ())]
        return own + [message for each in schema.values() for message in rules(each)]

    messages = [message for kind in KINDS for message in rules(definition(kind))]
    assert messages
    unbroken = [message for message in messages if not any(message.startswith(text) for text in said)]
    assert not unbroken


def test_defaults_are_those_of_the_documentation() -> None:
    cache = PrefixCache.parse({"metadata": {"name": "c", "namespace": "n"}})
    spec = cache.spec
    assert spec.store.type is StoreType.MANAGED
    assert spec.codec.tier is CodecTier.BALANCED
    assert spec.codec.chunk_tokens == 256
    assert spec.placement.order == [PlaceName.DPU, PlaceName.HOST]
    assert spec.placement.dpu.host_label_key == "provisioning.dpu.nvidia.com/host"
    assert (spec.limits.lookup_deadline.seconds, spec.limits.fetch_deadline.seconds) == (0.02, 5)
    assert int(spec.placement.landing_buffer) == 512 << 20


def test_what_cannot_be_worked_with_is_named_with_its_field() -> None:
    body = {"metadata": {"name": "c"}, "spec": {"limits": {"fetchDeadline": "soon"}, "codec": {"tier": "Best"}}}
    with pytest.raises(InvalidResource) as refused:
        PrefixCache.parse(body)
    assert "PrefixCache c" in str(refused.value)
    assert "spec.limits.fetchDeadline: 'soon' is not a duration" in str(refused.value)
    assert "spec.codec.tier" in str(refused.value)


@pytest.mark.parametrize("transform", ["Head", "Layers"])
def test_a_transform_that_would_do_nothing_is_refused_also_without_an_api_server(transform: str) -> None:
    with pytest.raises(InvalidResource, match=r"PrefixCache c: spec\.codec\.transform: Head and Layers are not built"):
        PrefixCache.parse({"metadata": {"name": "c"}, "spec": {"codec": {"transform": transform}}})


def test_what_a_newer_operator_wrote_into_the_status_is_ignored() -> None:
    cache = PrefixCache.parse({"metadata": {"name": "c"}, "status": {"observedGeneration": 2, "novelty": 1}})
    assert cache.status.observed_generation == 2
