"""The parameters of the capacity model, and what is believed of them before anything was measured."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Parameters:
    """Natural values, all above 0; each an array of one shape, often (draws, 1), or ()."""

    prefill_rate: Values
    """Prompt tokens that an engine computes per second."""
    step_base: Values
    """Seconds of a decode step, whatever is in it."""
    step_per_sequence: Values
    """Seconds that each running sequence of 1000 tokens adds to a step."""
    context_odds: Values
    """Of those seconds, the part that grows with the sequence's tokens, over the part that does not."""
    request_overhead: Values
    """Seconds from arrival to first token that no work explains."""
    fetch_rate: Values
    """Bytes per second of a fetch."""
    fetch_overhead: Values
    """Seconds of a fetch, whatever its size."""
    queueing: Values
    """Waiting against that of random arrivals, about 1: burstiness, and what the queue's equations leave out."""
    ttft_noise: Values
    """Standard deviation of log TTFT between windows alike."""
    tpot_noise: Values
    """The same of TPOT."""
    ttft_spread: Values
    """Scale (logistic) of log TTFT inside a window."""
    tpot_spread: Values
    """The same of TPOT."""
    fetch_noise: Values
    """Standard deviation of the log seconds of a window's fetches."""

    @staticmethod
    def of_logs(logs: Values) -> "Parameters":
        """Return the parameters whose logarithms are the last axis of `logs`, shape (..., 13)."""
        return Parameters(*np.moveaxis(np.exp(logs), -1, 0))


NAMES = tuple(field.name for field in fields(Parameters))
DIMENSION = len(NAMES)


@dataclass(frozen=True, slots=True)
class Prior:
    """Independent log-normal beliefs: median and standard deviation of the logarithm, shape (13,) each."""

    medians: Values
    deviations: Values

    def logs(self, standard: Values) -> Values:
        """Return the logarithms of the parameters for standard normal coordinates, shape (..., 13)."""
        return np.asarray(np.log(self.medians) + self.deviations * standard, dtype=np.float64)


_COMMON = {
    "fetch_rate": (3e8, 1.5),
    "fetch_overhead": (0.005, 1.0),
    "queueing": (1.0, 0.4),
    "ttft_noise": (0.15, 0.5),
    "tpot_noise": (0.1, 0.5),
    "ttft_spread": (0.12, 0.5),
    "tpot_spread": (0.06, 0.5),
    "fetch_noise": (0.25, 0.5),
}
_CLASSES: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "cpu": {
        "prefill_rate": (400.0, 1.0),
        "step_base": (0.03, 0.7),
        "step_per_sequence": (0.006, 0.8),
        "context_odds": (0.5, 1.0),
        "request_overhead": (0.01, 0.8),
    },
    "small-gpu": {
        "prefill_rate": (4_000.0, 1.0),
        "step_base": (0.03, 0.7),
        "step_per_sequence": (7e-4, 0.8),
        "context_odds": (0.5, 1.0),
        "request_overhead": (0.01, 0.8),
    },
    "large-gpu": {
        "prefill_rate": (15_000.0, 1.0),
        "step_base": (0.012, 0.7),
        "step_per_sequence": (1.5e-4, 0.8),
        "context_odds": (0.5, 1.0),
        "request_overhead": (0.01, 0.8),
    },
    "unknown": {
        "prefill_rate": (4_000.0, 2.0),
        "step_base": (0.02, 1.0),
        "step_per_sequence": (8e-4, 1.5),
        "context_odds": (0.5, 1.5),
        "request_overhead": (0.01, 1.0),
    },
}
HARDWARE = tuple(_CLASSES)
"""Classes of hardware: `small-gpu` is an L4, A10 or L40S, `large-gpu` an A100 or newer."""


def prior_of(hardware: str) -> Prior:
    """Return the beliefs for a class of hardware."""
    beliefs = {**_CLASSES[hardware], **_COMMON}
    pairs = np.array([beliefs[name] for name in NAMES])
    return Prior(pairs[:, 0], pairs[:, 1])
