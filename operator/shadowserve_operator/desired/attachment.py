"""What sidecars say of their engines, and what a pool's `CacheAttached` says of that. Pure: `network.py` asks.

Only what a sidecar says counts: silence is no proof of a fault, and an engine that still loads has not attached yet.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from shadowserve_crds import names
from shadowserve_crds.conditions import Condition, condition
from shadowserve_crds.inferencepool import InferencePool, InferencePoolCondition
from shadowserve_operator.desired.round_trip import Plane, sidecar_address
from shadowserve_operator.desired.wording import first_few
from shadowserve_operator.kinds import Json

_DIFFERS, _OLDER = "HashContractDiffers", "OlderSettings"
_MOST_NAMED = 3
_MEBIBYTE = 1 << 20
_NO_NAME = re.compile(r"[^a-z0-9.-]+")
"""What separates names of pods from the rest of a message."""


class EngineState(StrEnum):
    """What a sidecar says of its engine; `UNREACHABLE`: nothing."""

    WAITING = "Waiting"
    ATTACHED = "Attached"
    TOO_SMALL = "LandingBufferTooSmall"
    REFUSED = "EngineRefused"
    UNREACHABLE = "Unreachable"


@dataclass(frozen=True, slots=True)
class SidecarSays:
    """One sidecar's answer; `plane.name` is the pod's.

    `detail` is why it refused its engine; `chunks` of the model fit into the landing buffer, which had to have
    `wanted_bytes`; `contract` is the same for engines that share chunks, "" while the model is being hashed. `settings`
    is the digest of those that it was started with.
    """

    plane: Plane
    state: EngineState
    detail: str = ""
    chunks: int = 0
    wanted_bytes: int = 0
    contract: str = ""
    settings: str = ""


@dataclass(frozen=True, slots=True)
class SidecarPod:
    """A pod of a pool whose sidecar can be asked at `address`; `template` names the template that it was made from.

    `settings` is the digest of those that it was made for.
    """

    name: str
    address: str
    template: str
    settings: str = ""


def attachment_trouble(
    pool: InferencePool, pods: Sequence[SidecarPod], says: Sequence[SidecarSays], written: str | None = None
) -> Condition | None:
    """Return `CacheAttached` if something is wrong with how engines attached, with the fix in words; else None.

    `written` is the digest of the settings that sidecars are given now, None while it is not known.
    """
    kind, cache = InferencePoolCondition.CACHE_ATTACHED, pool.spec.cache_ref.name if pool.spec.cache_ref else ""
    if small := [each for each in says if each.state is EngineState.TOO_SMALL]:
        wanted = max(each.wanted_bytes for each in small)
        message = (
            f"landing buffers hold {min(each.chunks for each in small)} chunks of this model in {_named(small)}: set "
            f"spec.placement.landingBuffer of PrefixCache {cache} to at least {-(-wanted // _MEBIBYTE)}Mi"
        )
        return condition(kind, False, EngineState.TOO_SMALL, message)
    if refused := [each for each in says if each.state is EngineState.REFUSED]:
        message = f"the sidecar refused the engine of {_named(refused)}: {refused[0].detail}"
        return condition(kind, False, EngineState.REFUSED, message)
    if older := _too_early(pods, says, written):
        message = (
            f"{_named(older)} started with older settings than PrefixCache {cache} gives now, because these were just "
            "being written: delete what is named, so that it is made anew"
        )
        return condition(kind, False, _OLDER, message)
    if odd := _odd_ones_out(pods, says):
        message = (
            f"{_named(odd)} and the other pods compute different keys for the same prompts, so they share no chunks: "
            "the model's files differ; give all pods the same ones, for example by a fixed spec.model.revision"
        )
        return condition(kind, False, _DIFFERS, message)
    return None


def _too_early(pods: Sequence[SidecarPod], says: Sequence[SidecarSays], written: str | None) -> list[SidecarSays]:
    """Return those that were made for the settings of now, and read others: their node had not seen the new ones yet.

    Those that were made for others are rolled.
    """
    current = {pod.name for pod in pods if written and pod.settings == written}
    return [each for each in says if each.plane.name in current and each.settings not in ("", written)]


def read_otherwise(pods: Iterable[Json], says: Iterable[SidecarSays]) -> dict[str, str]:
    """Return the digest of the settings that pods really read, by their names, where their annotation has another."""
    read = {each.plane.name: each.settings for each in says if each.settings}
    stamped = {pod["metadata"]["name"]: pod["metadata"]["annotations"].get(names.CONFIG_ANNOTATION) for pod in pods}
    return {name: settings for name, settings in read.items() if stamped.get(name, settings) != settings}


def opted_in(pods: Iterable[Json]) -> list[Json]:
    """Return the injected pods of no pool whose sidecar can be asked, the youngest first: nobody else replaces them."""
    found = [
        pod
        for pod in pods
        if names.INJECTED_ANNOTATION in (pod["metadata"].get("annotations") or {})
        and names.POOL_LABEL not in (pod["metadata"].get("labels") or {})
        and sidecar_address(pod)
    ]
    return sorted(found, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")), reverse=True)


def still_said(before: Condition | None, now: Condition | None, silent: Collection[str]) -> Condition | None:
    """Return the trouble `now`, or the one `before` while a pod that it names is silent: silence takes nothing back."""
    if before is None or before.reason not in (EngineState.TOO_SMALL, EngineState.REFUSED, _DIFFERS, _OLDER):
        return now
    named = _NO_NAME.split(before.message)
    return before if (now is None or now.reason == before.reason) and not set(named).isdisjoint(silent) else now


def _odd_ones_out(pods: Sequence[SidecarPod], says: Sequence[SidecarSays]) -> list[SidecarSays]:
    """Return those whose contract is not that of most pods of their template: templates differ during a rollout."""
    template = {pod.name: pod.template for pod in pods}
    known = [each for each in says if each.contract]
    counts = Counter((template.get(each.plane.name, ""), each.contract) for each in known)
    usual: dict[str, str] = {}
    for (made_from, contract), _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        usual.setdefault(made_from, contract)
    return [each for each in known if usual[template.get(each.plane.name, "")] != each.contract]


def _named(says: Sequence[SidecarSays]) -> str:
    return first_few((each.plane.name for each in says), _MOST_NAMED)
