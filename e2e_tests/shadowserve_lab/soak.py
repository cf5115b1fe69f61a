"""`make soak`: a thousand requests through two engines and a store that holds a tenth of what they write.

Nothing may fail, the memory of sidecars and data plane must stay flat, and what was evicted must count as a miss.
"""

import argparse
import json
import random
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from shadowserve_dataplane.chunks import CHUNK_TOKENS
from shadowserve_dataplane.sidecar.metrics import LookupResult
from shadowserve_lab.engine_client import Ask, EngineClient
from shadowserve_lab.home import say
from shadowserve_lab.processes import Program, tree_resident_bytes, wait_until
from shadowserve_lab.stack import Environments, Stack, StackOptions

CHUNK_BYTES = 1_360_000
"""About what one chunk of the demo model takes in the default tier."""
PROMPT_TOKENS = CHUNK_TOKENS + 8
LEAST_REQUESTS = 100
"""Fewer would not fill even the smallest store twice."""
SMALLEST_STORE = 16 << 20
FLAT = 0.05
EVICTED = 0.9
"""Share of the prompts that the store had room for twice over since that must be gone; it evicts by sampling."""
_MOST_ERRORS = 5


@dataclass(frozen=True)
class Load:
    """What is sent: B asks each prompt at once after A or, every second time, the one `distance` before it."""

    requests: int

    @property
    def store_bytes(self) -> int:
        """A tenth of what the requests write."""
        return max(SMALLEST_STORE, self.requests // 2 * CHUNK_BYTES // 10)

    @property
    def distance(self) -> int:
        """After so many further prompts one is sure to be evicted: the store was filled twice."""
        return 2 * self.store_bytes // CHUNK_BYTES

    @property
    def first_look(self) -> int:
        """After so many requests memory is looked at first: a fifth of them."""
        return 2 * max(self.requests // 10, 1)


@dataclass(frozen=True)
class Look:
    """Private memory of every part after so many requests, in bytes."""

    requests: int
    bytes: Mapping[str, int]


@dataclass
class Seen:
    """What B had from outside of prompts that A had just computed (`fresh`) and of evicted ones (`gone`), and more."""

    errors: list[str] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    fresh: int = 0
    fresh_hits: int = 0
    gone: int = 0
    gone_hits: int = 0
    lookups: dict[str, float] = field(default_factory=dict)
    evictions: int = 0
    stored_bytes: float = 0.0

    @property
    def growth(self) -> dict[str, float]:
        """By how much the memory of every part grew between the looks; empty without two of them."""
        if len(self.looks) < 2:
            return {}
        first, last = self.looks[0], self.looks[-1]
        return {name: last.bytes[name] / first.bytes[name] - 1 for name in first.bytes}


def verdict(seen: Seen) -> list[str]:
    """Return what is not as it should be, in words; nothing if all is well."""
    wrong = [f"failed: {error}" for error in seen.errors]
    if not seen.growth:
        wrong.append("memory was not looked at twice: the run ended early")
    wrong += [
        f"memory of {name} grew by {growth:.1%}, more than {FLAT:.0%}"
        for name, growth in seen.growth.items()
        if growth > FLAT
    ]
    if not seen.evictions:
        wrong.append("the store evicted nothing: it was not too small")
    if not seen.fresh_hits:
        wrong.append(f"none of {seen.fresh} prompts that A had just computed was a hit at B")
    if not seen.gone or seen.gone_hits > (1 - EVICTED) * seen.gone:
        wrong.append(f"{seen.gone_hits} of {seen.gone} prompts that were sure to be evicted were hits")
    if not seen.lookups.get(LookupResult.MISS):
        wrong.append("no look-up was counted as a miss")
    failed = (LookupResult.ERROR, LookupResult.REFUSED)
    wrong += [f"{times:g} look-ups ended as {bad}" for bad in failed if (times := seen.lookups.get(bad))]
    return wrong


def run(stack: Stack, load: Load) -> Seen:
    """Send the requests; ends early when too many of them fail."""
    seen = Seen()
    *asked, mine, yours = prompts(load.requests // 2 + 2)
    for name, prompt in (("a", mine), ("b", yours)):
        _warm_up(stack, name, prompt)
    with ThreadPoolExecutor(1) as beside:
        for number, prompt in enumerate(asked):
            try:
                if number % 2 and number >= load.distance:
                    first = beside.submit(_ask, stack.engines["a"].client, prompt)
                    seen.gone_hits += _ask(stack.engines["b"].client, asked[number - load.distance])
                    seen.gone += 1
                    first.result()
                else:
                    _ask(stack.engines["a"].client, prompt)
                    seen.fresh_hits += _ask(stack.engines["b"].client, prompt)
                    seen.fresh += 1
            except (OSError, _WrongAnswer) as error:
                seen.errors.append(f"prompt {number}: {error}")
            done = 2 * (number + 1)
            if done in (load.first_look, 2 * len(asked)):
                memory = {program.name: tree_resident_bytes(program.pid) for program in _parts(stack)}
                seen.looks.append(Look(done, memory))
            if done % 100 == 0:
                say(f"{done} of {load.requests} requests")
            if len(seen.errors) >= _MOST_ERRORS:
                break
    _read_counters(stack, seen)
    return seen


def prompts(number: int) -> list[list[int]]:
    """Return so many different prompts of one chunk and a little."""
    rng = random.Random(11)
    words = [rng.randrange(1000, 30_000) for _ in range(2000)]
    return [rng.choices(words, k=PROMPT_TOKENS) for _ in range(number)]


class _WrongAnswer(Exception):
    """An engine answered, but not as many tokens as it was asked for."""


def _ask(engine: EngineClient, prompt: Sequence[int]) -> bool:
    """Return whether the engine had anything from outside."""
    answer, external = engine.counted(Ask(prompt, 2))
    if len(answer.tokens) != 2:
        raise _WrongAnswer(f"{engine.base} answered {answer.tokens}")
    return external > 0


def _warm_up(stack: Stack, name: str, prompt: Sequence[int]) -> None:
    """Have an engine store a chunk: what its sidecar encodes with is there from then on."""
    _ask(stack.engines[name].client, prompt)
    stored = stack.sidecars[name].metrics
    wait_until(lambda: stored().total("shadowserve_stored_bytes_total") > 0, 30, f"engine {name} to store a chunk")


def _parts(stack: Stack) -> list[Program]:
    data_plane = [] if stack.data_plane is None else [stack.data_plane.program]
    return [*data_plane, *(sidecar.program for sidecar in stack.sidecars.values())]


def _read_counters(stack: Stack, seen: Seen) -> None:
    lookups = stack.sidecars["b"].metrics()
    seen.lookups = {each.value: lookups.total("shadowserve_lookups_total", result=each.value) for each in LookupResult}
    seen.evictions = stack.store.evictions()
    seen.stored_bytes = sum(each.metrics().total("shadowserve_stored_bytes_total") for each in stack.sidecars.values())


def main(arguments: Sequence[str]) -> int:
    """Run; 1 when anything is not as it should be."""
    parser = argparse.ArgumentParser(prog='make soak ARGS="..."', description=__doc__)
    parser.add_argument("--requests", type=int, default=1000, help=f"at least {LEAST_REQUESTS} (default 1000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    options = parser.parse_args(arguments)
    if options.requests < LEAST_REQUESTS:
        parser.error(f"--requests {options.requests}: at least {LEAST_REQUESTS} are needed to fill the store twice")
    load = Load(options.requests)
    with Stack(StackOptions(store_bytes=load.store_bytes), Environments.from_environment(), say) as stack:
        seen = run(stack, load)
    wrong = verdict(seen)
    figures = json.dumps({**asdict(seen), "growth": seen.growth, "wrong": wrong}, indent=2)
    print(figures)
    if options.json:
        options.json.write_text(f"{figures}\n")
    for line in wrong:
        say(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
