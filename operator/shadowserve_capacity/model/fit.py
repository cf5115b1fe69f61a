"""From observations to a posterior: several chains of the package's own sampler, checked against one another."""

import math
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial

import numpy as np
from numpy.typing import NDArray

from shadowserve_capacity.diagnostics import Diagnosis, diagnose
from shadowserve_capacity.model import closed_form
from shadowserve_capacity.model.hardware import DIMENSION, NAMES, Prior, prior_of
from shadowserve_capacity.model.likelihood import Evidence, Form
from shadowserve_capacity.model.observations import Observations, Window
from shadowserve_capacity.model.posterior import Posterior, Seen
from shadowserve_capacity.model.prediction import ByFormula
from shadowserve_capacity.model.proposal import CrankNicolson
from shadowserve_capacity.model.simulation import Simulation
from shadowserve_capacity.model.target import PosteriorTarget, Whitening, whiten
from shadowserve_capacity.model.work import load_of, work_of
from shadowserve_capacity.prefetch.chain import run_serial
from shadowserve_capacity.prefetch.parallel import Options, run_parallel
from shadowserve_capacity.prefetch.problem import Adaptation, Problem
from shadowserve_capacity.prefetch.processes import processes

Values = NDArray[np.float64]

FEWEST_WINDOWS = 8
"""Fewer say too little about queueing and noise for any confidence."""
_ADAPTATION = Adaptation(log_scale=-0.7, rate=0.3)
_SETTLING = 100
"""Steps dropped at the start of each further round, in which the proposal's scale finds itself again."""


class Method(StrEnum):
    """Which form of the model the likelihood uses."""

    CLOSED_FORM = "closed-form"
    SIMULATION = "simulation"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How much to sample: `warm_up` steps of each chain are dropped, and every `thin`-th of the rest is kept."""

    chains: int = 4
    pilot: int = 1500
    """Steps of a first chain, from whose last two thirds the coordinates of the others are made."""
    warm_up: int = 500
    steps: int = 1000
    thin: int = 1
    rounds: int = 10
    """Chains that disagree, or have too few independent draws, go on up to so many times in all: as long again twice,
    then twice as long, three times, and so on."""
    workers: int | None = None
    """Processes, by default as many as there are cores: one a chain, and for a simulation with twice as many or more,
    several that prefetch each chain. The result does not depend on it."""


def fit(
    observations: Observations,
    seed: int,
    sampling: Sampling = Sampling(),
    method: Method = Method.CLOSED_FORM,
    prior: Prior | None = None,
    tell: Callable[[str], None] | None = None,
) -> Posterior:
    """Return what the observations say of the pool's parameters: equal arguments give equal draws.

    `prior`: other beliefs than those for `observations.pool.hardware`; `tell` takes a line after every round of chains.
    """
    target = posterior_target(observations, seed, method, prior, sampling.pilot)
    logs = target.prior.logs(_sample(target, seed, sampling, tell))
    diagnoses = _diagnoses(logs)
    warnings = (*_too_few(observations), *_complaints(diagnoses, sampling.chains))
    return Posterior(observations.pool, logs, diagnoses, _seen(observations), warnings)


def posterior_target(
    observations: Observations,
    seed: int,
    method: Method = Method.CLOSED_FORM,
    prior: Prior | None = None,
    pilot: int = 1500,
) -> PosteriorTarget:
    """Return what the chains of a fit sample: the posterior in coordinates in which it is nearly standard normal."""
    evidence = evidence_of(observations)
    beliefs = prior or prior_of(observations.pool.hardware)
    plain = PosteriorTarget(evidence, beliefs, _form(method, evidence, seed), Whitening.none())
    return _whitened(plain, seed, pilot)


def problems(target: PosteriorTarget, seed: int, sampling: Sampling) -> list[Problem]:
    """Return the chains to run, from starts wider apart than the posterior (deviation 2 in whitened coordinates)."""
    rng = np.random.default_rng([seed, 11])
    starts = [_start(target, rng) for _ in range(sampling.chains)]
    seeds = [int(each) for each in rng.integers(0, 2**62, sampling.chains)]
    steps = sampling.warm_up + sampling.steps
    pairs = zip(starts, seeds, strict=True)
    return [Problem(target, start, each, steps, _ADAPTATION, CrankNicolson()) for start, each in pairs]


def evidence_of(observations: Observations) -> Evidence:
    """Return the observations as the likelihood reads them."""
    windows = observations.windows
    work = work_of(observations.pool, [(load_of(window), window.replicas) for window in windows])
    return Evidence.of(work, [(each.ttft, each.tpot) for each in windows], [each.fetches for each in windows])


def _form(method: Method, evidence: Evidence, seed: int) -> Form:
    if method is Method.CLOSED_FORM:
        return closed_form.latencies
    return Simulation.of(len(evidence.work.seconds), seed)


def _whitened(target: PosteriorTarget, seed: int, steps: int) -> PosteriorTarget:
    """Return the target in coordinates from the closed form's mode, made better by a pilot chain."""
    first = whiten(target.evidence, target.prior, closed_form.latencies)
    rough = replace(target, form=closed_form.latencies, whitening=first)
    pilot = run_serial(Problem(rough, np.zeros(DIMENSION), seed, steps, _ADAPTATION, CrankNicolson()))
    return replace(target, whitening=first.improved(pilot.states[steps // 3 :]))


def _start(target: PosteriorTarget, rng: np.random.Generator) -> Values:
    for scale in (2.0, 1.0, 0.5, 0.0):
        start = scale * rng.standard_normal(DIMENSION)
        if target.log_prior(start) > -math.inf:
            return start
    return np.zeros(DIMENSION)


def _sample(target: PosteriorTarget, seed: int, sampling: Sampling, tell: Callable[[str], None] | None) -> Values:
    """Return draws in the prior's coordinates, shape (chains, draws, 13).

    While the chains give reason to complain they go on in better coordinates, those of their own draws; of all rounds
    the later half is kept.
    """
    chains = problems(target, seed, sampling)
    rounds: list[Values] = []
    workers = sampling.workers or len(os.sched_getaffinity(0))
    each_has = 1 if target.form is closed_form.latencies else max(1, workers // len(chains))
    with _mapped(min(len(chains), workers)) as run:
        while True:
            states = np.stack(list(run(partial(_states, workers=each_has), chains)))
            kept = states[:, sampling.warm_up if not rounds else _SETTLING :: sampling.thin]
            rounds.append(target.whitening.coordinates(kept))
            draws = np.concatenate(rounds[len(rounds) // 2 :], axis=1)
            diagnoses = _diagnoses(draws)
            if tell is not None:
                tell(f"round {len(rounds)}: R-hat at most {max(each.rhat for each in diagnoses.values()):.3f}")
            if len(rounds) == sampling.rounds or not _complaints(diagnoses, sampling.chains):
                return draws
            better = replace(target, whitening=target.whitening.improved(kept.reshape(-1, DIMENSION)))
            starts = better.whitening.states(target.whitening.coordinates(states[:, -1]))
            target = better
            steps = (sampling.warm_up + sampling.steps) * max(1, len(rounds) - 1)
            chains = [
                replace(each, target=target, start=start, seed=each.seed + 1, iterations=steps)
                for each, start in zip(chains, starts, strict=True)
            ]


@contextmanager
def _mapped(workers: int) -> Iterator[Callable[..., Iterable[Values]]]:
    """Yield a `map`: in this process, or in `workers` others."""
    if workers == 1:
        yield map
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield pool.map


def _states(problem: Problem, workers: int) -> Values:
    """Return the states of a chain, by as many processes more as `workers` says when these are several."""
    if workers == 1:
        return run_serial(problem).states
    assert isinstance(problem.target, PosteriorTarget)
    with processes(problem.target, workers) as hiring:
        options = Options(split=None)  # a simulation cannot be split
        chain, _ = run_parallel(problem, hiring, workers, ByFormula.of(problem.target), options)
    return chain.states


def _diagnoses(values: Values) -> dict[str, Diagnosis]:
    return {name: diagnose(values[:, :, index]) for index, name in enumerate(NAMES)}


def _too_few(observations: Observations) -> list[str]:
    windows = len(observations.windows)
    found = []
    if windows < FEWEST_WINDOWS:
        found.append(
            f"too few observations: {windows} windows, at least {FEWEST_WINDOWS} are needed; "
            "what is said below rests mostly on what is usual for such hardware"
        )
    if not any(window.tpot.total for window in observations.windows):
        found.append("no window has a TPOT histogram: the decode step is known from the hardware class only")
    return found


def _complaints(diagnoses: dict[str, Diagnosis], chains: int) -> list[str]:
    return [
        f"{name}: {complaint}; sample longer"
        for name, each in diagnoses.items()
        if (complaint := each.complaint(chains))
    ]


def _seen(observations: Observations) -> Seen:
    windows = observations.windows
    return Seen(
        windows=len(windows),
        requests=sum(window.arrivals for window in windows),
        busiest=max(window.arrival_rate / window.replicas for window in windows),
        highest=max(window.arrival_rate for window in windows),
        bytes_per_hit_token=_bytes_per_hit_token(windows),
    )


def _bytes_per_hit_token(windows: Sequence[Window]) -> float:
    fetched = [window for window in windows if window.fetches.count]
    tokens = sum(window.hit_tokens for window in fetched)
    return sum(window.fetches.bytes for window in fetched) / tokens if tokens else 0.0
