"""Pictures of a posterior: traces, and predicted against observed. Needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shadowserve_capacity.drawing import pyplot_for, save
from shadowserve_capacity.model.comparison import Compared
from shadowserve_capacity.model.hardware import NAMES
from shadowserve_capacity.model.posterior import Posterior


def draw_trace(posterior: Posterior, file: Path) -> None:
    """Draw every chain of every parameter; raises `NoPlots`."""
    pyplot = pyplot_for(file)
    columns = 3
    figure, axes = pyplot.subplots(-(-len(NAMES) // columns), columns, figsize=(12, 11), layout="constrained")
    for index, axis in enumerate(axes.flat):
        if index >= len(NAMES):
            axis.set_axis_off()
            continue
        axis.plot(np.exp(posterior.logs[:, :, index]).T, linewidth=0.4)
        axis.set_yscale("log")
        axis.set_title(f"{NAMES[index]}  (R-hat {posterior.diagnoses[NAMES[index]].rhat:.3f})", fontsize=9)
    save(pyplot, figure, file)


def draw_comparison(compared: Sequence[Compared], level: float, file: Path) -> None:
    """Draw the predicted interval of each window's TTFT p90 against what was observed; raises `NoPlots`."""
    pyplot = pyplot_for(file)
    figure, axis = pyplot.subplots(figsize=(6, 6), layout="constrained")
    observed = np.array([each.observed for each in compared])
    predicted = np.array([[each.interval.low, each.interval.median, each.interval.high] for each in compared])
    inside = np.array([each.covered for each in compared])
    for chosen, colour, label in ((inside, "tab:blue", "inside"), (~inside, "tab:red", "outside")):
        middle = predicted[chosen, 1]
        error = np.abs(predicted[chosen][:, [0, 2]].T - middle) if chosen.any() else None
        axis.errorbar(observed[chosen], middle, error, fmt="o", markersize=3, linewidth=0.8, color=colour, label=label)
    ends = [min(observed.min(), predicted.min()), max(observed.max(), predicted.max())]
    axis.plot(ends, ends, color="grey", linewidth=0.8)
    axis.set(xscale="log", yscale="log", xlabel="observed TTFT p90 (s)", ylabel=f"predicted, {level:.0%} interval (s)")
    axis.legend()
    save(pyplot, figure, file)
