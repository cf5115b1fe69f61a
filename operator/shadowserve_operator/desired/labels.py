"""Labels and owner references: the one definition of what is ours, and of what hash a rendered object carries."""

import hashlib
import json

from shadowserve_crds import names
from shadowserve_crds.base import Resource
from shadowserve_operator.kinds import Json


def labels_of(cache: str, component: str) -> dict[str, str]:
    """Return the labels of an object made for a PrefixCache."""
    return {
        names.MANAGED_BY_LABEL: names.MANAGED_BY,
        names.COMPONENT_LABEL: component,
        names.CACHE_LABEL: cache,
    }


def selector_of(cache: str, component: str) -> dict[str, str]:
    """Return the labels by which a workload's pods are found; they never change."""
    return {names.COMPONENT_LABEL: component, names.CACHE_LABEL: cache}


def owner_reference(owner: Resource) -> Json:
    """Return the reference that has an object deleted with its owner."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": owner.kind_name,
        "name": owner.name,
        "uid": owner.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def digest(document: object) -> str:
    """Return sixteen hex digits that change with the document's content."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def rendered(owner: Resource, body: Json) -> Json:
    """Return an object as it is applied: with its namespace, its owner, and the hash of what was rendered."""
    metadata = {**body["metadata"], "namespace": owner.namespace, "ownerReferences": [owner_reference(owner)]}
    annotations = {**metadata.get("annotations", {}), names.SPEC_HASH_ANNOTATION: digest(body)}
    return {**body, "metadata": {**metadata, "annotations": annotations}}
