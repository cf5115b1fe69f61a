"""The cache generation of a pool: a digest of everything in the resources that decides which cached chunks fit.

It is shown, so that people see when caches start anew. The keys themselves depend on more: the connector hashes the
model's files, and the tokenizer's.
"""

from shadowserve_crds.inferencepool import InferencePool
from shadowserve_crds.prefixcache import Isolation, PrefixCache
from shadowserve_operator.desired.labels import digest


def cache_generation(pool: InferencePool, cache: PrefixCache | None) -> str:
    """Return sixteen hex digits; nothing without a cache."""
    if cache is None:
        return ""
    isolation = cache.spec.tenancy.isolation
    return digest(
        {
            "model": pool.spec.model.dump(),
            "chunkTokens": cache.spec.codec.chunk_tokens,
            "isolation": str(isolation),
            "pool": "" if isolation is Isolation.SHARED else pool.metadata.uid,
        }
    )
