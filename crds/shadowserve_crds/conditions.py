"""Conditions of a status: positive polarity, one owner each, `Ready` computed from the others.

A condition that does not change keeps its `lastTransitionTime`, so that a settled object's status is written never.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from shadowserve_crds.base import Section

READY = "Ready"
LIST_MAP_BY_TYPE: dict[str, Any] = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
"""How the API server merges a list of conditions."""


class ConditionStatus(StrEnum):
    """What a condition says."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Reason(StrEnum):
    """Reasons that every kind uses."""

    SUCCEEDED = "Succeeded"
    """It is as wanted."""
    PENDING = "Pending"
    """On its way; nothing to do."""
    ERROR = "Error"
    """Something failed and is tried again."""
    FAILED = "Failed"
    """It stays like this until the resource is edited."""
    NOT_NEEDED = "NotNeeded"
    """The resource does not ask for it."""


class Condition(Section):
    """One statement about the object, in the form that `kubectl wait` and every tool know."""

    type: Annotated[str, Field(max_length=316)]
    """What it is about, in CamelCase."""
    status: ConditionStatus
    """Whether it is so."""
    reason: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")]
    """Why, in one CamelCase word that programs may rely on."""
    message: Annotated[str, Field(max_length=32768)] = ""
    """Why, in a sentence for people; says what to do where something has to be done."""
    observed_generation: Annotated[int, Field(ge=0)] = 0
    """The generation of the spec that this was said about."""
    last_transition_time: Annotated[str | None, Field(json_schema_extra={"format": "date-time"})] = None
    """When `status` changed last."""


def condition(kind: str, status: ConditionStatus | bool, reason: str, message: str) -> Condition:
    """Return a condition without time and generation: `merged` adds them."""
    if isinstance(status, bool):
        status = ConditionStatus.TRUE if status else ConditionStatus.FALSE
    return Condition(type=kind, status=status, reason=reason, message=message)


def merged(
    before: Sequence[Condition], fresh: Iterable[Condition], generation: int, now: datetime
) -> tuple[Condition, ...]:
    """Return the fresh conditions, each with the time when its status began."""
    times = {old.type: old for old in before}
    return tuple(
        new.model_copy(
            update={
                "observed_generation": generation,
                "last_transition_time": _since(times.get(new.type), new, now),
            }
        )
        for new in fresh
    )


def summary(conditions: Sequence[Condition], satisfied: str) -> Condition:
    """Return `Ready`: true when all are, else what the first that is false says, else the first that is unknown."""
    for wanted in (ConditionStatus.FALSE, ConditionStatus.UNKNOWN):
        for each in conditions:
            if each.status is wanted:
                return condition(READY, wanted, each.reason, f"{each.type}: {each.message}")
    return condition(READY, True, Reason.SUCCEEDED, satisfied)


def _since(old: Condition | None, new: Condition, now: datetime) -> str:
    if old is not None and old.status is new.status and old.last_transition_time:
        return old.last_transition_time
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
