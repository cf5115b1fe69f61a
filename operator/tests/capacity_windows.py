"""Windows for tests of the capacity model: as JSON values, and of pools with known parameters."""

from dataclasses import asdict
from typing import Any

import numpy as np

from shadowserve_capacity.model.fit import Sampling
from shadowserve_capacity.model.hardware import NAMES, prior_of
from shadowserve_capacity.model.observations import Observations, Pool
from shadowserve_capacity.model.synthetic import random_loads, synthetic

QUICK = Sampling(chains=2, pilot=450, warm_up=150, steps=600, thin=2, rounds=1, workers=1)
"""Enough to see whether a posterior lies where it should; its diagnostics are not those of a real fit."""
POOL = Pool("cpu", 8)


def truth(seed: int, scale: float = 0.5) -> np.ndarray:
    """Return logarithms of parameters that the prior believes in."""
    return prior_of("cpu").logs(scale * np.random.default_rng(seed).standard_normal(len(NAMES)))


def known_pool(windows: int, seed: int = 1) -> tuple[np.ndarray, Observations]:
    """Return the logarithms of a pool's parameters and windows of it."""
    rng = np.random.default_rng(seed)
    logs = truth(seed)
    return logs, synthetic(POOL, logs, random_loads(windows, rng), rng)


def as_json(observations: Observations) -> dict[str, Any]:
    """Return observations as they are read."""
    return {**asdict(observations.pool), "windows": [_plain(asdict(window)) for window in observations.windows]}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple) else value
