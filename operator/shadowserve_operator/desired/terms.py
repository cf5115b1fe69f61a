"""What a PrefixCache gives the pods that use it: the terms of injection."""

from shadowserve_crds.placement import PlaceName
from shadowserve_crds.prefixcache import PrefixCache, Transport
from shadowserve_crds.quantities import Quantity
from shadowserve_operator.desired.config import (
    SIDECAR,
    STAGING_BYTES,
    config_map_name,
    secret_name,
    tls_secret_name,
)
from shadowserve_operator.desired.sidecar import SidecarTerms
from shadowserve_operator.settings import OperatorSettings

_MESSAGES_ONLY_CPU, _MESSAGES_ONLY_MEMORY = Quantity("200m"), Quantity("256Mi")
"""Enough for a sidecar that never restores by itself: messages, look-ups, and encoding at the lowest priority."""


def sidecar_terms(cache: PrefixCache, settings: OperatorSettings, written: str = "") -> SidecarTerms:
    """Return the terms; `written` is the digest of the settings that are written, "" if that does not matter."""
    host = cache.spec.placement.host.resources
    restores = PlaceName.HOST in cache.spec.placement.order
    return SidecarTerms(
        version=settings.version,
        image=settings.dataplane_image,
        cache=cache.name,
        config_map=config_map_name(cache),
        secret=secret_name(cache),
        tls_secret=tls_secret_name(cache, SIDECAR) if cache.spec.security.transport is Transport.MUTUAL_TLS else None,
        cpu=host.cpu if restores else _MESSAGES_ONLY_CPU,
        memory=host.memory if restores else _MESSAGES_ONLY_MEMORY,
        landing_bytes=int(cache.spec.placement.landing_buffer),
        staging_bytes=STAGING_BYTES,
        chunk_tokens=cache.spec.codec.chunk_tokens,
        config_digest=written,
    )
