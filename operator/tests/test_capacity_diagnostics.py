"""The diagnostics say what ArviZ says, and raise the alarm when chains are bad."""

import warnings
from typing import Any

import numpy as np
import pytest

from shadowserve_capacity.calibration import Forecast, calibrate
from shadowserve_capacity.diagnostics import diagnose, ess_bulk, ess_tail, mcse_mean, rhat, to_arviz


@pytest.fixture(scope="module")
def arviz() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # announces its next major version on import
        return pytest.importorskip("arviz")


def autoregressive(chains: int, draws: int, memory: float, seed: int = 1, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((chains, draws))
    for index in range(1, draws):
        values[:, index] += memory * values[:, index - 1]
    return values + shift * np.arange(chains)[:, None]


CASES = {
    "independent": autoregressive(4, 1000, 0.0),
    "slow": autoregressive(4, 2000, 0.95),
    "anticorrelated": autoregressive(3, 500, -0.7),
    "odd length": autoregressive(2, 333, 0.5),
    "apart": autoregressive(4, 500, 0.3, shift=1.0),
    "heavy tails": np.random.default_rng(3).standard_cauchy((4, 800)),
    "ties": np.round(autoregressive(4, 600, 0.6)),
}


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_arviz(arviz: Any, name: str) -> None:
    draws = CASES[name]
    assert rhat(draws) == pytest.approx(float(arviz.rhat(draws)), rel=1e-6)
    assert ess_bulk(draws) == pytest.approx(float(arviz.ess(draws, method="bulk")), rel=1e-6)
    assert ess_tail(draws) == pytest.approx(float(arviz.ess(draws, method="tail")), rel=1e-6)
    assert mcse_mean(draws) == pytest.approx(float(arviz.mcse(draws, method="mean")), rel=1e-6)


def test_export_keeps_names_and_draws(arviz: Any) -> None:
    data = to_arviz({"prefill_rate": CASES["slow"]})
    assert np.array_equal(data.posterior["prefill_rate"].values, CASES["slow"])


def test_good_chains_have_no_complaint() -> None:
    assert diagnose(CASES["independent"]).complaint(4) == ""


def test_bad_chains_are_named() -> None:
    assert "disagree" in diagnose(CASES["apart"]).complaint(4)
    assert "independent draws" in diagnose(autoregressive(4, 90, 0.0)).complaint(4)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_chain_that_never_moves_is_no_success() -> None:
    assert diagnose(np.ones((4, 100))).complaint(4)


@pytest.mark.parametrize("shape", [(10,), (2, 3), (2, 2, 5)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="wanted"):
        rhat(np.zeros(shape))


def test_calibration_tells_honest_from_boastful_forecasts() -> None:
    rng = np.random.default_rng(2)
    chances = rng.random(4000)
    happened = rng.random(4000) < chances
    honest = [Forecast(float(p), 0.3, bool(h)) for p, h in zip(chances, happened, strict=True)]
    boastful = [Forecast(float(p > 0.5), 0.9, bool(h)) for p, h in zip(chances, happened, strict=True)]
    early, late = calibrate(honest + boastful)
    assert (early.seen_from, early.seen_to, late.seen_to) == (0.2, 0.4, 1.0)
    assert early.count == late.count == 4000
    assert early.error < 0.05 < 0.2 < late.error
    assert early.brier == pytest.approx(1 / 6, abs=0.02)
    assert late.brier == pytest.approx(1 / 4, abs=0.02)


def test_impossible_forecasts_are_named() -> None:
    with pytest.raises(ValueError, match="forecast 1"):
        calibrate([Forecast(0.5, 0.5, True), Forecast(1.5, 0.5, True)])
