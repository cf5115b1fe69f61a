"""What the demo saw, as a table and as JSON."""

from dataclasses import dataclass

from rich.table import Table


@dataclass(frozen=True)
class Hit:
    """An answer from outside: seconds to the first token, tokens served from outside, answer as expected or not."""

    ttft_seconds: float
    external_tokens: int
    tokens_equal: bool


@dataclass(frozen=True)
class Figures:
    """Times in seconds, sizes in bytes; `wire_bytes` and `kv_bytes` are those of the remote hit."""

    prompt_tokens: int
    tier: str
    cold: float
    local_hit: float
    remote_hit: Hit
    partial_hit: Hit
    wire_bytes: int
    kv_bytes: int
    answer: str

    @property
    def ratio(self) -> float:
        """How many bytes of KV one byte on the wire restored."""
        return self.kv_bytes / self.wire_bytes if self.wire_bytes else 0.0

    def disappointment(self, exact: bool) -> str:
        """Return what did not go as it should, nothing if it did; `exact`: the answers have to be equal."""
        if not self.remote_hit.external_tokens:
            return "B took nothing from the store: see the logs of its sidecar and of the data plane"
        if not self.partial_hit.external_tokens:
            return "B took nothing of the half that both prompts share from the store: see the log of its sidecar"
        if exact and not (self.remote_hit.tokens_equal and self.partial_hit.tokens_equal):
            return f"B's answer from what A computed differs, which tier {self.tier} should not do to this text"
        return ""

    def as_json(self) -> dict[str, object]:
        """Return the figures under the names that scripts rely on."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "tier": self.tier,
            "cold": {"ttft_seconds": self.cold},
            "local_hit": {"ttft_seconds": self.local_hit},
            "remote_hit": _hit(self.remote_hit),
            "partial_hit": _hit(self.partial_hit),
            "wire_bytes": self.wire_bytes,
            "kv_bytes": self.kv_bytes,
            "ratio": self.ratio,
        }


def _hit(hit: Hit) -> dict[str, object]:
    return {
        "ttft_seconds": hit.ttft_seconds,
        "external_tokens": hit.external_tokens,
        "tokens_equal": hit.tokens_equal,
    }


def render(figures: Figures) -> Table:
    """Return the table that the demo ends with."""
    table = Table(title=f"One prompt of {figures.prompt_tokens} tokens, two engines, tier {figures.tier}")
    for column, side in (("", "left"), ("TTFT", "right"), ("from outside", "right"), ("same answer", "left")):
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    table.add_row("A, cold", _seconds(figures.cold), "-", "-")
    table.add_row("A, its own prefix cache", _seconds(figures.local_hit), "-", "-")
    for name, hit in (
        ("B, from what A computed", figures.remote_hit),
        ("B, a prompt that shares half", figures.partial_hit),
    ):
        equal = "yes" if hit.tokens_equal else "no"
        table.add_row(name, _seconds(hit.ttft_seconds), f"{hit.external_tokens} tokens", equal)
    table.caption = (
        f"{figures.wire_bytes / 1e6:.1f} MB on the wire restored {figures.kv_bytes / 1e6:.1f} MB of KV cache "
        f"({figures.ratio:.2f} : 1)\nB says:{figures.answer}"
    )
    return table


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
