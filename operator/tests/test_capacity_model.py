"""The capacity model finds the parameters of pools it does not know, and plans as their posterior says."""

from dataclasses import replace

import numpy as np
import pytest
from capacity_windows import POOL, QUICK, known_pool, truth

from shadowserve_capacity.errors import InputFault
from shadowserve_capacity.model.closed_form import flow, latencies
from shadowserve_capacity.model.files import read_posterior, write_posterior
from shadowserve_capacity.model.fit import Method, evidence_of, fit
from shadowserve_capacity.model.hardware import NAMES, Parameters, prior_of
from shadowserve_capacity.model.likelihood import log_likelihood
from shadowserve_capacity.model.observations import Observations
from shadowserve_capacity.model.planning import Objective, Quantity, plan_replicas
from shadowserve_capacity.model.posterior import Posterior
from shadowserve_capacity.model.work import Load, work_of

pytestmark = pytest.mark.timeout(300)  # chains are computed: seconds, minutes on a busy machine
TTFT = Objective(Quantity.TTFT, 0.9, 2.0)
LOAD = Load(arrival_rate=2.0, prompt_tokens=300.0, output_tokens=20.0)


@pytest.fixture(scope="module")
def learnt() -> tuple[np.ndarray, Posterior]:
    logs, observations = known_pool(30)
    return logs, fit(observations, seed=5, sampling=QUICK)


def test_parameters_of_a_known_pool_are_found(learnt: tuple[np.ndarray, Posterior]) -> None:
    logs, posterior = learnt
    draws = posterior.logs.reshape(-1, len(NAMES))
    errors = (draws.mean(axis=0) - logs) / draws.std(axis=0)
    assert np.abs(errors).max() < 4.0, dict(zip(NAMES, errors, strict=True))
    rate = NAMES.index("prefill_rate")
    assert draws[:, rate].std() < 0.1 < prior_of("cpu").deviations[rate]


def test_equal_seeds_give_equal_draws_whoever_computes_them() -> None:
    _, observations = known_pool(8)
    short = replace(QUICK, pilot=60, warm_up=20, steps=40)
    alone = fit(observations, seed=3, sampling=short)
    together = fit(observations, seed=3, sampling=replace(short, workers=2))
    other = fit(observations, seed=4, sampling=short)
    assert np.array_equal(alone.logs, together.logs)
    assert not np.array_equal(alone.logs, other.logs)


def test_prefetching_changes_no_draw_of_a_simulated_fit() -> None:
    _, observations = known_pool(3)
    short = replace(QUICK, pilot=60, warm_up=20, steps=40)
    alone = fit(observations, 3, short, Method.SIMULATION)
    prefetching = fit(observations, 3, replace(short, workers=4), Method.SIMULATION)  # two chains, two processes each
    assert alone.logs.tobytes() == prefetching.logs.tobytes()


def test_few_windows_give_a_wide_posterior_and_a_warning(learnt: tuple[np.ndarray, Posterior]) -> None:
    _, observations = known_pool(30)
    many = learnt[1]
    few = fit(Observations(POOL, observations.windows[:2]), seed=5, sampling=QUICK)
    assert "too few observations: 2 windows" in few.warnings[0]
    queueing = NAMES.index("queueing")
    assert few.logs[:, :, queueing].std() > 1.5 * many.logs[:, :, queueing].std()
    plan = few.replicas_for(LOAD, (TTFT,), 0.9)
    assert not plan.confident
    assert "too few observations" in plan.explain()


def test_chains_that_disagree_are_told() -> None:
    _, observations = known_pool(8)
    posterior = fit(observations, seed=5, sampling=replace(QUICK, pilot=60, warm_up=1, steps=20, thin=1))
    assert any("sample longer" in warning for warning in posterior.warnings)


def test_a_posterior_survives_its_file(learnt: tuple[np.ndarray, Posterior]) -> None:
    _, posterior = learnt
    again = read_posterior(write_posterior(posterior))
    first, second = (each.predict(LOAD, 2).ttft["p90"].median for each in (posterior, again))
    assert first == pytest.approx(second, rel=0.05)
    assert again.replicas_for(LOAD, (TTFT,)) == again.replicas_for(LOAD, (TTFT,))


@pytest.mark.parametrize("change", [{"kind": "something"}, {"log_draws": [[[1.0]]]}, {"seen": 3}, {"parameters": []}])
def test_a_spoiled_file_is_refused(learnt: tuple[np.ndarray, Posterior], change: dict[str, object]) -> None:
    with pytest.raises(InputFault):
        read_posterior({**write_posterior(learnt[1]), **change})


def test_more_replicas_wait_less_and_more_load_more(learnt: tuple[np.ndarray, Posterior]) -> None:
    _, posterior = learnt
    medians = [posterior.predict(LOAD, replicas).ttft["p90"].median for replicas in (1, 2, 4, 8)]
    assert medians == sorted(medians, reverse=True)
    heavier = replace(LOAD, arrival_rate=4.0)
    assert posterior.risks(heavier, 2, (TTFT,))[0] >= posterior.risks(LOAD, 2, (TTFT,))[0]


def test_hits_make_first_tokens_come_sooner(learnt: tuple[np.ndarray, Posterior]) -> None:
    _, posterior = learnt
    hit = replace(LOAD, hit_tokens=250.0)
    assert posterior.predict(hit, 2).ttft["p50"].high < posterior.predict(LOAD, 2).ttft["p50"].low


def test_few_requests_scatter_quantiles(learnt: tuple[np.ndarray, Posterior]) -> None:
    _, posterior = learnt
    few, many = (posterior.predict(LOAD, 4, requests=requests).ttft["p90"] for requests in (5, None))
    assert few.high / few.low > many.high / many.low


def test_a_plan_says_what_one_fewer_would_do() -> None:
    chances = {1: 1.0, 2: 0.9, 3: 0.31, 4: 0.05}
    plan = plan_replicas(lambda replicas: (chances.get(replicas, 0.0),), (TTFT,), 0.9)
    assert (plan.replicas, plan.risk) == (4, 0.05)
    assert plan.reason.startswith("4 replicas: with 3, TTFT p90 would exceed 2 s with probability 0.31; with 4, ")


def test_a_load_far_beyond_what_was_measured_is_said(learnt: tuple[np.ndarray, Posterior]) -> None:
    _, posterior = learnt
    easy = (Objective(Quantity.TTFT, 0.9, 1e6),)
    busiest = posterior.seen.busiest
    measured, beyond = (
        posterior.replicas_for(replace(LOAD, arrival_rate=times * busiest), easy) for times in (1.0, 3.0)
    )
    assert (measured.replicas, beyond.replicas) == (1, 1)
    assert not any("beyond" in warning for warning in measured.warnings)
    assert "far beyond what was measured" in beyond.explain()
    assert "3 times the most observed" in beyond.explain()
    assert not beyond.confident
    assert not any("beyond" in doubt for doubt in posterior.doubts(replace(LOAD, arrival_rate=3 * busiest), 3))


def test_a_plan_for_many_times_the_measured_load_is_not_confident(
    learnt: tuple[np.ndarray, Posterior],
) -> None:
    """However many replicas it takes: none of them would be busier than one that was seen."""
    _, posterior = learnt
    plan = posterior.replicas_for(replace(LOAD, arrival_rate=20 * posterior.seen.highest), (TTFT,))
    assert plan.replicas is not None
    assert plan.replicas > 20
    assert [warning for warning in plan.warnings if "20 times the most observed" in warning]
    assert not plan.confident


def test_an_objective_that_no_replica_holds_is_told() -> None:
    plan = plan_replicas(lambda replicas: (0.2, 0.7), (TTFT, Objective(Quantity.TPOT, 0.5, 0.05)), 0.9)
    assert plan.replicas is None
    assert "TPOT p50 would exceed 50 ms with probability 0.70" in plan.reason


def test_the_engine_is_in_balance() -> None:
    """Little's law: decoding sequences are the rate times output tokens times the time of each."""
    work = work_of(POOL, [(replace(LOAD, arrival_rate=rate), 1) for rate in (0.1, 0.5, 50.0)])
    balance = flow(Parameters.of_logs(truth(1, 0.0)), work)
    asked = balance.served_rate * work.output * balance.tpot
    assert balance.batch[:2] == pytest.approx(asked[:2])
    assert 6.0 < balance.batch[2] <= 8.0
    assert balance.utilisation[2] > 1.0
    assert (balance.prefilling < 1.0).all()


def test_overload_grows_with_the_length_of_the_window() -> None:
    parameters = Parameters.of_logs(truth(1, 0.0))
    busy = replace(LOAD, arrival_rate=50.0)
    seen = latencies(parameters, work_of(POOL, [(replace(busy, seconds=seconds), 1) for seconds in (60.0, 600.0)]))
    assert np.exp(seen.ttft[1, 0] - seen.ttft[0, 0]) == pytest.approx(10.0, rel=0.1)


def test_probabilities_of_all_histograms_add_up_to_one() -> None:
    """The likelihood of every possible histogram of one request, window effect integrated, sums to 1."""
    _, observations = known_pool(1)
    window = observations.windows[0]
    total = 0.0
    empty = replace(window.tpot, counts=(0,) * len(window.tpot.counts))
    for bucket in range(len(window.ttft.counts)):
        counts = tuple(int(each == bucket) for each in range(len(window.ttft.counts)))
        single = replace(window, ttft=replace(window.ttft, counts=counts), tpot=empty, fetches=type(window.fetches)())
        evidence = evidence_of(Observations(POOL, (single,)))
        total += float(np.exp(log_likelihood(evidence, Parameters.of_logs(truth(1)), latencies)))
    assert total == pytest.approx(1.0, abs=0.01)
