"""What data planes say of their canaries, and what a PrefixCache's condition says of that. Pure: `network.py` asks.

A data plane stores a small chunk, fetches it through its own pipeline and compares; the operator only names the change
after which that has to be done again.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from shadowserve_crds import names
from shadowserve_crds.conditions import Condition, ConditionStatus, Reason, condition
from shadowserve_crds.placement import PlaceName
from shadowserve_crds.prefixcache import PrefixCache, PrefixCacheCondition
from shadowserve_operator.desired.assignment import uses_cards
from shadowserve_operator.desired.labels import digest
from shadowserve_operator.desired.wording import first_few, see_pods
from shadowserve_operator.kinds import Json

_MOST_NAMED = 3


class Word(StrEnum):
    """What a data plane says; `UNREACHABLE`: nothing."""

    VERIFIED = "Verified"
    FAILED = "Failed"
    PENDING = "Pending"
    UNREACHABLE = "Unreachable"


@dataclass(frozen=True, slots=True)
class Plane:
    """Whom to ask: `name` is for people, `address` is `host:port` of its metrics."""

    name: str
    address: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What one data plane said; `stage` is where the round trip failed, `detail` is for people."""

    plane: Plane
    word: Word
    stage: str = ""
    detail: str = ""


def change_of(cache: PrefixCache, store_pods: Sequence[Json], secrets: Sequence[Json], layout: str) -> str:
    """Return a name for how things are now: another one means that round trips have to be made again.

    `layout` names who has which slot of the store.
    """
    pods = [(pod["metadata"]["uid"], _restarts(pod)) for pod in store_pods]
    contents = [(secret["metadata"]["name"], secret.get("data")) for secret in secrets]
    return digest([cache.spec.dump(), layout, sorted(pods), sorted(contents, key=lambda each: str(each[0]))])


def host_planes(pods: Sequence[Json], wanted: Collection[str]) -> list[Plane]:
    """Return the data planes inside the sidecars of these pods, as far as they run, in the order of their names."""
    found = []
    for pod in sorted(pods, key=lambda each: str(each["metadata"]["name"])):
        name, address = pod["metadata"]["name"], sidecar_address(pod)
        if name in wanted and address:
            found.append(Plane(f"the sidecar of {name}", address))
    return found


def sidecar_address(pod: Json) -> str:
    """Return where a pod's sidecar can be asked, `host:port`; nothing while it does not run."""
    address = pod.get("status", {}).get("podIP", "")
    if not address or not _sidecar_runs(pod):
        return ""
    host = f"[{address}]" if ":" in address else address
    return f"{host}:{names.SIDECAR_METRICS_PORT}"


def _sidecar_runs(pod: Json) -> bool:
    statuses = pod.get("status", {}).get("initContainerStatuses") or ()
    return any(each["name"] == names.SIDECAR_CONTAINER and each.get("started") for each in statuses)


def round_trip_condition(cache: PrefixCache, answers: Sequence[Answer]) -> Condition:
    """Return `RoundTripVerified`. It is false only if a data plane says so: silence is no proof of a fault."""
    kind = PrefixCacheCondition.ROUND_TRIP_VERIFIED
    if not answers:
        return condition(kind, ConditionStatus.UNKNOWN, "NoDataPlane", _nobody(cache))
    failed = [each for each in answers if each.word is Word.FAILED]
    silent = [each for each in answers if each.word is Word.UNREACHABLE]
    if failed:
        told = [f"{each.plane.name}, at {each.stage}: {each.detail}" for each in failed]
        return condition(kind, False, Reason.ERROR, _listed("the round trip failed for ", told))
    if silent:
        told = [f"{each.plane.name} at {each.plane.address} ({each.detail})" for each in silent]
        message = _listed("cannot ask ", told) + "; the operator has to reach that port"
        return condition(kind, ConditionStatus.UNKNOWN, "Unreachable", message)
    if pending := [each.plane.name for each in answers if each.word is Word.PENDING]:
        message = f"round trips are being made; still waits for {first_few(pending, _MOST_NAMED)}"
        return condition(kind, ConditionStatus.UNKNOWN, Reason.PENDING, message)
    number = len(answers)
    through = answers[0].plane.name if number == 1 else f"each of {number} data planes"
    return condition(kind, True, Reason.SUCCEEDED, f"a chunk was stored, and came back unchanged through {through}")


def _nobody(cache: PrefixCache) -> str:
    order = cache.spec.placement.order
    if not uses_cards(order):
        see = see_pods(cache.namespace, {names.CACHE_LABEL: cache.name})
        return f"no data plane runs yet: on the host each engine's sidecar brings its own; {see}"
    host = ", and no engine restores on the host" if PlaceName.HOST in order else ""
    return f"no data plane serves on a card{host}; see DataPlaneReady, and kubectl get dpub"


def _listed(before: str, told: Sequence[str]) -> str:
    more = f"; and {len(told) - _MOST_NAMED} more" if len(told) > _MOST_NAMED else ""
    return before + "; ".join(told[:_MOST_NAMED]) + more


def _restarts(pod: Json) -> int:
    return sum(int(each.get("restartCount", 0)) for each in pod.get("status", {}).get("containerStatuses") or ())
