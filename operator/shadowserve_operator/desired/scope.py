"""Whose chunks a pod shares that is of no InferencePool: those of its workload. Pure, from the pod as it is admitted.

The pod has no uid yet then, but its owner. A Deployment's pods belong to a ReplicaSet, which is another one after every
rollout, so there the Deployment counts, by its name: that is known without asking anybody.

Owners are what the pod says, and nobody verifies them. So no scope made here equals that of an InferencePool, which is
a plain uid: whatever a pod says of itself, it gets no pool's chunks.
"""

from shadowserve_operator.kinds import Json

_TEMPLATE_HASH = "pod-template-hash"
"""The label that ends the names of a Deployment's ReplicaSets."""


def owner_scope(pod: Json) -> str:
    """Return what pods that share chunks have in common; "": it shares with nobody."""
    metadata = pod["metadata"]
    for owner in metadata.get("ownerReferences") or ():
        if owner.get("controller"):
            deployment = _deployment(owner, (metadata.get("labels") or {}).get(_TEMPLATE_HASH, ""))
            return f"Deployment/{deployment}" if deployment else f"owner/{owner['uid']}"
    return ""


def _deployment(owner: Json, template_hash: str) -> str:
    ending = f"-{template_hash}"
    ours = owner["kind"] == "ReplicaSet" and owner["apiVersion"].startswith("apps/")
    if not (ours and template_hash and owner["name"].endswith(ending)):
        return ""
    return str(owner["name"]).removesuffix(ending)
