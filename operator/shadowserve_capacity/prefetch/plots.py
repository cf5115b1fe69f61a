"""Pictures of what prefetching gains. Needs matplotlib."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shadowserve_capacity.drawing import pyplot_for, save


@dataclass(frozen=True, slots=True)
class Point:
    """A speed-up at some number of workers, or after some number of iterations; the shares add up to 1."""

    at: int
    speedup: float
    useful: float
    wasted: float
    idle: float


def draw_speedups(points: Sequence[Point], along: str, workers: Sequence[int], file: Path) -> None:
    """Draw speed-ups over `along`, beside the `workers` there were, and where the workers' time went.

    Raises `NoPlots` for other files than .png and .svg, and where matplotlib is missing.
    """
    pyplot = pyplot_for(file)
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(7, 7), sharex=True, layout="constrained")
    places = [each.at for each in points]
    above.plot(places, workers, "--", color="grey", label="as many as workers")
    above.plot(places, [each.speedup for each in points], "o-", color="tab:blue", label="speed-up")
    above.set(ylabel="times as fast as serial", ylim=(0.0, None))
    above.legend()
    names = ("useful", "wasted", "idle")
    shares = [[getattr(each, name) for each in points] for name in names]
    below.stackplot(places, shares, labels=names, colors=("tab:green", "tab:orange", "lightgrey"))
    below.set(xlabel=along, ylabel="share of the workers' time", ylim=(0.0, 1.0))
    below.legend(loc="lower left")
    save(pyplot, figure, file)
