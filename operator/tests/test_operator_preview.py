"""The plan for a manifest, without a cluster."""

from datetime import UTC, datetime

import pytest

from shadowserve_operator.errors import SettingsError
from shadowserve_operator.preview import preview
from shadowserve_operator.settings import OperatorSettings

HEAD = "apiVersion: shadowserve.io/v1alpha1\nkind: PrefixCache\nmetadata: {name: kv}\n"


def plan(text: str) -> str:
    return preview(text, OperatorSettings(), datetime(2026, 11, 24, tzinfo=UTC))


def test_every_object_is_listed_with_its_reason() -> None:
    lines = plan(HEAD).splitlines()
    assert lines[0] == "PrefixCache default/kv:"
    assert "  create StatefulSet kv-store: it does not exist" in lines
    assert "  create DaemonSet kv-data-plane: it does not exist" in lines


def test_what_cannot_be_parsed_is_refused_in_words() -> None:
    assert "refused: PrefixCache kv: spec.codec.tier" in plan(HEAD + "spec: {codec: {tier: Huge}}\n")
    with pytest.raises(SettingsError, match="not YAML"):
        plan("{")


POOL = """
---
apiVersion: shadowserve.io/v1alpha1
kind: InferencePool
metadata: {name: chat}
spec:
  model: {name: small, source: {type: HuggingFace, huggingFace: {repository: org/small}}}
  engine: {image: "vllm:1"}
  cacheRef: {name: kv}
"""


def test_a_pool_is_planned_with_the_cache_of_its_file() -> None:
    assert "  create Deployment chat: it does not exist" in plan(POOL + "---\n" + HEAD).splitlines()


def test_a_pool_without_its_cache_waits_for_it() -> None:
    told = plan(POOL)
    assert "create Deployment" not in told
    assert "not possible: PrefixCache kv is not in this file" in told
