"""Placements of one worker thread, kept open for the next job that goes to the same landing buffer."""

import logging
from collections import OrderedDict

from shadowserve_dataplane.place.base import Placement, PlacementTarget

MAX_OPEN = 16
"""More sidecars than a host has engines; the one that was used longest ago is closed first."""
_log = logging.getLogger(__name__)


class PlacementShelf:
    """Opens placements and keeps the last `MAX_OPEN`; a data plane that serves several engines reconnects to none."""

    def __init__(self) -> None:
        self._open: OrderedDict[PlacementTarget, Placement] = OrderedDict()

    def into(self, target: PlacementTarget) -> Placement:
        """Return the placement into `target`; raises what opening it raises."""
        placement = self._open.get(target)
        if placement is None:
            while len(self._open) >= MAX_OPEN:
                self.drop(next(iter(self._open)))
            placement = self._open[target] = target.open()
        self._open.move_to_end(target)
        return placement

    def drop(self, target: PlacementTarget) -> None:
        """Close the placement into `target`, if there is one; never raises."""
        placement = self._open.pop(target, None)
        if placement is None:
            return
        try:
            placement.close()
        except Exception:
            _log.exception("a placement cannot be closed")

    def close(self) -> None:
        """Close them all."""
        for target in list(self._open):
            self.drop(target)
