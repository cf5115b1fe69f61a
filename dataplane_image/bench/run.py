"""Runs the benchmarks, shows one table of what has a goal, and writes every figure to bench-results.jsonl.

`run.py [--quick] [NAME...] [-- ARGUMENTS]`; started by `make bench`, `make bench-quick` and `make bench-NAME`.
Exit code: 0 when everything was measured, goals kept or not; 3 when the machine was too busy for some figure; 1 when a
script failed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results import BUSY, unwind_on_sigterm
from rich.console import Console
from rich.table import Table

from shadowserve_lab.home import REPOSITORY, say

HERE = Path(__file__).parent
RESULTS = REPOSITORY / "bench-results.jsonl"


@dataclass(frozen=True)
class Script:
    """One script: in which environment it runs, its arguments for a quick run, and whether it needs a GPU."""

    name: str
    environment: str = "engine"
    quick: tuple[str, ...] = ()
    on_gpu: bool = False

    def command(self, arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
        """Return its command line."""
        python = Path(environment[f"SHADOWSERVE_LAB_{self.environment.upper()}"]) / "bin/python"
        return [str(python), str(HERE / f"{self.name}.py"), *arguments]


SCRIPTS = (
    Script("pipeline", quick=("--repeats", "5", "--passes", "2", "--rates", "2", "5")),
    Script("roofline", quick=("--repeats", "5", "--passes", "2")),
    Script("memory"),
    Script("rivals", quick=("--repeats", "4")),
    Script("codec", quick=("--texts", "1")),
    Script("engine_ttft", "dev", quick=("--repeats", "4", "--streams", "0", "--places", "sidecar")),
    Script("scatter_gpu", quick=("--repeats", "3", "--speeds", "40"), on_gpu=True),
)


def run(script: Script, arguments: Sequence[str], lines: list[str]) -> int:
    """Run one script, add what it prints to `lines`, and return its exit code."""
    paths = [str(HERE), str(HERE.parent / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = script.command(arguments, environment)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith("{"):
                    lines.append(line.rstrip("\n"))
                else:
                    print(line, end="", file=sys.stderr)
        except BaseException:
            process.terminate()
            raise
    return process.returncode


def table(figures: Sequence[Mapping[str, Any]]) -> Table:
    """Return every figure that has a goal, with whether it is kept."""
    shown = Table(title="Ratios, goals and verdicts", title_justify="left")
    for column in ("bench", "case", "figure", "seen", "goal", "verdict"):
        shown.add_column(column, overflow="fold", justify="right" if column == "seen" else "left")
    for figure in figures:
        if figure["goal"] is None:
            continue
        verdict = "kept" if figure["holds"] else f"missed by {_distance(figure):.1%}"
        style = None if figure["holds"] else "red"
        seen = f"{figure['value']:.4g}"
        shown.add_row(figure["bench"], figure["case"], figure["metric"], seen, figure["goal"], verdict, style=style)
    return shown


def _distance(figure: Mapping[str, Any]) -> float:
    bound = float(figure["goal"].split()[1])
    return abs(figure["value"] - bound) / abs(bound) if bound else abs(float(figure["value"]))


def main(arguments: Sequence[str]) -> int:
    """Run; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(s.name for s in SCRIPTS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer samples: under ten minutes for all of them")
    own, extra = (list(arguments), []) if "--" not in arguments else _split(list(arguments))
    options = parser.parse_args(own)
    unwind_on_sigterm()
    if unknown := set(options.names) - {script.name for script in SCRIPTS}:
        parser.error(f"no bench named {', '.join(sorted(unknown))}")
    wanted = [script for script in SCRIPTS if not options.names or script.name in options.names]
    lines: list[str] = []
    codes: dict[str, int] = {}
    for script in wanted:
        if script.on_gpu and shutil.which("nvidia-smi") is None:
            say(f"bench {script.name}: not run, there is no NVIDIA GPU here (no nvidia-smi)")
            continue
        say(f"bench {script.name}")
        began = time.monotonic()
        codes[script.name] = run(script, [*(script.quick if options.quick else ()), *extra], lines)
        say(f"bench {script.name}: {time.monotonic() - began:.0f} s, exit code {codes[script.name]}")
        RESULTS.write_text("".join(f"{line}\n" for line in lines))
    return _conclude(codes, [json.loads(line) for line in lines])


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def _conclude(codes: Mapping[str, int], figures: Sequence[Mapping[str, Any]]) -> int:
    Console(width=None if sys.stdout.isatty() else 150).print(table(figures))
    failed = [name for name, code in codes.items() if code not in (0, BUSY)]
    busy = [name for name, code in codes.items() if code == BUSY]
    say(f"{len(figures)} figures in {RESULTS.name}, load {os.getloadavg()[0]:.1f}")
    if busy:
        say(f"too busy a machine for some figures of {', '.join(busy)}: see above; run them again when it is quiet")
    if failed:
        say(f"failed: {', '.join(failed)}")
    return 1 if failed else BUSY if busy else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
