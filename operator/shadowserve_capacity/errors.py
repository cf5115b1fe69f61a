"""What can go wrong, sorted by who must act."""


class CapacityError(Exception):
    """Base of every error this package raises on purpose."""


class TargetFault(CapacityError):
    """The target density broke its promise: NaN, infinity, or two answers to one question."""


class ProposalFault(CapacityError):
    """The proposal returned something that is not a state of the chain."""


class ProblemError(CapacityError):
    """A problem was described that cannot be made."""


class WorkerError(CapacityError):
    """Workers cannot be started, or are not what they should be."""
