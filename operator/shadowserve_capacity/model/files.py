"""Posteriors as JSON values, and back."""

from dataclasses import asdict

import numpy as np

from shadowserve_capacity.diagnostics import Diagnosis
from shadowserve_capacity.errors import InputFault
from shadowserve_capacity.model.hardware import NAMES
from shadowserve_capacity.model.parsing import Fields, read_pool
from shadowserve_capacity.model.posterior import Posterior, Seen

KIND = "shadowserve-capacity-posterior"
_VERSION = 2
_KEPT = 400
"""Draws kept of each chain."""


def write_posterior(posterior: Posterior) -> dict[str, object]:
    """Return a posterior as a JSON value; of long chains at most 400 draws each, evenly spread."""
    draws = posterior.logs.shape[1]
    chosen = np.linspace(0, draws - 1, min(draws, _KEPT)).round().astype(int)
    return {
        "kind": KIND,
        "version": _VERSION,
        **asdict(posterior.pool),
        "parameters": list(NAMES),
        "log_draws": np.round(posterior.logs[:, chosen], 5).tolist(),
        "diagnostics": {name: asdict(each) for name, each in posterior.diagnoses.items()},
        "seen": asdict(posterior.seen),
        "warnings": list(posterior.warnings),
    }


def read_posterior(value: object) -> Posterior:
    """Return a posterior that was written; raises `InputFault` when this is none, or one of another version."""
    problems: list[str] = []
    fields = Fields(value, "", problems)
    if fields.raw("kind") != KIND or fields.raw("version") != _VERSION or fields.raw("parameters") != list(NAMES):
        raise InputFault(["input: no posterior of this version; make one with `shadowserve capacity fit`"])
    pool = read_pool(fields)
    seen = Fields(fields.raw("seen"), "seen", problems)
    observed = Seen(
        seen.count("windows"),
        seen.count("requests"),
        *(seen.number(name) for name in ("busiest", "highest", "bytes_per_hit_token")),
    )
    warnings = fields.raw("warnings")
    if not (isinstance(warnings, list) and all(isinstance(each, str) for each in warnings)):
        fields.refuse("warnings", "wanted a list of strings")
        warnings = []
    diagnoses = _diagnoses(Fields(fields.raw("diagnostics"), "diagnostics", problems))
    logs = _draws(fields)
    if problems:
        raise InputFault(problems)
    return Posterior(pool, logs, diagnoses, observed, tuple(warnings))


def _diagnoses(fields: Fields) -> dict[str, Diagnosis]:
    found = {}
    for name in NAMES:
        each = Fields(fields.raw(name), f"diagnostics.{name}", fields.problems)
        found[name] = Diagnosis(*(each.number(key) for key in ("rhat", "ess_bulk", "ess_tail", "mcse_mean")))
    return found


def _draws(fields: Fields) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    try:
        logs = np.array(fields.raw("log_draws"), dtype=np.float64)
    except (TypeError, ValueError):
        logs = np.zeros(0)
    if logs.ndim != 3 or logs.shape[2] != len(NAMES) or not logs.size or not np.isfinite(logs).all():
        fields.refuse("log_draws", f"wanted finite numbers of shape (chains, draws, {len(NAMES)})")
    return logs
