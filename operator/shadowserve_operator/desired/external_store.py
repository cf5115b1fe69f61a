"""A store that somebody else runs: what was found at its endpoints, and what `StoreReady` says of that. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from shadowserve_crds.conditions import Condition, Reason, condition
from shadowserve_crds.prefixcache import PrefixCache, PrefixCacheCondition
from shadowserve_crds.store import ExternalStore, StoreTopology


class Finding(StrEnum):
    """What an endpoint is like. `CLUSTER` and `STANDALONE` let us in; the others do not."""

    STANDALONE = "one server"
    CLUSTER = "a member of a cluster"
    SILENT = "silent"
    NOT_LET_IN = "not let in"
    NOT_TRUSTED = "not trusted"
    NO_STORE = "no store"


@dataclass(frozen=True, slots=True)
class EndpointSeen:
    """One endpoint; `detail` is what it or the system said, for people."""

    endpoint: str
    finding: Finding
    detail: str = ""

    @property
    def serves(self) -> bool:
        """Whether we are let in."""
        return self.finding in (Finding.STANDALONE, Finding.CLUSTER)


def external_condition(cache: PrefixCache, seen: Sequence[EndpointSeen]) -> Condition:
    """Return `StoreReady`: the first thing that has to be done about the store, or that nothing has to."""
    kind, external = PrefixCacheCondition.STORE_READY, cache.spec.store.external
    assert external is not None, "the API server sees to that"
    for finding, reason in _TROUBLES.items():
        if found := [each for each in seen if each.finding is finding]:
            told = "; ".join(f"{each.endpoint}: {each.detail}" for each in found)
            return condition(kind, False, reason, f"{told}; {_fix(finding, external)}")
    wanted = Finding.CLUSTER if external.topology is StoreTopology.CLUSTER else Finding.STANDALONE
    if other := [each for each in seen if each.finding is not wanted]:
        right = StoreTopology.CLUSTER if other[0].finding is Finding.CLUSTER else StoreTopology.STANDALONE
        message = f"{other[0].endpoint} is {other[0].finding}: set spec.store.external.topology to {right}"
        return condition(kind, False, "TopologyMismatch", message)
    ends = "every endpoint" if len(seen) > 1 else "the endpoint"
    return condition(kind, True, Reason.SUCCEEDED, f"{ends} of the external store answers and is {wanted}")


_TROUBLES = {
    Finding.NOT_LET_IN: Reason.ERROR,
    Finding.NOT_TRUSTED: Reason.ERROR,
    Finding.NO_STORE: Reason.ERROR,
    Finding.SILENT: "Unreachable",
}


def _fix(finding: Finding, external: ExternalStore) -> str:
    match finding:
        case Finding.NOT_LET_IN if external.credentials_secret_ref is not None:
            return f"correct username and password in Secret {external.credentials_secret_ref.name}"
        case Finding.NOT_LET_IN:
            return "name a Secret with the password in spec.store.external.credentialsSecretRef"
        case Finding.NOT_TRUSTED if external.tls is not None and external.tls.ca_secret_ref is not None:
            return f"Secret {external.tls.ca_secret_ref.name} has to hold the authority that signed it, as ca.crt"
        case Finding.NOT_TRUSTED:
            return "name a Secret with its authority in spec.store.external.tls.caSecretRef"
        case Finding.NO_STORE if external.tls is None:
            return "if it speaks TLS, set spec.store.external.tls"
        case Finding.NO_STORE:
            return "if it speaks plain text, remove spec.store.external.tls"
    return "correct spec.store.external.endpoints, or let the operator reach them"
