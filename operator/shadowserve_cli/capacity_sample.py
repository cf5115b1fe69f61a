"""`shadowserve capacity sample`, `simulate` and `worker`: exact chains in parallel."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from shadowserve_capacity.calibration import Forecast
    from shadowserve_capacity.prefetch.chain import Chain
    from shadowserve_capacity.prefetch.links import Hiring
    from shadowserve_capacity.prefetch.predictors import Predictor
    from shadowserve_capacity.prefetch.problem import Problem
    from shadowserve_capacity.prefetch.progress import Progress
    from shadowserve_capacity.problems.named import Named

BROKEN, REFUSED = 1, 2


class ProblemName(StrEnum):
    """Problems to sample."""

    MIXTURE = "mixture"
    LASSO = "lasso"
    LOGISTIC = "logistic"


class PredictorName(StrEnum):
    """Ways to guess whether a candidate will be accepted."""

    NAIVE = "naive"
    CONSTANT = "constant"
    PAPER = "paper"
    PARTIAL = "partial"
    SURROGATE = "surrogate"


Size = Annotated[
    int, typer.Option(min=1, help="Synthetic data points; the paper has 1000000 (mixture), 1800000 (lasso).")
]
Iterations = Annotated[int, typer.Option(min=1, help="Length of the chain, in steps.")]
Seed = Annotated[int, typer.Option(min=0, help="Equal seeds give equal chains, whoever computes them.")]
Batches = Annotated[int, typer.Option(min=1, help="Parts that an evaluation of the log density is cut into.")]
Split = Annotated[
    int,
    typer.Option(
        min=-1,
        help="Let workers share one evaluation, at least this many batches each; 0: where that is faster, -1: never.",
    ),
]
Guess = Annotated[
    PredictorName,
    typer.Option("--predictor", help="How it is guessed which steps are accepted; a wrong guess costs time only."),
]
Picture = Annotated[Path | None, typer.Option("--plot", help="Draw the speed-up here (.png or .svg).")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Secret = Annotated[
    Path | None, typer.Option("--secret-file", exists=True, dir_okay=False, help="Secret of master and remote workers.")
]


def sample(
    problem: Annotated[ProblemName, typer.Option(help="What to sample.")] = ProblemName.MIXTURE,
    size: Size = 100_000,
    iterations: Iterations = 1000,
    workers: Annotated[int, typer.Option(min=0, help="Worker processes; 0: one a core.")] = 0,
    seed: Seed = 1,
    batches: Batches = 100,
    predictor: Guess = PredictorName.SURROGATE,
    split: Split = 0,
    listen: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Take remote workers too.")] = None,
    secret_file: Secret = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Keep the chain here (.npz), and go on from it.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Run the serial chain too, and compare bytes and time.")
    ] = False,
    calibration: Annotated[
        bool, typer.Option("--calibration", help="Say how often the predictor's guesses came true.")
    ] = False,
    plot: Picture = None,
    as_json: Json = False,
) -> None:
    """Run a chain on several cores: the same bytes as on one, sooner.

    Exit code 1 when the target breaks its promises or `--check` finds a difference, 2 when something is refused.
    """
    from shadowserve_capacity.calibration import calibrate
    from shadowserve_capacity.prefetch.worker import keep_freed_memory
    from shadowserve_capacity.problems.named import Named

    keep_freed_memory()
    cores = len(os.sched_getaffinity(0))
    named = Named(problem.value, size, seed, batches)
    with _said_plainly():
        _can_draw(plot)
        asked = _Sample(
            named, named.problem(iterations), workers or cores, 0 < workers < cores, predictor,
            None if split < 0 else split, checkpoint,
        )  # fmt: skip
        told: list[Progress] = []
        chain, progress, forecasts = _sampled(asked, listen, secret_file, calibration, told)
        said = {
            "problem": problem.value, "size": size, "seed": seed, "batches": batches, "predictor": predictor.value,
            "chain_sha256": chain.sha256, **_figures(chain, progress),
        }  # fmt: skip
        if plot is not None:
            _draw_told([*told, progress], plot)
        if check:
            said |= _compared(asked, chain, progress)
    found = calibrate(forecasts) if calibration else []
    _print(said | {"calibration": [each.as_json() for each in found]} if as_json and calibration else said, as_json)
    if not (as_json or progress.iteration):
        typer.echo("the chain was complete already: nothing was computed, so there is no speed-up to tell")
    for part in [] if as_json else found:
        typer.echo(part.explain())
    if said.get("equal_to_serial") is False:
        raise typer.Exit(BROKEN)


def simulate(
    problem: Annotated[ProblemName, typer.Option(help="What to sample.")] = ProblemName.MIXTURE,
    size: Size = 20_000,
    iterations: Iterations = 200,
    workers: Annotated[
        list[int] | None, typer.Option(min=1, show_default="16, 32, 64", help="Number of workers, repeatable.")
    ] = None,
    seed: Seed = 1,
    batches: Batches = 100,
    predictor: Guess = PredictorName.SURROGATE,
    hybrid: Annotated[bool, typer.Option(help="Let workers share evaluations where that pays.")] = True,
    batch_seconds: Annotated[
        float, typer.Option(min=1e-9, help="Seconds that a batch takes; the paper has 0.0175.")
    ] = 0.0175,
    message_seconds: Annotated[float, typer.Option(min=0.0, help="Seconds until a worker has its next task.")] = 0.0002,
    plot: Picture = None,
    as_json: Json = False,
) -> None:
    """Compute a chain as a cluster of any size would, in simulated time: speed-ups without the cluster."""
    from shadowserve_capacity.prefetch.plots import Point, draw_speedups
    from shadowserve_capacity.prefetch.policy import Policy
    from shadowserve_capacity.prefetch.simulated import Cluster, run_simulated
    from shadowserve_capacity.problems.named import Named

    with _said_plainly():
        _can_draw(plot)
        what = Named(problem.value, size, seed, batches).problem(iterations)
        runs, points = [], []
        for count in sorted(workers or (16, 32, 64)):
            cluster = Cluster(count, batch_seconds, message_seconds)
            split = cluster.split if hybrid and count > 1 and 2 * cluster.split <= batches else None
            run = run_simulated(what, cluster, _predictor(predictor, what), Policy(split=split, workers=count))
            runs.append(
                {
                    "workers": count, "speedup": run.speedup, "seconds": run.seconds, "useful": run.useful,
                    "wasted": run.wasted, "idle": run.idle, "acceptance": run.chain.acceptance, "split": split,
                    "chain_sha256": run.chain.sha256,
                }
            )  # fmt: skip
            points.append(Point(count, run.speedup, run.useful, run.wasted, run.idle))
            _progress_line(f"{count} workers: speed-up {run.speedup:.2f} in simulated time", last=True)
        if plot is not None:
            draw_speedups(points, "workers", [each.at for each in points], plot)
    if as_json:
        typer.echo(json.dumps({"problem": problem.value, "size": size, "iterations": iterations, "runs": runs}))
        return
    for each in runs:
        _print(each, False)


def worker(
    connect: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where `capacity sample --listen` listens.")],
    secret_file: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="The secret that the master has too.")],
    patience: Annotated[float, typer.Option(min=0.0, help="Seconds to try for.")] = 30.0,
) -> None:
    """Help a `shadowserve capacity sample --listen` from another machine until it is done.

    The same as `shadowserve-capacity worker`, which needs nothing but numpy. Exit code 2 when the master cannot be had.
    """
    from shadowserve_capacity.__main__ import address
    from shadowserve_capacity.remote import serve_master

    with _said_plainly():
        serve_master(address(connect), secret_file.read_bytes().strip(), patience)


@dataclass(frozen=True, slots=True)
class _Sample:
    """What is to be sampled, and how."""

    named: "Named"
    problem: "Problem"
    workers: int
    spare: bool
    predictor: PredictorName
    split: int | None
    checkpoint: Path | None


def _sampled(
    asked: _Sample, listen: str | None, secret_file: Path | None, recording: bool, told: "list[Progress]"
) -> "tuple[Chain, Progress, list[Forecast]]":
    from shadowserve_capacity.calibration import Recorded
    from shadowserve_capacity.prefetch.chain import Chain, Position
    from shadowserve_capacity.prefetch.checkpoint import Checkpoint
    from shadowserve_capacity.prefetch.parallel import Options, run_parallel

    path, left = asked.checkpoint, Checkpoint.start(asked.problem)
    if path is not None and path.exists():
        left = Checkpoint.load(path, asked.problem)

    def keep(chain: Chain, position: Position) -> None:
        if path is not None:
            Checkpoint(left.chain.followed_by(chain), position, left.problem).save(path)

    options = Options(
        split=asked.split, master_works=asked.spare, tell=_teller(told), told_every=0.5, keep=keep if path else None
    )  # fmt: skip
    with _hired(asked, listen, secret_file) as hiring, ThreadPoolExecutor(1) as executor:
        predictor = _predictor(asked.predictor, asked.problem, executor)
        recorded = Recorded(predictor)
        guide = recorded if recording else predictor
        chain, progress = run_parallel(asked.problem, hiring, asked.workers, guide, options, left.position)
    _progress_line(str(progress), last=True)
    return left.chain.followed_by(chain), progress, recorded.forecasts


def _figures(chain: "Chain", progress: "Progress") -> dict[str, object]:
    """Return figures of the whole chain and of this run; None for what a run that computed nothing cannot tell."""
    figures = asdict(progress)
    computed = figures.pop("iteration")
    if not computed:
        figures |= dict.fromkeys(("speedup", "useful", "wasted", "idle"))
    whole = {"iterations": len(chain.states), "acceptance": chain.acceptance}
    return figures | whole | {"iterations_from_checkpoint": len(chain.states) - computed}


@contextmanager
def _hired(asked: _Sample, listen: str | None, secret_file: Path | None) -> "Iterator[Hiring]":
    from shadowserve_capacity.__main__ import address
    from shadowserve_capacity.errors import WorkerError
    from shadowserve_capacity.prefetch.processes import processes
    from shadowserve_capacity.remote import RemoteWorkers, Together

    with ExitStack() as stack:
        here = stack.enter_context(processes(asked.problem.target, asked.workers))
        if listen is None:
            yield here
            return
        if secret_file is None:
            raise WorkerError("--listen needs --secret-file: whoever connects must prove that he knows it")
        remote = RemoteWorkers(asked.named, address(listen), secret_file.read_bytes().strip())
        stack.callback(remote.close)
        yield Together(here, remote)
        for refused in remote.refused:
            typer.echo(f"shadowserve: a worker was refused: {refused}", err=True)


def _predictor(name: PredictorName, problem: "Problem", executor: Executor | None = None) -> "Predictor":
    from shadowserve_capacity.prefetch import predictors
    from shadowserve_capacity.prefetch.surrogate import Surrogate

    makers: dict[PredictorName, Callable[[], Predictor]] = {
        PredictorName.NAIVE: predictors.Naive,
        PredictorName.CONSTANT: predictors.ConstantRate,
        PredictorName.PAPER: predictors.PaperPartialData,
        PredictorName.PARTIAL: predictors.PartialData,
        PredictorName.SURROGATE: lambda: Surrogate(problem, executor),
    }
    return makers[name]()


def _compared(asked: _Sample, chain: "Chain", progress: "Progress") -> dict[str, object]:
    import time

    from shadowserve_capacity.prefetch.chain import run_serial

    began = time.perf_counter()
    serial = run_serial(asked.problem)
    seconds = time.perf_counter() - began
    share = progress.iterations / asked.problem.iterations
    return {
        "equal_to_serial": serial.sha256 == chain.sha256,
        "serial_seconds": seconds,
        "speedup_measured": seconds * share / progress.seconds if progress.iteration else None,
    }


@contextmanager
def _said_plainly() -> Iterator[None]:
    from shadowserve_capacity.errors import CapacityError, ProposalFault, TargetFault

    try:
        yield
    except (TargetFault, ProposalFault) as error:
        typer.echo(f"shadowserve: {error}", err=True)
        raise typer.Exit(BROKEN) from error
    except (CapacityError, ValueError, OSError) as error:
        typer.echo(f"shadowserve: {error}", err=True)
        raise typer.Exit(REFUSED) from error


def _teller(told: "list[Progress]") -> "Callable[[Progress], None]":
    def tell(progress: "Progress") -> None:
        told.append(progress)
        _progress_line(str(progress))

    return tell


def _can_draw(file: Path | None) -> None:
    """Refuse a picture that cannot be made before a long run, not after it."""
    if file is not None:
        from shadowserve_capacity.drawing import pyplot_for

        pyplot_for(file)


def _draw_told(told: "list[Progress]", file: Path) -> None:
    from shadowserve_capacity.prefetch.plots import Point, draw_speedups

    points = [Point(each.iteration, each.speedup, each.useful, each.wasted, each.idle) for each in told]
    draw_speedups(points, "iterations", [each.workers for each in told], file)


def _progress_line(text: str, last: bool = False) -> None:
    if sys.stderr.isatty():
        typer.echo(f"\r\x1b[K{text}", err=True, nl=last)


def _print(said: Mapping[str, object], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(said))
        return
    for name, value in said.items():
        shown = "none" if value is None else f"{value:.4g}" if isinstance(value, float) else value
        typer.echo(f"{name.replace('_', ' '):18} {shown}")
