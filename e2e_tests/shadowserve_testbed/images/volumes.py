"""What engines in pods need besides an image: volumes with vLLM's packages and the model, and how a pool uses them.

vLLM and torch are 6 GB: a `local` PersistentVolume gives pods what set-up has on this machine, without copying.
"""

import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shadowserve_testbed.images.catalogue import ENGINE, ENGINE_FOLDER

STORAGE_CLASS = "testbed-local"
ENGINE_CLAIM, MODEL_CLAIM = "testbed-engine", "testbed-model"
_SIZES = {ENGINE_CLAIM: "10Gi", MODEL_CLAIM: "1Gi"}
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "TORCHDYNAMO_DISABLE": "1",  # else a request for log probabilities compiles C++, and there is no compiler
}


@dataclass(frozen=True, slots=True)
class EngineFiles:
    """Folders on the nodes: vLLM's packages, and a model in Hugging Face's layout."""

    packages: Path
    model: Path

    @classmethod
    def of(cls, environment: Path, model: Path) -> "EngineFiles":
        """Return those of the engine's environment and of the model that set-up made, readable for everybody."""
        files = cls(next(environment.glob("lib/python*/site-packages")), model)
        for folder in (files.packages, files.model):
            make_readable(folder)
        return files


def make_readable(folder: Path) -> None:
    """Let everybody read what is in `folder`: engines have a user of their own, and weights are written 0600."""
    for path in (folder, *folder.rglob("*")):
        if path.is_symlink():
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        wanted = mode | (0o555 if path.is_dir() else 0o444)
        if wanted != mode:
            path.chmod(wanted)


def volume_manifests(files: EngineFiles, nodes: Sequence[str], namespace: str) -> list[dict[str, Any]]:
    """Return both volumes, which only `nodes` have, and the claims on them in `namespace`."""
    return [
        manifest
        for claim, folder in ((ENGINE_CLAIM, files.packages), (MODEL_CLAIM, files.model))
        for manifest in (_volume(claim, folder, nodes, namespace), _claim(claim, namespace))
    ]


def _volume(claim: str, folder: Path, nodes: Sequence[str], namespace: str) -> dict[str, Any]:
    on_nodes = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": list(nodes)}]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"{claim}-{namespace}"},
        "spec": {
            "capacity": {"storage": _SIZES[claim]},
            "accessModes": ["ReadOnlyMany"],
            "storageClassName": STORAGE_CLASS,
            "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"namespace": namespace, "name": claim},
            "local": {"path": str(folder)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [on_nodes]}},
        },
    }


def _claim(claim: str, namespace: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": claim, "namespace": namespace},
        "spec": {
            "accessModes": ["ReadOnlyMany"],
            "storageClassName": STORAGE_CLASS,
            "volumeName": f"{claim}-{namespace}",
            "resources": {"requests": {"storage": _SIZES[claim]}},
        },
    }


def model_source() -> dict[str, Any]:
    """Return `spec.model.source` of an InferencePool that serves the model of the volume."""
    return {"type": "PersistentVolumeClaim", "persistentVolumeClaim": {"claimName": MODEL_CLAIM, "path": "/"}}


def engine_section(args: Sequence[str] = (), variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return `spec.engine` of an InferencePool of vLLM on one core, with 1 GiB of KV cache; `args` are vLLM's."""
    environment = _ENVIRONMENT | dict(variables or {})
    mounts = [
        {"name": "engine", "mountPath": ENGINE_FOLDER, "readOnly": True},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    volumes = [
        {"name": "engine", "persistentVolumeClaim": {"claimName": ENGINE_CLAIM, "readOnly": True}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
    ]
    return {
        "image": ENGINE,
        "args": ["--enforce-eager", "--max-num-seqs", "8", *args],
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "resources": {"requests": {"cpu": "200m", "memory": "3Gi"}, "limits": {"memory": "6Gi"}},
        "podTemplate": {"spec": {"containers": [{"name": "engine", "volumeMounts": mounts}], "volumes": volumes}},
    }
