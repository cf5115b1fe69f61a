"""The custom resources on a real API server: samples are taken or refused in words, defaults show, tools find them."""

import copy
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from shadowserve_crds.generate import KINDS
from shadowserve_crds.samples import InvalidSample, invalid_samples, valid_samples
from shadowserve_lab.home import REPOSITORY
from shadowserve_testbed.api_server import ESTABLISHED, ApiServer
from shadowserve_testbed.kubectl import KubectlError

pytestmark = pytest.mark.timeout(1800)  # the first time, the API server is built
_GATEWAY = "sigs.k8s.io/gateway-api-inference-extension@v1.1.0"


@pytest.fixture(autouse=True, scope="module")
def _tidy(api: ApiServer) -> Iterator[None]:
    yield
    for kind in KINDS:
        where = ["--all-namespaces"] if kind.namespaced else []
        api.kubectl("delete", f"{kind.plural}.shadowserve.io", "--all", *where)


def test_every_valid_sample_is_taken(api: ApiServer) -> None:
    example = yaml.safe_load_all((REPOSITORY / "examples/pool-with-cache.yaml").read_text())
    for body in [*valid_samples().values(), *example]:
        api.kubectl("create", "--dry-run=server", "-f", "-", manifest=body)


@pytest.mark.parametrize("sample", invalid_samples(), ids=lambda sample: sample.name)
def test_an_invalid_sample_is_refused_in_words(api: ApiServer, sample: InvalidSample) -> None:
    if sample.updated is None:
        with pytest.raises(KubectlError) as refused:
            api.kubectl("create", "--dry-run=server", "-f", "-", manifest=sample.created)
    else:
        created, updated = _renamed(sample.created, sample.name), _renamed(sample.updated, sample.name)
        api.kubectl("create", "-f", "-", manifest=created)
        with pytest.raises(KubectlError) as refused:
            api.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", manifest=updated)
    assert sample.expected in str(refused.value)


def test_defaults_are_shown(api: ApiServer) -> None:
    api.kubectl("create", "-f", "-", manifest=_renamed(valid_samples()["prefixcache-smallest"], "defaults"))
    spec = _get(api, "pfc", "defaults")["spec"]
    assert spec["store"]["type"] == "Managed"
    assert spec["codec"] == {"chunkTokens": 256, "tier": "Balanced", "transform": "Auto"}
    assert spec["placement"]["order"] == ["DPU", "Host"]
    assert spec["placement"]["dpu"]["hostLabelKey"] == "provisioning.dpu.nvidia.com/host"
    assert spec["placement"]["landingBuffer"] == "512Mi"
    assert spec["limits"] == {"fetchDeadline": "5s", "lookupDeadline": "20ms", "maxInFlightChunks": 64}
    assert spec["security"] == {"transport": "MutualTLS"}


def test_what_is_shown_is_what_the_models_read(api: ApiServer) -> None:
    by_kind = {kind.kind_name: kind for kind in KINDS}
    for name, body in valid_samples().items():
        api.kubectl("create", "-f", "-", manifest=_renamed(body, f"read-{name}"))
        kind = by_kind[body["kind"]]
        live = kind.parse(_get(api, f"{kind.plural}.shadowserve.io", f"read-{name}"))
        assert live.metadata.uid
        assert live.spec == kind.parse(body).spec, "a default of the schema differs from the model's"


def test_short_names_category_and_explanations(api: ApiServer) -> None:
    for kind in KINDS:
        api.kubectl("get", *kind.short_names)
    api.kubectl("get", "shadowserve")
    assert "readers take every tier" in " ".join(api.kubectl("explain", "pfc.spec.codec.tier").split())


def test_a_pool_is_scaled_like_a_deployment(api: ApiServer) -> None:
    api.kubectl("create", "-f", "-", manifest=_renamed(valid_samples()["inferencepool"], "scaled"))
    api.kubectl("scale", "sspool/scaled", "--replicas=3")
    assert _get(api, "sspool", "scaled")["spec"]["replicas"] == 3


def test_status_is_a_subresource(api: ApiServer) -> None:
    api.kubectl("create", "-f", "-", manifest=_renamed(valid_samples()["prefixcache-smallest"], "untouched"))
    status = json.dumps({"status": {"pools": 7}})
    api.kubectl("patch", "pfc", "untouched", "--type=merge", "-p", status)
    assert "status" not in _get(api, "pfc", "untouched")
    api.kubectl("patch", "pfc", "untouched", "--subresource=status", "--type=merge", "-p", status)
    assert _get(api, "pfc", "untouched")["status"]["pools"] == 7


def test_the_other_inference_pool_lives_beside_ours(api: ApiServer) -> None:
    download = ["go", "mod", "download", "-json", _GATEWAY]
    done = subprocess.run(download, capture_output=True, text=True, check=True, timeout=300)
    folder = Path(json.loads(done.stdout)["Dir"]) / "config/crd/bases"
    theirs = folder / "inference.networking.k8s.io_inferencepools.yaml"
    api.kubectl("apply", "--server-side", "-f", str(theirs))
    api.kubectl(*ESTABLISHED, "inferencepools.inference.networking.k8s.io")
    api.kubectl("create", "-f", "-", manifest=_renamed(valid_samples()["inferencepool"], "beside"))
    assert _get(api, "sspool", "beside")["apiVersion"] == "shadowserve.io/v1alpha1"
    assert _get(api, "inferencepools.shadowserve.io", "beside")["apiVersion"] == "shadowserve.io/v1alpha1"
    with pytest.raises(KubectlError, match="not found"):
        api.kubectl("get", "inferencepools.inference.networking.k8s.io", "beside")


def _get(api: ApiServer, kind: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(api.kubectl("get", kind, name, "-o", "json"))
    return found


def _renamed(body: dict[str, Any], name: str) -> dict[str, Any]:
    renamed = copy.deepcopy(body)
    renamed["metadata"]["name"] = name
    return renamed
