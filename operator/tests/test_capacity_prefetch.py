"""Whoever computes the chain, however badly they guess and behave, the bytes are the serial run's."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadowserve_capacity.errors import CheckpointError, ProblemError, ProposalFault, TargetFault
from shadowserve_capacity.prefetch.chain import Position, run_serial, serial_run
from shadowserve_capacity.prefetch.checkpoint import Checkpoint, fingerprint
from shadowserve_capacity.prefetch.evidence import Comparison, Decision, Normal
from shadowserve_capacity.prefetch.master import Master
from shadowserve_capacity.prefetch.policy import Policy
from shadowserve_capacity.prefetch.predictors import ConstantRate, Naive, PaperPartialData, PartialData, Predictor
from shadowserve_capacity.prefetch.problem import Adaptation, Problem, Proposed, State
from shadowserve_capacity.prefetch.simulated import Cluster, Faults, run_simulated
from shadowserve_capacity.prefetch.surrogate import Surrogate
from shadowserve_capacity.problems.mixture import Mixture, PermutedWalk
from shadowserve_capacity.problems.named import Named, settled


@dataclass
class Gaussian:
    """Mean of N(theta, 1) data, with a prior that ends at +-20."""

    data: np.ndarray
    batches: int = 10

    def log_prior(self, theta: State) -> float:
        return 0.0 if np.abs(theta).max() < 20 else -np.inf

    def log_likelihood(self, theta: State, batch: int) -> float:
        return float(-0.5 * ((self.data[batch] - theta) ** 2).sum())


@dataclass
class Inverted:
    inner: Predictor = field(default_factory=PartialData)

    def probability(self, comparison: Comparison) -> float:
        return 1.0 - self.inner.probability(comparison)

    def expect(self, new: State, old: State) -> Normal | None:
        return self.inner.expect(new, old)

    def learn(self, decision: Decision) -> None:
        self.inner.learn(decision)


@dataclass
class Erratic:
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(5))

    def probability(self, comparison: Comparison) -> float:
        return float(self.rng.choice([0.0, 1.0, np.nan, self.rng.random()]))

    def expect(self, new: State, old: State) -> Normal | None:
        return Normal(float(self.rng.normal()), float(self.rng.exponential()))

    def learn(self, decision: Decision) -> None:
        pass


@dataclass(frozen=True)
class Truncated:
    """Redraws until positive: takes as many random numbers as the path needs."""

    def propose(self, theta: State, log_scale: float, rng: np.random.Generator) -> Proposed:
        while True:
            candidate = theta + np.exp(log_scale / 2) * rng.standard_normal(theta.shape[0])
            if candidate[0] > -10:
                return Proposed(candidate, 0.01)


PREDICTORS = [Naive, ConstantRate, PaperPartialData, PartialData, Inverted, Erratic]
POLICIES = [Policy(), Policy(split=1, workers=3), Policy(split=3, workers=7), Policy(descent=4, finish_dead=True)]


def gaussian_problem(seed: int = 1, iterations: int = 120, **changes: object) -> Problem:
    data = np.random.default_rng(seed).normal(1.0, 1.0, (10, 20, 3))
    values: dict[str, object] = {"target": Gaussian(data), "start": np.full(3, 5.0), "seed": seed}
    return Problem(**{**values, "iterations": iterations, "adaptation": Adaptation(-2.0), **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("workers", [1, 2, 7, 64])
def test_any_predictor_and_worker_count_gives_the_serial_bytes(predictor: type, workers: int) -> None:
    problem = gaussian_problem(iterations=max(20, 120 // workers))
    assert run_simulated(problem, Cluster(workers), predictor()).chain.sha256 == run_serial(problem).sha256


@settings(max_examples=settings().max_examples // 8)
@given(
    seed=st.integers(0, 2**32),
    workers=st.integers(1, 64),
    predictor=st.sampled_from(PREDICTORS),
    faults=st.builds(Faults, st.floats(0, 0.5), st.floats(0, 0.2), st.floats(0, 0.5), st.integers(0, 1000)),
    proposal=st.booleans(),
    policy=st.sampled_from(POLICIES),
)
def test_slow_dying_repeating_workers_cost_time_only(
    seed: int, workers: int, predictor: type, faults: Faults, proposal: bool, policy: Policy
) -> None:
    changes: dict[str, object] = {"proposal": Truncated()} if proposal else {}
    problem = gaussian_problem(seed, 12, **changes)
    run = run_simulated(problem, Cluster(workers, message_seconds=0.3, faults=faults), predictor(), policy)
    assert run.chain.sha256 == run_serial(problem).sha256


def test_one_worker_wastes_nothing() -> None:
    run = run_simulated(gaussian_problem(), Cluster(1), Naive())
    assert run.speedup == pytest.approx(1.0, rel=0.01)
    assert run.wasted < 0.01, "but for the terms that are asked for again, as a check on the target"


def test_looking_at_data_speeds_burn_in_up() -> None:
    problem = gaussian_problem(start=np.full(3, 15.0), adaptation=Adaptation(-6.0, None))
    naive = run_simulated(problem, Cluster(16), Naive())
    ours = run_simulated(problem, Cluster(16), PartialData())
    assert ours.speedup > 2 * naive.speedup


def test_states_outside_the_support_are_rejected_without_data() -> None:
    problem = gaussian_problem(start=np.full(3, 19.9), adaptation=Adaptation(6.0, None), iterations=60)
    assert run_simulated(problem, Cluster(8)).chain.sha256 == run_serial(problem).sha256


def test_a_target_that_changes_its_answer_is_named() -> None:
    master = Master(gaussian_problem(), Naive())
    task = master.assign(0)
    assert task is not None
    master.update(0, task.node, 0, [-1.0])
    with pytest.raises(TargetFault, match="changed its answer: batch 0"):
        master.update(0, task.node, 0, [-1.5])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_target_that_is_not_finite_is_stopped(value: float) -> None:
    data = np.zeros((10, 1, 3))
    data[4] = value
    with pytest.raises(TargetFault, match="batch 4"):
        run_simulated(gaussian_problem(target=Gaussian(data)), Cluster(4))


def test_a_proposal_of_the_wrong_shape_is_refused() -> None:
    class Wrong:
        def propose(self, theta: State, log_scale: float, rng: np.random.Generator) -> Proposed:
            return Proposed(theta[:1])

    with pytest.raises(ProposalFault, match=r"shape \(1,\)"):
        run_serial(gaussian_problem(proposal=Wrong()))


@pytest.mark.parametrize("returned", [None, np.zeros(3), Proposed([1.0, 2.0, 3.0])])  # type: ignore[arg-type]
def test_a_proposal_that_is_something_else_is_refused(returned: Any) -> None:
    class Odd:
        def propose(self, theta: State, log_scale: float, rng: np.random.Generator) -> Proposed:
            answer: Proposed = returned
            return answer

    with pytest.raises(ProposalFault, match=r"iteration 0: the proposal is .*, not a Proposed with an array"):
        run_serial(gaussian_problem(proposal=Odd()))


class Raising(Gaussian):
    """Cannot be evaluated beyond a wall that the chain never reaches, only speculation does."""

    wall = 1e9

    def log_likelihood(self, theta: State, batch: int) -> float:
        if theta.max() > self.wall:
            raise ValueError("beyond the wall")
        return super().log_likelihood(theta, batch)


def test_a_fault_where_only_speculation_went_is_no_fault() -> None:
    problem = gaussian_problem(start=np.full(3, 1.0), adaptation=Adaptation(2.0, None), iterations=60)
    states: list[float] = []
    chain = run_serial(problem)
    for iteration in range(60):
        before = problem.start if iteration == 0 else chain.states[iteration - 1]
        states.append(float(problem.propose(before, 2.0, iteration).theta.max()))
    target = Raising(problem.target.data)  # type: ignore[attr-defined]
    target.wall = max(states)
    fenced = gaussian_problem(
        target=target, start=np.full(3, 1.0), adaptation=Adaptation(2.0, None), iterations=60
    )  # fmt: skip
    assert run_simulated(fenced, Cluster(64), Erratic()).chain.sha256 == chain.sha256
    target.wall = sorted(states)[-2]
    with pytest.raises(TargetFault, match="beyond the wall"):
        run_simulated(fenced, Cluster(64), Erratic())


def test_a_target_that_changes_its_answers_is_found_out_by_asking_again() -> None:
    class Drifting(Gaussian):
        asked = 0

        def log_likelihood(self, theta: State, batch: int) -> float:
            self.asked += 1
            return super().log_likelihood(theta, batch) + 1e-9 * self.asked

    with pytest.raises(TargetFault, match="changed its answer"):
        run_simulated(gaussian_problem(target=Drifting(np.zeros((10, 20, 3))), iterations=20), Cluster(4))


def test_splitting_evaluations_keeps_all_workers_useful() -> None:
    problem = gaussian_problem(start=np.full(3, 1.0), adaptation=Adaptation(-4.0))
    alone = run_simulated(problem, Cluster(8), PartialData())
    split = run_simulated(problem, Cluster(8), PartialData(), Policy(split=1, workers=8))
    assert split.speedup > 1.2 * alone.speedup
    assert split.chain.sha256 == alone.chain.sha256


@pytest.mark.parametrize("where", [1, 17, 59])
def test_a_chain_taken_up_where_it_was_left_has_the_same_bytes(where: int, tmp_path: Path) -> None:
    whole = gaussian_problem(iterations=60)
    begun, position = serial_run(gaussian_problem(iterations=where))
    Checkpoint(begun, position, fingerprint(whole)).save(tmp_path / "chain.npz")
    left = Checkpoint.load(tmp_path / "chain.npz", whole)
    rest = run_simulated(whole, Cluster(5), at=left.position).chain
    assert left.chain.followed_by(rest).sha256 == run_serial(whole).sha256


def test_the_master_knows_where_the_serial_chain_stands() -> None:
    problem = gaussian_problem(iterations=30)
    master = Master(problem, Naive())
    while not master.done:
        task = master.assign(0)
        assert task is not None
        for batch in range(task.first, task.stop):
            master.update(0, task.node, batch, [problem.evaluate(task.theta, batch)])
            if len(master.steps) == 12:
                assert same(master.position, serial_run(gaussian_problem(iterations=12))[1])
    assert same(master.position, serial_run(problem)[1])


def same(one: Position, other: Position) -> bool:
    return (one.iteration, one.theta.tobytes(), one.log_scale) == (
        other.iteration, other.theta.tobytes(), other.log_scale
    )  # fmt: skip


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "chain.npz"
    Checkpoint.start(gaussian_problem(seed=1)).save(path)
    with pytest.raises(CheckpointError, match="another problem"):
        Checkpoint.load(path, gaussian_problem(seed=2))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        Checkpoint.load(path, gaussian_problem(seed=1))


class Steps:
    """A proposal without a `repr` of its own."""

    def __init__(self, widths: np.ndarray) -> None:
        self.widths = widths

    def propose(self, theta: State, log_scale: float, rng: np.random.Generator) -> Proposed:
        return Proposed(theta + self.widths[: len(theta)] * rng.standard_normal(len(theta)))


def test_a_checkpoint_knows_equal_proposals_and_tells_others(tmp_path: Path) -> None:
    widths = np.ones(5000)
    problem = replace(gaussian_problem(), proposal=Steps(widths))
    path = tmp_path / "chain.npz"
    Checkpoint.start(problem).save(path)
    assert Checkpoint.load(path, replace(problem, proposal=Steps(widths.copy()))).position.iteration == 0
    widths[2500] = 1.5
    with pytest.raises(CheckpointError, match="another problem"):
        Checkpoint.load(path, replace(problem, proposal=Steps(widths)))


@pytest.mark.parametrize(
    ("field", "change"),
    [("target.batches", {"target": Gaussian(np.zeros((0, 20, 3)), 0)}), ("iterations", {"iterations": -1}),
     ("seed", {"seed": -1})],
)  # fmt: skip
def test_a_problem_without_a_chain_is_refused_by_field(field: str, change: dict[str, Any]) -> None:
    with pytest.raises(ProblemError, match=f"^{field}: "):
        replace(gaussian_problem(), **change)


def test_without_speculation_nothing_is_wasted() -> None:
    run = run_simulated(gaussian_problem(), Cluster(5), policy=Policy(split=1, speculate=False, workers=5))
    assert run.wasted < 0.01
    assert run.speedup == pytest.approx(5.0, rel=0.02)
    assert run.chain.sha256 == run_serial(gaussian_problem()).sha256


@pytest.mark.parametrize("name", ["mixture", "lasso", "logistic"])
def test_the_problems_of_the_paper_give_the_serial_bytes_with_a_fitted_quadratic(name: str) -> None:
    problem = Named(name, 2000, 5, 20).problem(150)
    run = run_simulated(problem, Cluster(7), Surrogate(problem))
    assert run.chain.sha256 == run_serial(problem).sha256


def test_a_fitted_quadratic_tells_nearly_every_decision_once_it_has_seen_enough() -> None:
    problem = settled(Named("logistic", 4000, 5, 20).problem(500), 1500)
    plain = run_simulated(problem, Cluster(16), PartialData())
    fitted = run_simulated(problem, Cluster(16), Surrogate(problem))
    assert fitted.times[-1] - fitted.times[250] < 0.7 * (plain.times[-1] - plain.times[250])


def test_a_fitted_quadratic_holds_where_two_components_have_nearly_the_same_first_coordinate() -> None:
    rng = np.random.default_rng(3)
    means = 4.0 * np.eye(8)  # the first coordinates of seven means are equal, so their order says nothing
    data = rng.standard_normal((20, 8, 200)) + means[rng.integers(0, 8, (20, 200))].transpose(0, 2, 1)
    scale = Adaptation(float(np.log(2.38**2 / 64 * 8 / 4000)), None)
    problem = Problem(Mixture(data), means.reshape(-1), 3, 380, scale, PermutedWalk())
    plain = run_simulated(problem, Cluster(16), PartialData())
    fitted = run_simulated(problem, Cluster(16), Surrogate(problem))
    assert fitted.chain.sha256 == plain.chain.sha256
    assert fitted.times[-1] - fitted.times[250] < 0.8 * (plain.times[-1] - plain.times[250])  # 1.0 if not trusted


def test_labels_follow_a_state_nearby_and_every_mean_is_kept() -> None:
    rng = np.random.default_rng(4)
    like = rng.uniform(-2.0, 2.0, (8, 8))
    moved = like + 0.01 * rng.standard_normal((8, 8))
    target = Mixture(np.zeros((1, 8, 1)))
    permuted = moved[rng.permutation(8)].reshape(-1)
    assert np.array_equal(target.aligned(permuted, like.reshape(-1)), moved.reshape(-1))
    far = rng.uniform(-2.0, 2.0, 64)
    assert np.array_equal(np.sort(target.aligned(far, like.reshape(-1))), np.sort(far))


@pytest.mark.parametrize(
    ("named", "said"),
    [(Named("nothing", 10, 1), "problem: "), (Named("lasso", 10, 1), "size: "), (Named("lasso", 9, 1, 0), "batches: ")],
)
def test_a_problem_that_makes_no_sense_is_refused_by_field(named: Named, said: str) -> None:
    with pytest.raises(ProblemError, match=said):
        named.problem(5)
