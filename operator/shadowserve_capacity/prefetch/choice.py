"""Whether workers share evaluations: the way that turned out faster, tried again now and then."""

from dataclasses import dataclass, field

_SETTLE = 16
_TRIAL = 48
_KEPT = 640


@dataclass(slots=True)
class Chooser:
    """Chooses between whole evaluations (None) and shares of `split` batches by measured iterations a second.

    In burn-in decisions are foreseen, and shares only cost messages; later they are not, and half the candidates
    are evaluated in vain. No formula knows both costs on this machine, so each way is tried for 64 iterations (the
    first 16 are not timed), and again after 640 of the better one. Pure: time is an argument.
    """

    split: int | None
    current: int | None = None
    seconds: dict[int | None, float] = field(default_factory=dict)
    """Per iteration, of each way when it was last tried."""
    trial: bool = True
    since: int = 0
    timed: tuple[int, float] | None = None

    def choose(self, iteration: int, now: float) -> int | None:
        """Return the batches of a share from now on, None for whole evaluations."""
        if self.split is None:
            return None
        if self.timed is None:
            if iteration - self.since >= _SETTLE:
                self.timed = iteration, now
            return self.current
        begun, then = self.timed
        if iteration - begun < (_TRIAL if self.trial else _KEPT):
            return self.current
        self.seconds[self.current] = (now - then) / (iteration - begun)
        other = None if self.current is not None else self.split
        if other not in self.seconds or not self.trial:
            self._turn(other, iteration, trial=True)
        else:
            self._turn(min(self.seconds, key=self.seconds.__getitem__), iteration, trial=False)
        return self.current

    def _turn(self, way: int | None, iteration: int, trial: bool) -> None:
        self.current, self.trial, self.since, self.timed = way, trial, iteration, None
