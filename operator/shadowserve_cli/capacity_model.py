"""`shadowserve capacity fit`, `plan` and `predict`."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from shadowserve_capacity.errors import CapacityError
from shadowserve_capacity.model.comparison import Compared, compare
from shadowserve_capacity.model.files import read_posterior, write_posterior
from shadowserve_capacity.model.fit import Method, Sampling
from shadowserve_capacity.model.fit import fit as fit_model
from shadowserve_capacity.model.parsing import read_load, read_objective, read_observations
from shadowserve_capacity.model.plots import draw_comparison, draw_trace
from shadowserve_capacity.model.posterior import Interval, Posterior, Prediction
from shadowserve_capacity.model.work import Load

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
PosteriorFile = Annotated[Path, typer.Argument(help="What `fit` wrote.")]
Rate = Annotated[float | None, typer.Option("--rate", help="Requests per second, over all replicas.")]
Prompt = Annotated[float | None, typer.Option("--prompt-tokens", help="Mean tokens of a prompt, cached ones included.")]
Hit = Annotated[
    float, typer.Option("--hit-tokens", help="Mean tokens of a prompt that the cache restores, over all requests.")
]
Output = Annotated[float, typer.Option("--output-tokens", help="Mean tokens of an answer.")]
HitShare = Annotated[float, typer.Option("--hit-share", help="Share of requests that the cache helps, above 0 to 1.")]
LoadFile = Annotated[
    Path | None,
    typer.Option("--load", help="JSON with arrival_rate, prompt_tokens, hit_tokens, output_tokens, hit_share."),
]
_POSTERIOR = Path("posterior.json")


def fit(
    windows: Annotated[Path, typer.Argument(help="JSON with windows of metrics, like examples/windows.json.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the posterior goes.")] = _POSTERIOR,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal posteriors.")] = 1,
    method: Annotated[Method, typer.Option(help="The likelihood: by formulas, or by simulating every window.")] = (
        Method.CLOSED_FORM
    ),
    steps: Annotated[
        int, typer.Option(min=200, help="Steps of each of four chains at first; up to 10 rounds, ever longer.")
    ] = 1000,
    plot: Annotated[Path | None, typer.Option(help="Draw the chains here (.png or .svg).")] = None,
    as_json: Json = False,
) -> None:
    """Learn a pool's parameters from windows of metrics."""
    with _said():
        observations = read_observations(_read(windows))
        typer.echo(f"fitting {len(observations.windows)} windows ...", err=True)
        posterior = fit_model(observations, seed, Sampling(steps=steps), method, tell=_tell)
        _write(output, write_posterior(posterior))
        if plot is not None:
            draw_trace(posterior, plot)
    if as_json:
        summary = {key: value for key, value in write_posterior(posterior).items() if key != "log_draws"}
        typer.echo(json.dumps({**summary, "posterior": str(output)}))
        return
    typer.echo(posterior.explain())
    typer.echo(f"written to {output}; next: shadowserve capacity plan {output} --help", err=True)


def plan(
    posterior: PosteriorFile = _POSTERIOR,
    rate: Rate = None,
    prompt_tokens: Prompt = None,
    hit_tokens: Hit = 0.0,
    output_tokens: Output = 1.0,
    hit_share: HitShare = 1.0,
    load: LoadFile = None,
    slo: Annotated[
        list[str] | None, typer.Option(help='Objective to keep, repeatable; by default "TTFT p90 <= 2s".')
    ] = None,
    confidence: Annotated[
        float, typer.Option(min=0.5, max=0.999, help="Probability with which every objective has to hold.")
    ] = 0.9,
    as_json: Json = False,
) -> None:
    """Say how many replicas a load needs, and why; exit code 1 when no number is enough."""
    with _said():
        learnt = read_posterior(_read(posterior))
        wanted = _load(learnt, load, (rate, prompt_tokens, hit_tokens, output_tokens, hit_share))
        objectives = tuple(read_objective(text) for text in slo or ["TTFT p90 <= 2s"])
        found = learnt.replicas_for(wanted, objectives, confidence)
    if as_json:
        typer.echo(json.dumps({**asdict(found), "confident": found.confident, "load": asdict(wanted)}))
    else:
        typer.echo(found.explain())
    if found.replicas is None:
        raise typer.Exit(1)


def predict(
    posterior: PosteriorFile = _POSTERIOR,
    replicas: Annotated[int, typer.Option(min=1, help="Engines that share the load.")] = 1,
    rate: Rate = None,
    prompt_tokens: Prompt = None,
    hit_tokens: Hit = 0.0,
    output_tokens: Output = 1.0,
    hit_share: HitShare = 1.0,
    load: LoadFile = None,
    windows: Annotated[Path | None, typer.Option(help="Compare with these windows instead of a load.")] = None,
    level: Annotated[
        float, typer.Option(min=0.1, max=0.99, help="Probability that a value lies in its interval.")
    ] = 0.8,
    plot: Annotated[Path | None, typer.Option(help="With --windows: draw the comparison (.png or .svg).")] = None,
    as_json: Json = False,
) -> None:
    """Say what latencies a load would have, or compare predictions with windows that were measured."""
    with _said():
        learnt = read_posterior(_read(posterior))
        if windows is not None:
            compared = compare(learnt, read_observations(_read(windows)).windows, level)
            if plot is not None:
                draw_comparison(compared, level, plot)
            typer.echo(_compared_json(compared, level) if as_json else _compared_words(compared, level))
            return
        wanted = _load(learnt, load, (rate, prompt_tokens, hit_tokens, output_tokens, hit_share))
        predicted = learnt.predict(wanted, replicas, level)
        doubts = learnt.doubts(wanted, replicas)
    if as_json:
        typer.echo(json.dumps({**asdict(predicted), "warnings": doubts, "load": asdict(wanted)}))
    else:
        typer.echo("\n".join([_predicted_words(predicted), *(f"warning: {doubt}" for doubt in doubts)]))


def _tell(line: str) -> None:
    typer.echo(line, err=True)


@contextmanager
def _said() -> Iterator[None]:
    """Turn what is wrong with the input into a message and exit code 2."""
    try:
        yield
    except CapacityError as error:
        _refuse(str(error))


def _refuse(problem: str) -> NoReturn:
    for line in problem.splitlines():
        typer.echo(f"shadowserve capacity: {line}", err=True)
    raise typer.Exit(2)


def _read(file: Path) -> object:
    try:
        value: object = json.loads(file.read_text())
    except OSError as error:
        _refuse(f"{file}: {error.strerror}")
    except ValueError as error:
        _refuse(f"{file}: no JSON: {error}")
    return value


def _write(file: Path, value: object) -> None:
    try:
        file.write_text(json.dumps(value) + "\n")
    except OSError as error:
        _refuse(f"{file}: {error.strerror}")


def _load(
    posterior: Posterior, file: Path | None, options: tuple[float | None, float | None, float, float, float]
) -> Load:
    """Return the load of a file or of the options; hits are fetched as they were in the observations."""
    if file is not None:
        return read_load(_read(file))
    rate, prompt, hit, output, share = options
    if rate is None or prompt is None:
        _refuse("say what the load is: --rate and --prompt-tokens, or --load FILE")
    fetched = posterior.seen.bytes_per_hit_token * hit / share if share > 0.0 else 0.0
    return read_load(
        {
            "arrival_rate": rate,
            "prompt_tokens": prompt,
            "hit_tokens": hit,
            "output_tokens": output,
            "hit_share": share,
            "fetched_bytes": fetched,
        }
    )


def _predicted_words(predicted: Prediction) -> str:
    word = "replica" if predicted.replicas == 1 else "replicas"
    lines = [f"{predicted.replicas} {word}, with probability {predicted.level:g}:"]
    for name, quantiles in (("TTFT", predicted.ttft), ("TPOT", predicted.tpot)):
        lines += [f"  {name} {quantile}: {_range(each)} s" for quantile, each in quantiles.items()]
    lines.append(f"  utilisation: {_range(predicted.utilisation)}")
    return "\n".join([*lines, f"  more arrives than can be served with probability {predicted.saturated:.2f}"])


def _range(interval: Interval) -> str:
    return f"{interval.median:.3g} ({interval.low:.3g} to {interval.high:.3g})"


def _coverage(compared: list[Compared]) -> float:
    return sum(each.covered for each in compared) / len(compared)


def _compared_words(compared: list[Compared], level: float) -> str:
    lines = [
        f"window {each.window}: TTFT p90 {each.observed:.3g} s, predicted {_range(each.interval)} s"
        f"{'' if each.covered else ', outside'}"
        for each in compared
    ]
    return "\n".join([*lines, f"{_coverage(compared):.0%} of {len(compared)} windows inside the {level:.0%} interval"])


def _compared_json(compared: list[Compared], level: float) -> str:
    windows = [{**asdict(each), "covered": each.covered} for each in compared]
    return json.dumps({"level": level, "coverage": _coverage(compared), "windows": windows})
