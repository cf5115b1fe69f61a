"""What both forms of the model predict for a window: where its latencies lie, and how far they scatter."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Latencies:
    """Logarithms of seconds. In a window log TTFT of class c is logistic around ttft[..., c] + e, e normal with
    `ttft_deviation`; log TPOT is logistic around tpot + e', e' normal with `tpot_deviation`.

    Shapes: (..., windows), `ttft` (..., windows, 2). `utilisation` is 1 where the replica is just saturated.
    """

    ttft: Values
    ttft_deviation: Values
    ttft_spread: Values
    tpot: Values
    tpot_deviation: Values
    tpot_spread: Values
    fetch: Values
    """Seconds of a fetch job."""
    utilisation: Values
    batch: Values
    """Mean number of decoding sequences."""
