"""`make soak`: a thousand requests through two engines and a store that holds a tenth of what they write.

Nothing may fail, the memory of sidecars and data plane must stay flat, and what was evicted must count as a miss.
"""

import argparse
import json
import random
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from shadowserve_lab.engine_client import Ask, EngineClient
from shadowserve_lab.home import say
from shadowserve_lab.processes import Program, tree_resident_bytes, wait_until
from shadowserve_lab.stack import Environments, Stack, StackOptions

CHUNK_BYTES = 1_360_000
"""About what one chunk of the demo model takes in the default tier."""
PROMPT_TOKENS = 256 + 8
FIRST_LOOK = 200
FLAT = 0.05
_LOOKUPS = ("hit", "miss", "late")
_HITS = "vllm:external_prefix_cache_hits_total"


@dataclass(frozen=True)
class Look:
    """Private memory of every part after so many requests, in bytes."""

    requests: int
    bytes: dict[str, int]


def prompts(number: int) -> list[list[int]]:
    """Return so many different prompts of one chunk and a little."""
    rng = random.Random(11)
    words = [rng.randrange(1000, 30_000) for _ in range(2000)]
    return [rng.choices(words, k=PROMPT_TOKENS) for _ in range(number)]


def run(stack: Stack, requests: int) -> list[Look]:
    """Send the requests: A computes prompt after prompt; B asks each at once, or one that is long gone."""
    *asked, mine, yours = prompts(requests // 2 + 2)
    for name, prompt in (("a", mine), ("b", yours)):
        _warm_up(stack, name, prompt)
    looks = []
    with ThreadPoolExecutor(2) as pool:
        for number, prompt in enumerate(asked):
            old = asked[number - 100] if number % 2 and number >= 100 else prompt
            first = pool.submit(_ask, stack.engines["a"].client, prompt)
            if old is prompt:
                first.result()
            pool.submit(_ask, stack.engines["b"].client, old).result()
            first.result()
            done = 2 * (number + 1)
            if done in (FIRST_LOOK, 2 * len(asked)):
                looks.append(Look(done, {program.name: tree_resident_bytes(program.pid) for program in _parts(stack)}))
            if done % 100 == 0:
                say(f"{done} of {requests} requests")
    return looks


def _warm_up(stack: Stack, name: str, prompt: Sequence[int]) -> None:
    """Have an engine store a chunk: what its sidecar encodes with is there from then on."""
    _ask(stack.engines[name].client, prompt)
    stored = stack.sidecars[name].metrics
    wait_until(lambda: stored().total("shadowserve_stored_bytes_total") > 0, 30, f"engine {name} to store a chunk")


def _ask(engine: EngineClient, prompt: Sequence[int]) -> None:
    tokens = engine.complete(Ask(prompt, 2)).tokens
    if len(tokens) != 2:
        raise AssertionError(f"{engine.base} answered {tokens}")


def _parts(stack: Stack) -> list[Program]:
    data_plane = [] if stack.data_plane is None else [stack.data_plane.program]
    return [*data_plane, *(sidecar.program for sidecar in stack.sidecars.values())]


def report(stack: Stack, looks: Sequence[Look]) -> dict[str, object]:
    """Return what was seen."""
    metrics = stack.sidecars["b"].metrics()
    first, last = looks
    growth = {name: last.bytes[name] / first.bytes[name] - 1 for name in first.bytes}
    return {
        "requests": last.requests,
        "errors": 0,
        "external_tokens": stack.engines["b"].client.metrics().total(_HITS),
        "lookups": {
            result: metrics.total("shadowserve_lookups_total", result=result) for result in ("hit", "miss", "late")
        },
        "store_evictions": stack.store.evictions(),
        "stored_bytes": sum(each.metrics().total("shadowserve_stored_bytes_total") for each in stack.sidecars.values()),
        "resident_bytes": {look.requests: look.bytes for look in looks},
        "growth": growth,
        "flat": all(value <= FLAT for value in growth.values()),
    }


def main(arguments: Sequence[str]) -> int:
    """Run; 1 when memory grew or nothing was evicted."""
    parser = argparse.ArgumentParser(prog='make soak ARGS="..."', description=__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    options = parser.parse_args(arguments)
    store_bytes = max(16 << 20, options.requests // 2 * CHUNK_BYTES // 10)
    with Stack(StackOptions(store_bytes=store_bytes), Environments.from_environment(), say) as stack:
        seen = report(stack, run(stack, options.requests))
    print(json.dumps(seen, indent=2))
    if options.json:
        options.json.write_text(json.dumps(seen, indent=2) + "\n")
    return 0 if seen["flat"] and seen["store_evictions"] else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
