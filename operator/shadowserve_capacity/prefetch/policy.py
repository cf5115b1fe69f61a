"""How the master gives out work, what it gives, and what it says to an answer."""

from dataclasses import dataclass
from enum import Enum

from shadowserve_capacity.prefetch.problem import State


@dataclass(frozen=True, slots=True)
class Policy:
    """How work is given out.

    `split` is the least number of batches worth a message of their own, when several workers may share one
    evaluation; None: one worker evaluates a candidate. `workers` sizes the shares. Without `speculate` only what the
    chain certainly needs is done: plain data parallelism. A worker is called off when something else is `reassign`
    times as probable.

    `descent` is a seed for the published scheduler, which draws a path instead of taking the best; it also lets
    workers finish candidates that the chain can no longer visit (`finish_dead`).
    """

    split: int | None = None
    speculate: bool = True
    workers: int = 1
    reassign: float = 1.1
    descent: int | None = None
    finish_dead: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """Evaluate batches `first` to `stop` - 1 of `theta`, one after the other, until called off."""

    node: int
    theta: State
    first: int
    stop: int


class Verdict(Enum):
    """What a worker does after an answer: go on, or ask for another task."""

    CONTINUE = "Continue"
    STOP = "Stop"
