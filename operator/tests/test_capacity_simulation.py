"""The simulated form: the same engine as the formulas, request by request, and a pure function of its parameters."""

from dataclasses import replace

import numpy as np
import pytest
from capacity_windows import POOL, known_pool, truth

from shadowserve_capacity.model.closed_form import latencies
from shadowserve_capacity.model.fit import Method, Sampling, fit, posterior_target, problems
from shadowserve_capacity.model.hardware import NAMES, Parameters
from shadowserve_capacity.model.prediction import ByFormula
from shadowserve_capacity.model.simulation import Simulation
from shadowserve_capacity.model.synthetic import random_loads
from shadowserve_capacity.model.work import Load, Work, work_of
from shadowserve_capacity.prefetch.chain import run_serial
from shadowserve_capacity.prefetch.predictors import Naive, PartialData
from shadowserve_capacity.prefetch.simulated import Cluster, run_simulated


def work(rates: tuple[float, ...], seconds: float = 120.0, **changes: float) -> Work:
    load = Load(1.0, 400.0, output_tokens=16.0, seconds=seconds, **changes)
    return work_of(POOL, [(replace(load, arrival_rate=rate), 1) for rate in rates])


pytestmark = pytest.mark.timeout(300)  # chains are computed: seconds, minutes on a busy machine
USUAL = Parameters.of_logs(truth(1, 0.0))


def test_equal_parameters_have_equal_likelihoods_bit_by_bit() -> None:
    simulated = Simulation.of(3, seed=1)
    first, second = (simulated(USUAL, work((0.1, 0.5, 2.0))) for _ in range(2))
    assert np.array_equal(first.ttft, second.ttft)
    assert np.array_equal(first.tpot, second.tpot)


def test_an_idle_engine_takes_what_its_work_takes() -> None:
    seen = Simulation.of(1, seed=1)(replace(USUAL, queueing=np.float64(1e-9)), work((0.001,), seconds=60_000.0))
    step = USUAL.step_base + USUAL.step_per_sequence * (1 + 0.5 * 0.408) / 1.5
    alone = USUAL.request_overhead + 400.0 / USUAL.prefill_rate + step
    assert np.exp(seen.ttft[0, 0]) == pytest.approx(alone, rel=0.01)
    assert np.exp(seen.tpot[0]) == pytest.approx(step, rel=0.06), "a few answers had a prefill beside them"


def test_formulas_agree_with_the_simulation_while_queues_are_short() -> None:
    rng = np.random.default_rng(1)
    loads = work_of(POOL, random_loads(150, rng))
    formulas, simulated = latencies(USUAL, loads), Simulation.of(150, seed=3)(USUAL, loads)
    calm = formulas.utilisation < 0.6
    assert calm.sum() > 50
    assert np.median(np.abs(simulated.ttft - formulas.ttft)[calm]) < 0.1
    assert np.median(np.abs(simulated.tpot - formulas.tpot)[calm]) < 0.2


def test_waits_grow_with_the_load_and_with_queueing() -> None:
    simulated = Simulation.of(4, seed=2)
    busy = work((0.1, 0.5, 1.0, 4.0))
    ttft = simulated(USUAL, busy).ttft[:, 0]
    assert (np.diff(ttft) > 0.0).all()
    assert (simulated(replace(USUAL, queueing=USUAL.queueing * 2), busy).ttft[2:, 0] > ttft[2:]).all()


def test_the_batch_is_never_larger_than_the_engine_allows() -> None:
    """With one sequence at a time nobody decodes beside another: a token takes a step of one."""
    one = replace(work((5.0,)), max_sequences=1.0)
    seen = Simulation.of(1, seed=2)(USUAL, one)
    step = USUAL.step_base + USUAL.step_per_sequence * (1 + 0.5 * 0.408) / 1.5
    assert np.exp(seen.tpot[0]) == pytest.approx(step, rel=1e-6)


def test_hits_that_are_fetched_wait_for_the_fetch() -> None:
    slow = replace(USUAL, fetch_rate=np.float64(1e6))
    hits = {"hit_tokens": 350.0, "fetched_bytes": 2e6}
    seen = Simulation.of(1, seed=1)(slow, work((0.05,), **hits))
    assert np.exp(seen.ttft[0, 1]) > 2.0


def test_a_posterior_by_simulation_lies_near_the_truth() -> None:
    logs, observations = known_pool(12)
    short = Sampling(chains=2, pilot=300, warm_up=50, steps=150, thin=1, rounds=1, workers=1)
    draws = fit(observations, 1, short, Method.SIMULATION).logs.reshape(-1, len(NAMES))
    rate = NAMES.index("prefill_rate")
    assert draws[:, rate].mean() == pytest.approx(logs[rate], abs=0.4)


def test_prefetching_by_the_formulas_gives_the_serial_chain() -> None:
    _, observations = known_pool(8)
    target = posterior_target(observations, 1, Method.SIMULATION, pilot=90)
    problem = problems(target, 1, Sampling(chains=1, warm_up=0, steps=60))[0]
    naive = run_simulated(problem, Cluster(4), Naive())
    guided = run_simulated(problem, Cluster(4), ByFormula.of(target))
    assert guided.chain.sha256 == naive.chain.sha256 == run_serial(problem).sha256
    assert guided.speedup > naive.speedup


def test_formulas_that_mislead_are_not_followed() -> None:
    _, observations = known_pool(8)
    target = posterior_target(observations, 1, Method.SIMULATION, pilot=90)
    problem = problems(target, 1, Sampling(chains=1, warm_up=0, steps=150))[0]
    backwards = replace(target.whitening, factor=-target.whitening.factor)
    misled = ByFormula.of(replace(target, whitening=backwards))
    plain, guided = (run_simulated(problem, Cluster(2), each) for each in (PartialData(), misled))
    assert guided.speedup > 0.93 * plain.speedup
