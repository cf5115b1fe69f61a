"""What is known of a candidate against its rival, and what became of it."""

from dataclasses import dataclass

from shadowserve_capacity.prefetch.problem import State


@dataclass(slots=True)
class Pairs:
    """Sums over the batches that a candidate and its rival have both seen; `difference` is new minus old."""

    count: int = 0
    new: float = 0.0
    new_squares: float = 0.0
    old: float = 0.0
    old_squares: float = 0.0
    difference: float = 0.0
    difference_squares: float = 0.0

    def add(self, new: float, old: float) -> None:
        """Take one batch's terms."""
        difference = new - old
        self.count += 1
        self.new += new
        self.new_squares += new * new
        self.old += old
        self.old_squares += old * old
        self.difference += difference
        self.difference_squares += difference * difference

    @property
    def scatter(self) -> float:
        """Return the sample variance of the differences; 0 for fewer than two."""
        if self.count < 2:
            return 0.0
        around = self.difference_squares - self.difference * self.difference / self.count
        return max(0.0, around / (self.count - 1))


@dataclass(frozen=True, slots=True)
class Normal:
    """A guess at a log density difference."""

    mean: float
    variance: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The open question whether prior plus terms of a candidate exceed its rival's by more than `threshold`."""

    batches: int
    prior_difference: float
    threshold: float
    pairs: Pairs
    expected: Normal | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """A question answered on the chain: both states with their exact log densities."""

    accepted: bool
    new: State
    old: State
    new_density: float
    old_density: float
    pairs: Pairs
    expected: Normal | None = None

    @property
    def difference(self) -> float:
        """Return the log density difference."""
        return self.new_density - self.old_density
