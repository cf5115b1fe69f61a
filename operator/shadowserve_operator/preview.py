"""What the operator would do about a manifest, without any cluster: the same rendering and planning, printed.

Used by `shadowserve-operator --preview` and by `shadowserve plan -f`.
"""

from datetime import datetime

import yaml

from shadowserve_crds.base import InvalidResource
from shadowserve_crds.prefixcache import PrefixCache
from shadowserve_operator.errors import SettingsError
from shadowserve_operator.observe import Snapshot
from shadowserve_operator.plan import plan_changes
from shadowserve_operator.reconcile import desired_objects
from shadowserve_operator.settings import OperatorSettings
from shadowserve_operator.status import unsupported_store


def preview(text: str, settings: OperatorSettings, now: datetime) -> str:
    """Return the plan for all PrefixCaches in the YAML `text`, as for an empty cluster. Raises `SettingsError`."""
    try:
        documents = [document for document in yaml.safe_load_all(text) if document]
    except yaml.YAMLError as error:
        raise SettingsError(f"not YAML: {error}") from error
    lines: list[str] = []
    for document in documents:
        if not isinstance(document, dict):
            raise SettingsError(f"{document!r} is no Kubernetes object")
        lines += _lines(document, settings, now)
    return "\n".join(lines)


def _lines(document: dict[str, object], settings: OperatorSettings, now: datetime) -> list[str]:
    if document.get("kind") != PrefixCache.kind_name:
        return [f"{document.get('kind')}: not planned by this command"]
    metadata = document.get("metadata")
    placed = {"namespace": "default", **(metadata if isinstance(metadata, dict) else {})}
    try:
        cache = PrefixCache.parse({**document, "metadata": placed})
    except InvalidResource as invalid:
        return [f"refused: {invalid}"]
    desired = desired_objects(cache, Snapshot(children={}), settings, now)
    plan = plan_changes(desired.manifests, ())
    problem = unsupported_store(cache)
    return [
        f"PrefixCache {cache.namespace}/{cache.name}:",
        *(f"  {sentence}" for sentence in plan.sentences()),
        *([f"  not possible: {problem}"] if problem else []),
    ]
