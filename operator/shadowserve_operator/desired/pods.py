"""What all pods that the operator makes have in common: least privileges, and spreading where it is possible."""

from collections.abc import Mapping

from shadowserve_operator.kinds import Json

UNPRIVILEGED_USER = 65532
"""Whom our own images run as."""


def fixed(amounts: Mapping[str, str]) -> Json:
    """Return a container's resources: it gets what it asks for, and no more."""
    return {"requests": dict(amounts), "limits": dict(amounts)}


def restricted(user: int) -> Json:
    """Return a container's security context that the `restricted` Pod Security Standard takes."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "runAsUser": user,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def writable(security: Json) -> Json:
    """Return the same for a container that must write into its own file system."""
    return {**security, "readOnlyRootFilesystem": False}


def tolerant_anti_affinity(selector: Mapping[str, str]) -> Json:
    """Return an affinity that spreads pods over nodes, but never keeps one from running."""
    term = {"labelSelector": {"matchLabels": dict(selector)}, "topologyKey": "kubernetes.io/hostname"}
    weighted = [{"weight": 100, "podAffinityTerm": term}]
    return {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": weighted}}
