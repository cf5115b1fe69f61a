"""What all pictures have in common. Needs matplotlib."""

from pathlib import Path
from typing import Any

from shadowserve_capacity.errors import CapacityError

SUFFIXES = (".png", ".svg")


class NoPlots(CapacityError):
    """Nothing can be drawn; the message says what to do."""


def pyplot_for(file: Path) -> Any:
    """Return matplotlib's pyplot, which draws without a screen; raises `NoPlots` for other files than .png and .svg."""
    if file.suffix.lower() not in SUFFIXES:
        raise NoPlots(f"{file}: plots are written as {' or '.join(SUFFIXES)}")
    try:
        import matplotlib as mpl
    except ModuleNotFoundError as error:
        raise NoPlots("plots need matplotlib: pip install 'shadowserve[plots]'") from error
    mpl.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(pyplot: Any, figure: Any, file: Path) -> None:
    """Write a figure and forget it; raises `NoPlots`."""
    try:
        figure.savefig(file, dpi=120)
    except OSError as error:
        raise NoPlots(f"{file}: {error.strerror}") from error
    finally:
        pyplot.close(figure)
