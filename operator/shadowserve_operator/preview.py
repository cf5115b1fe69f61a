"""What the operator would do about manifests, without any cluster: the same rendering and planning, printed.

Used by `shadowserve-operator --preview` and by `shadowserve plan -f`.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import yaml

from shadowserve_crds.base import InvalidResource
from shadowserve_crds.inferencepool import InferencePool
from shadowserve_crds.prefixcache import PrefixCache
from shadowserve_operator.decision import desired_objects
from shadowserve_operator.errors import SettingsError
from shadowserve_operator.observe import Snapshot
from shadowserve_operator.plan import Plan, plan_changes
from shadowserve_operator.pool_observe import PoolSnapshot
from shadowserve_operator.pool_reconcile import desired_pool
from shadowserve_operator.pool_status import PoolFacts, next_pool_status
from shadowserve_operator.settings import OperatorSettings

Document = dict[str, Any]


def preview(text: str, settings: OperatorSettings, now: datetime) -> str:
    """Return the plan for all resources in the YAML `text`, as for an empty cluster. Raises `SettingsError`."""
    try:
        documents = [document for document in yaml.safe_load_all(text) if document]
    except yaml.YAMLError as error:
        raise SettingsError(f"not YAML: {error}") from error
    lines: list[str] = []
    caches: list[PrefixCache] = []
    for document in sorted(documents, key=_caches_first):
        try:
            lines += _lines(_placed(document), caches, settings, now)
        except InvalidResource as invalid:
            lines.append(f"refused: {invalid}")
    return "\n".join(lines)


def _caches_first(document: object) -> bool:
    return not (isinstance(document, dict) and document.get("kind") == PrefixCache.kind_name)


def _placed(document: object) -> Document:
    if not isinstance(document, dict):
        raise SettingsError(f"{document!r} is no Kubernetes object")
    metadata = document.get("metadata")
    return {**document, "metadata": {"namespace": "default", **(metadata if isinstance(metadata, dict) else {})}}


def _lines(document: Document, caches: list[PrefixCache], settings: OperatorSettings, now: datetime) -> list[str]:
    match document.get("kind"):
        case PrefixCache.kind_name:
            cache = PrefixCache.parse(document, strict=True)
            caches.append(cache)
            plan = plan_changes(desired_objects(cache, Snapshot(children={}), settings, now).manifests, ())
            return _told(f"PrefixCache {cache.namespace}/{cache.name}", plan, [])
        case InferencePool.kind_name:
            return _pool_lines(InferencePool.parse(document, strict=True), caches, settings, now)
    return [f"{document.get('kind')}: nothing of the operator's"]


def _pool_lines(
    pool: InferencePool, caches: Sequence[PrefixCache], settings: OperatorSettings, now: datetime
) -> list[str]:
    wanted = pool.spec.cache_ref.name if pool.spec.cache_ref else ""
    cache = next((each for each in caches if (each.namespace, each.name) == (pool.namespace, wanted)), None)
    error = f"PrefixCache {wanted} is not in this file" if wanted and cache is None else ""
    snapshot = PoolSnapshot(children={}, cache=cache, cache_error=error)
    desired = desired_pool(pool, snapshot, settings)
    facts = PoolFacts(desired.detached if desired else "")
    conditions = next_pool_status(pool, snapshot, facts, now).conditions
    problems = [each.message for each in conditions if each.type == "CacheAttached" and str(each.status) == "False"]
    plan = plan_changes(desired.objects if desired else (), ())
    return _told(f"InferencePool {pool.namespace}/{pool.name}", plan, problems if error or facts.detached else [])


def _told(what: str, plan: Plan, problems: Sequence[str]) -> list[str]:
    return [f"{what}:", *(f"  {each}" for each in plan.sentences()), *(f"  not possible: {each}" for each in problems)]
