"""What `make demo` saw, as JSON and as a table."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, seconds after both resources were applied."""

    seconds: float
    what: str


@dataclass(frozen=True, slots=True)
class RemoteHit:
    """B's answer. `chunks` are those that the data plane of `node` restored; `placement` is what B's sidecar says."""

    ttft_seconds: float
    external_tokens: int
    tokens_equal: bool
    placement: str
    chunks: int
    node: str


@dataclass(frozen=True, slots=True)
class AfterLoss:
    """After the card's node died. `switch_seconds` counts from its death until every engine restores elsewhere.

    `requests` were made meanwhile, to both engines; `external_tokens` came from outside in the last answer.
    """

    tokens_equal: bool
    placement: str
    switch_seconds: float
    requests: int
    failed_requests: int
    external_tokens: int
    ttft_seconds: float


@dataclass(frozen=True, slots=True)
class Goal:
    """What this project promises of a machine that has nothing else to do, beside what was measured here and now."""

    what: str
    most: float
    measured: float
    unit: str = "s"

    @property
    def met(self) -> bool:
        """Whether it was kept."""
        return self.measured <= self.most

    def as_json(self) -> dict[str, object]:
        """Return it for scripts."""
        return {"what": self.what, "most": self.most, "measured": self.measured, "unit": self.unit, "met": self.met}


@dataclass(frozen=True, slots=True)
class DemoFigures:
    """Times in seconds. `engine_seconds` is the longest that an engine took from its start until it was ready.

    `provider` made the test bed.
    """

    provider: str
    prompt_tokens: int
    ready_seconds: float
    engine_seconds: float
    timeline: tuple[Event, ...]
    cold_ttft: float
    remote: RemoteHit
    lost: AfterLoss

    @property
    def beside_engines_seconds(self) -> float:
        """How much of the time until all was ready was not the slowest engine's own loading."""
        return self.ready_seconds - self.engine_seconds

    def goals(self) -> tuple[Goal, ...]:
        """Return what is promised, and what it was."""
        return (
            Goal("from kubectl apply to ready", 120.0, self.ready_seconds),
            Goal("of which not the engines' own loading", 10.0, self.beside_engines_seconds),
            Goal("from the card's death to the host", 10.0, self.lost.switch_seconds),
            Goal("requests that failed meanwhile", 0, self.lost.failed_requests, ""),
        )

    def disappointment(self, exact: bool) -> str:
        """Return what did not go as it should, nothing if it did; `exact`: the answers have to be equal."""
        if not self.remote.external_tokens:
            return "B took nothing from the store: see kubectl logs of its sidecar (--container shadowserve-sidecar)"
        if self.remote.placement != "dpu" or not self.remote.chunks:
            return f"B's chunks were restored at {self.remote.placement or 'no place'}, not by the card's data plane"
        if exact and not self.remote.tokens_equal:
            return "B's answer from what A computed differs from A's own"
        if self.lost.failed_requests:
            return f"{self.lost.failed_requests} of {self.lost.requests} requests failed when the card's node died"
        if self.lost.placement != "host":
            return f"after the card's node died chunks are restored at {self.lost.placement or 'no place'}"
        if not self.lost.external_tokens:
            return "after the card's node died nothing came from the store any more"
        if exact and not self.lost.tokens_equal:
            return "the answer after the card's node died differs from the one before"
        return ""

    def as_json(self) -> dict[str, object]:
        """Return the figures under the names that scripts rely on."""
        return {
            "provider": self.provider,
            "goals": [goal.as_json() for goal in self.goals()],
            "prompt_tokens": self.prompt_tokens,
            "ready_seconds": self.ready_seconds,
            "engine_seconds": self.engine_seconds,
            "beside_engines_seconds": self.beside_engines_seconds,
            "timeline": [{"seconds": round(event.seconds, 1), "event": event.what} for event in self.timeline],
            "cold": {"ttft_seconds": self.cold_ttft},
            "remote_hit": {
                "ttft_seconds": self.remote.ttft_seconds,
                "external_tokens": self.remote.external_tokens,
                "tokens_equal": self.remote.tokens_equal,
                "placement": self.remote.placement,
                "data_plane_chunks": self.remote.chunks,
                "data_plane_node": self.remote.node,
            },
            "after_card_lost": {
                "tokens_equal": self.lost.tokens_equal,
                "placement": self.lost.placement,
                "switch_seconds": self.lost.switch_seconds,
                "requests": self.lost.requests,
                "failed_requests": self.lost.failed_requests,
                "external_tokens": self.lost.external_tokens,
                "ttft_seconds": self.lost.ttft_seconds,
            },
        }


def render(figures: DemoFigures) -> Table:
    """Return the table that the demo ends with."""
    table = Table(title=f"One prompt of {figures.prompt_tokens} tokens, two engines")
    table.add_column("")
    table.add_column("TTFT", justify="right")
    table.add_column("from outside", justify="right")
    table.add_column("restored")
    table.add_column("same answer")
    remote, lost = figures.remote, figures.lost
    table.add_row("A, cold", _milliseconds(figures.cold_ttft), "-", "-", "-")
    where = f"{remote.chunks} chunks on {remote.node}" if remote.placement == "dpu" else remote.placement
    outside = f"{remote.external_tokens} tokens"
    table.add_row("B", _milliseconds(remote.ttft_seconds), outside, where, _yes(remote.tokens_equal))
    outside = f"{lost.external_tokens} tokens"
    after = (
        "B, the card's node is dead",
        _milliseconds(lost.ttft_seconds),
        outside,
        f"in B's sidecar ({lost.placement})",
    )
    table.add_row(*after, _yes(lost.tokens_equal))
    return table


def render_goals(goals: Sequence[Goal]) -> Table:
    """Return the goals as a table. Times depend on the machine: one that is missed is told, and fails nothing."""
    table = Table(title="Goals, on a machine of two cores with nothing else to do")
    table.add_column("")
    for name in ("at most", "here", "kept"):
        table.add_column(name, justify="right")
    for goal in goals:
        digits = 1 if goal.unit else 0
        here = f"{goal.measured:.{digits}f} {goal.unit}".strip()
        table.add_row(goal.what, f"{goal.most:g} {goal.unit}".strip(), here, _yes(goal.met))
    return table


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
