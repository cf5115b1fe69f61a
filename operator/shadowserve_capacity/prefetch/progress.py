"""How a run goes: speed-up so far, acceptance, and what became of the workers' time."""

from dataclasses import dataclass

from shadowserve_capacity.prefetch.master import Master


@dataclass(frozen=True, slots=True)
class Progress:
    """Figures of a run so far.

    `speedup` compares with the useful evaluations at the batch time of one undisturbed process. `useful`, `wasted`
    and `idle` are shares of the evaluators' time: terms of the chain, other terms, and the rest (messages included).
    """

    iteration: int
    iterations: int
    seconds: float
    speedup: float
    acceptance: float
    useful: float
    wasted: float
    idle: float
    workers: int
    split: int | None

    def __str__(self) -> str:
        return (
            f"{self.iteration}/{self.iterations} iterations, {self.seconds:.0f} s, speed-up {self.speedup:.2f} "
            f"on {self.workers}, acceptance {self.acceptance:.3f}, useful {self.useful:.0%}, "
            f"wasted {self.wasted:.0%}, idle {self.idle:.0%}"
        )


class Meter:
    """Adds up what the workers report."""

    def __init__(self, workers: int, alone_seconds: float, began: float, told_every: float) -> None:
        self.workers = workers
        self.batch_seconds = alone_seconds
        self._alone_seconds = alone_seconds
        self._began = began
        self.begun = False
        self._told_every = told_every
        self._told = began
        self._terms = 0
        self._term_seconds = 0.0
        self._busy = 0.0

    def hired(self, workers: int) -> None:
        """Note that there are more workers than were thought."""
        self.workers = max(self.workers, workers)

    def begin(self, now: float) -> None:
        """Let the time start with the first worker that is ready, once."""
        if not self.begun:
            self._began, self.begun = now, True

    def answered(self, terms: int, seconds: float) -> None:
        """Take note of terms and the time they took; time without terms went to what was called off."""
        self._terms += terms
        self._busy += seconds
        if terms:
            self._term_seconds += seconds
            self.batch_seconds += 0.05 * (seconds / terms - self.batch_seconds)

    def due(self, now: float) -> bool:
        """Return whether it is time to tell, and if so, take it as told."""
        if now - self._told < self._told_every:
            return False
        self._told = now
        return True

    def progress(self, now: float, master: Master) -> Progress:
        """Return the figures at the time `now`."""
        seconds = max(now - self._began, 1e-9)
        useful_terms = min(master.useful_terms, self._terms)
        capacity = seconds * self.workers
        busy = min(1.0, self._busy / capacity)
        useful = self._term_seconds * useful_terms / self._terms if self._terms else 0.0
        useful = min(busy, useful / capacity)
        done = len(master.steps)
        return Progress(
            iteration=done,
            iterations=master.iterations,
            seconds=seconds,
            speedup=master.useful_terms * self._alone_seconds / seconds,
            acceptance=master.accepted / done if done else 0.0,
            useful=useful,
            wasted=busy - useful,
            idle=1.0 - busy,
            workers=self.workers,
            split=master.split,
        )
