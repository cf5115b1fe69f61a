"""How many replicas hold an objective, and what one fewer would do."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

MOST_REPLICAS = 1024


class Quantity(StrEnum):
    """What an objective bounds."""

    TTFT = "ttft"
    TPOT = "tpot"


@dataclass(frozen=True, slots=True)
class Objective:
    """A quantile of a latency that must not exceed `seconds`, for example TTFT p90 of 2 s."""

    quantity: Quantity
    share: float
    seconds: float

    def __str__(self) -> str:
        return f"{self.quantity.upper()} p{100 * self.share:g}"


@dataclass(frozen=True, slots=True)
class Plan:
    """`replicas` is None when no number holds the objectives. `risk` is the probability that one is missed."""

    replicas: int | None
    risk: float
    reason: str
    warnings: tuple[str, ...]

    @property
    def confident(self) -> bool:
        """Return whether the observations carry the answer."""
        return self.replicas is not None and not self.warnings

    def explain(self) -> str:
        """Return the plan in words."""
        return "\n".join([self.reason, *(f"warning: {warning}" for warning in self.warnings)])


Risks = Callable[[int], tuple[float, ...]]
Doubts = Callable[[int], tuple[str, ...]]


def plan_replicas(
    risks: Risks, objectives: tuple[Objective, ...], confidence: float, doubts: Doubts = lambda replicas: ()
) -> Plan:
    """Return the fewest replicas whose every objective is kept with probability `confidence`.

    `risks` gives for a number of replicas the probability that each objective is missed; it falls with the number.
    `doubts` gives what speaks against an answer with that number; they become the plan's warnings.
    """
    limit = 1.0 - confidence
    held = _doubled(risks, limit)
    if held is None:
        worst = max(zip(risks(MOST_REPLICAS), objectives, strict=True), key=lambda pair: pair[0])
        reason = (
            f"no number of replicas: even with {MOST_REPLICAS}, {worst[1]} would exceed "
            f"{_seconds(worst[1].seconds)} with probability {worst[0]:.2f}"
        )
        return Plan(None, worst[0], reason, doubts(MOST_REPLICAS))
    replicas = _fewest(risks, limit, held)
    return Plan(replicas, max(risks(replicas)), _reason(risks, objectives, replicas), doubts(replicas))


def _doubled(risks: Risks, limit: float) -> int | None:
    replicas = 1
    while max(risks(replicas)) > limit:
        if replicas >= MOST_REPLICAS:
            return None
        replicas *= 2
    return replicas


def _fewest(risks: Risks, limit: float, held: int) -> int:
    low, high = held // 2, held
    while high - low > 1:
        middle = (low + high) // 2
        if max(risks(middle)) > limit:
            low = middle
        else:
            high = middle
    return high


def _reason(risks: Risks, objectives: tuple[Objective, ...], replicas: int) -> str:
    kept = " and ".join(
        f"{each} stays within {_seconds(each.seconds)} with probability {1.0 - risk:.2f}"
        for each, risk in zip(objectives, risks(replicas), strict=True)
    )
    word = "replica" if replicas == 1 else "replicas"
    if replicas == 1:
        return f"1 {word}: {kept}"
    risk, worst = max(zip(risks(replicas - 1), objectives, strict=True), key=lambda pair: pair[0])
    fewer = f"with {replicas - 1}, {worst} would exceed {_seconds(worst.seconds)} with probability {risk:.2f}"
    return f"{replicas} {word}: {fewer}; with {replicas}, {kept}"


def _seconds(seconds: float) -> str:
    return f"{seconds:g} s" if seconds >= 1.0 else f"{seconds * 1000:g} ms"
