"""What can go wrong, sorted by who must act."""

from collections.abc import Sequence


class CapacityError(Exception):
    """Base of every error this package raises on purpose."""


class TargetFault(CapacityError):
    """The target density broke its promise: NaN, infinity, or two answers to one question."""


class CalledOff(CapacityError):
    """Nobody wants any more what was being evaluated."""


class ProposalFault(CapacityError):
    """The proposal returned something that is not a state of the chain."""


class ProblemError(CapacityError):
    """A problem was described that cannot be made."""


class WorkerError(CapacityError):
    """Workers cannot be started, or are not what they should be."""


class InputFault(CapacityError):
    """What was read cannot be right; `problems` name every field (`windows[3].hit_tokens: ...`), at most 20 of them."""

    def __init__(self, problems: Sequence[str]) -> None:
        shown = [*problems[:20], *([f"... and {len(problems) - 20} more"] if len(problems) > 20 else [])]
        super().__init__("\n".join(shown))
        self.problems = tuple(shown)


class CheckpointError(CapacityError):
    """A checkpoint cannot be read, or belongs to something else."""
