"""KV restored per second and per second of processor time: ours and what others ship, over the same link, in one run.

Servers run at the far end of a link between two network namespaces. LMCache's `lm://` server (raw, and its cachegen
serde), Mooncake over TCP, NIXL with UCX over TCP, a stock Redis client with a naive decoder, ours. `make bench-rivals`.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from namespace_link import FAR, NEAR, NamespaceLink
from real_kv import interleaved, kv_shape
from results import BUSY, Report, at_least, unwind_on_sigterm

from shadowserve_lab.home import say

HERE = Path(__file__).parent
GIGA = 1e9


@dataclass(frozen=True)
class Rival:
    """One way to move KV: its program and environment; `compresses` counts for the comparison of processor time."""

    name: str
    program: str
    environment: str
    compresses: bool = False
    extra: dict[str, str] = field(default_factory=dict)
    share: int = 1
    """Restores one in so many of the chunks a sample, because it is so slow."""


OURS = ("ours, Codes", "ours, Values")
RIVALS = (
    Rival(OURS[0], "ours", "engine", extra={"SHADOWSERVE_BENCH_WAY": "Codes"}),
    Rival(OURS[1], "ours", "engine", extra={"SHADOWSERVE_BENCH_WAY": "Values"}),
    Rival("Redis client, naive decoder", "ours", "engine", True, {"SHADOWSERVE_BENCH_WAY": "naive"}),
    Rival("LMCache lm://, raw", "lmcache_server", "lmcache"),
    Rival("LMCache lm://, cachegen", "lmcache_server", "lmcache", True, {"SHADOWSERVE_BENCH_SERDE": "cachegen"}, 12),
    Rival("Mooncake TCP, raw", "mooncake_tcp", "mooncake"),
    Rival("NIXL UCX TCP, raw", "nixl_ucx", "nixl"),
)


class Contestant:
    """A rival's two processes; `restore` has it restore its chunks once.

    Between two turns both are stopped: some poll on a core while they have nothing to do.
    """

    def __init__(self, rival: Rival, link: NamespaceLink, chunks: int, quit_at: ExitStack) -> None:
        python = Path(os.environ[f"SHADOWSERVE_LAB_{rival.environment.upper()}"]) / "bin/python"
        program = [str(python), str(HERE / "rivals" / f"{rival.program}.py")]
        number = max(1, chunks // rival.share)
        self._gigabytes = number * kv_shape().values_bytes / GIGA
        what = [os.environ["SHADOWSERVE_LAB_KV"], str(number)]
        environment = {**os.environ, **rival.extra, "OMP_NUM_THREADS": "1"}
        self._server = _start(link.command([*program, "serve", FAR, *what]), environment, quit_at)
        described = _json_line(self._server, rival.name)
        self._client = _start([*program, "fetch", NEAR, *what, json.dumps(described)], environment, quit_at)
        _line(self._client, "ready", rival.name)
        self._name = rival.name
        self._signal(signal.SIGSTOP)

    def restore(self) -> tuple[float, float]:
        """Return gigabytes of KV a second on the clock, and a second of processor time."""
        assert self._client.stdin is not None
        self._signal(signal.SIGCONT)
        self._client.stdin.write("again\n")
        self._client.stdin.flush()
        took = _json_line(self._client, self._name)
        self._signal(signal.SIGSTOP)
        return self._gigabytes / took["wall"], self._gigabytes / took["cpu"]

    def _signal(self, number: signal.Signals) -> None:
        for process in (self._server, self._client):
            process.send_signal(number)


def _start(command: list[str], environment: dict[str, str], quit_at: ExitStack) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    quit_at.callback(_end, process)
    return process


def _end(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGCONT)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _json_line(process: "subprocess.Popen[str]", name: str) -> dict[str, float]:
    found: dict[str, float] = json.loads(_line(process, "{", name))
    return found


def _line(process: "subprocess.Popen[str]", start: str, name: str) -> str:
    """Return the next line that begins like that; libraries write others."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(start):
            return line
    raise RuntimeError(f"{name}: its program ended with exit code {process.wait(10)}")


def start_all(link: NamespaceLink, chunks: int, quit_at: ExitStack) -> dict[str, Contestant]:
    """Start every rival, by name."""
    contestants = {}
    for rival in RIVALS:
        say(f"rivals: starting {rival.name}")
        contestants[rival.name] = Contestant(rival, link, chunks, quit_at)
    return contestants


def measure(contestants: dict[str, Contestant], gigabits: float, repeats: int, report: Report) -> None:
    """Run all, turn by turn, over a link of that rate (0: as fast as it goes)."""
    case = f"link of {gigabits:g} Gb/s" if gigabits else "no limit"
    restore = {name: one.restore for name, one in contestants.items()}
    samples = interleaved(repeats, restore, lambda at: say(f"rivals: {case}: {at}"))
    speed = {name: [by_wall for by_wall, _ in taken] for name, taken in samples.items()}
    thrift = {name: [by_cpu for _, by_cpu in taken] for name, taken in samples.items()}
    for name in samples:
        report.figure(f"{case}, {name}", "KV per second", speed[name], "GB/s", gigabits=gigabits)
        report.figure(f"{case}, {name}", "KV per processor second", thrift[name], "GB/s", gigabits=gigabits)
    if gigabits:
        _compare(report, case, "KV per second", speed, [r.name for r in RIVALS if r.name not in OURS], 4.0)
    else:
        _compare(report, case, "KV per processor second", thrift, [r.name for r in RIVALS if r.compresses], 5.0)


def _compare(
    report: Report, case: str, metric: str, found: dict[str, list[float]], rivals: Sequence[str], goal: float
) -> None:
    best = max(rivals, key=lambda name: sorted(found[name])[len(found[name]) // 2])
    for ours in OURS:
        ratios = [mine / theirs for mine, theirs in zip(found[ours], found[best], strict=True)]
        report.figure(f"{case}, {ours}", f"{metric} / best rival", ratios, "ratio", at_least(goal), rival=best)


def main(arguments: Sequence[str]) -> int:
    """Run; 3 when the machine is too busy to tell, or cannot have such a link."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="samples of each figure (default 7)")
    parser.add_argument("--chunks", type=int, default=12, help="chunks of 256 tokens a sample (default 12)")
    parser.add_argument("--rates", nargs="*", type=float, default=(2.0, 0.0), help="Gb/s of the link; 0: no limit")
    parser.add_argument("--noise-bound", type=float, default=0.25, help="a figure is refused above this (default 0.25)")
    options = parser.parse_args(arguments)
    unwind_on_sigterm()
    if (why := NamespaceLink.missing()) is not None:
        print(f"rivals: not measured: {why}", file=sys.stderr)
        return BUSY
    report = Report("rivals", {**vars(options), "restored": "bfloat16 KV"}, options.noise_bound)
    with NamespaceLink() as link, ExitStack() as quit_at:
        contestants = start_all(link, options.chunks, quit_at)
        for gigabits in options.rates:
            link.limit(gigabits * GIGA)
            measure(contestants, gigabits, options.repeats, report)
    return report.exit_code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
