"""What engine stories have in common: prompts of their own, A's answer as the truth, counters before and after."""

import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from shadowserve_dataplane.chunks import CHUNK_TOKENS, ChunkKey, KvDtype, KvShape
from shadowserve_dataplane.codec.decode import FrameDecoder
from shadowserve_dataplane.codec.format import Expected, Limits, parse_header
from shadowserve_dataplane.codec.landed import HEADER_BYTES, LandedLayout
from shadowserve_dataplane.codec.tiers import LandingMode
from shadowserve_lab.engine_client import Answer, Ask, EngineClient
from shadowserve_lab.processes import wait_until
from shadowserve_lab.stack import Stack

ANSWER_TOKENS = 12
SECONDS = 90.0
_FRESH_NUMBERS = itertools.count(10_000)
_QUIET_LOOKS = 8
_PREFIX = b"shadowserve:"
_NEVER_EXPIRES = -1


class Story:
    """One test's view of the stack. A computes and stores; B is the engine that things happen to."""

    def __init__(self, stack: Stack, number: int) -> None:
        self.stack = stack
        self.a: EngineClient = stack.engines["a"].client
        self.b: EngineClient = stack.engines["b"].client
        self._number = number

    def prompt(self, chunks: int, question: int = 17) -> list[int]:
        """Return a prompt of so many whole chunks and `question` tokens, different in every test and run."""
        random = np.random.default_rng([self._number, chunks, os.getpid()])
        words = random.integers(1000, 20_000, 64)
        return [int(word) for word in random.choice(words, chunks * CHUNK_TOKENS + question)]

    def computed(self, prompt: Sequence[int]) -> Answer:
        """Return A's answer, computed from scratch, once its chunks are in the store."""
        chunks = len(prompt) // CHUNK_TOKENS
        before = len(self.keys())
        answer = self.a.complete(Ask(prompt, ANSWER_TOKENS))
        wait_until(lambda: len(self.keys()) >= before + chunks, SECONDS, f"{chunks} chunks in the store")
        return answer

    def asked(self, prompt: Sequence[int], extra: Mapping[str, object] | None = None) -> tuple[Answer, int]:
        """Return B's answer, and how many tokens vLLM says it had from outside."""
        return self.b.counted(Ask(prompt, ANSWER_TOKENS, extra or {}))

    def keys(self) -> set[bytes]:
        """Return the keys of what engines stored: not those of round trips, which expire and so come and go."""
        client = self.stack.store.client()
        return {bytes(key) for key in client.keys(_PREFIX + b"*") if client.ttl(key) == _NEVER_EXPIRES}

    def fetches(self, result: str | None = None) -> float:
        """Return how many fetch jobs of B ended, or ended that way."""
        labels = {} if result is None else {"result": result}
        return self.stack.sidecars["b"].metrics().total("shadowserve_fetches_total", **labels)

    def events(self, event: str) -> float:
        """Return how often something happened in B's connector, by the counter in vLLM's metrics."""
        return self.b.metrics().total("vllm:shadowserve_connector_events_total", event=event)

    def waits_over(self, seconds: float) -> float:
        """Return how many of B's requests waited longer before vLLM computed; `seconds` bounds one of its buckets."""
        waits = self.b.metrics().buckets("vllm:request_queue_time_seconds")
        return waits[math.inf] - waits[seconds] if waits else 0.0

    def stored_bytes(self) -> float:
        """Return how many bytes B has put into the store."""
        return self.stack.sidecars["b"].metrics().total("shadowserve_stored_bytes_total")

    def chunk(self, keys: set[bytes], first: bool = False) -> bytes:
        """Return one of the keys: of the chunk that begins the context, or of another one."""
        client = self.stack.store.client()
        return next(key for key in sorted(keys) if bool(client.get(key)[10] & 1) is first)

    def works_again(self, chunks: int = 2) -> None:
        """Check that a prompt nobody asked before is answered from the store, as ever."""
        fresh = Story(self.stack, next(_FRESH_NUMBERS))
        prompt = fresh.prompt(chunks)
        truth = fresh.computed(prompt)
        answer, external = fresh.asked(prompt)
        assert external == chunks * CHUNK_TOKENS, f"{external} tokens from outside"
        assert answer.tokens == truth.tokens

    def restore(self) -> None:
        """Bring every part back to how it was, whatever a test did to it."""
        stack = self.stack
        data_plane, sidecar = stack.data_plane, stack.sidecars["b"]
        assert data_plane is not None
        stack.store_proxy.release()
        stack.store_proxy.limit(0)
        if not stack.store.program.running:
            stack.store.restart()
        if not data_plane.program.running:
            data_plane.restart()
        if not sidecar.program.running:
            sidecar.restart()
        for each in stack.sidecars.values():
            each.use_data_plane(data_plane.endpoint)
        wait_until(self.remote_placement, SECONDS, "both sidecars to use the data plane")
        wait_until(self._quiet(), SECONDS, "stores of earlier prompts to end")

    def remote_placement(self) -> bool:
        """Whether both sidecars restore at the data plane now."""
        places = [each.metrics() for each in self.stack.sidecars.values()]
        return all(place.total("shadowserve_placement_info", place="dpu") == 1 for place in places)

    def _quiet(self) -> Callable[[], bool]:
        """Return a condition: nothing was stored since it was looked at so many times."""
        seen: list[float] = []

        def quiet() -> bool:
            sidecars = self.stack.sidecars.values()
            seen.append(sum(each.metrics().total("shadowserve_stored_bytes_total") for each in sidecars))
            return len(seen) >= _QUIET_LOOKS and len(set(seen[-_QUIET_LOOKS:])) == 1

        return quiet

    def shape(self) -> KvShape:
        """Return the shape of the model's chunks."""
        config = json.loads((self.stack.model / "config.json").read_text())
        heads = config["num_attention_heads"]
        head_dim = config.get("head_dim") or config["hidden_size"] // heads
        return KvShape(config["num_hidden_layers"], config["num_key_value_heads"], head_dim, KvDtype.FLOAT32)


def reconnected(story: Story) -> None:
    """Wait until engine B has found its sidecar again."""
    log = story.stack.folder / "sidecar-b" / "sidecar.log"
    sidecar = story.stack.sidecars["b"]
    ready = log.read_text().rfind("ready on")
    wait_until(lambda: log.read_text().count("session", ready) >= 2, SECONDS, f"engine B at {sidecar.socket}")


@contextmanager
def sidecar_b(story: Story, changes: dict[str, object]) -> Iterator[None]:
    """Run B's sidecar with a changed configuration."""
    sidecar = story.stack.sidecars["b"]
    sidecar.restart(changes)
    try:
        story.restore()
        reconnected(story)
        yield
    finally:
        sidecar.restart()
        story.restore()
        reconnected(story)


def key_of(name: bytes) -> ChunkKey:
    """Return the chunk key in a store key."""
    return ChunkKey(bytes.fromhex(name.removeprefix(_PREFIX).decode()))


def values_of(chunk: bytes, key: ChunkKey, shape: KvShape) -> memoryview:
    """Return the canonical values of an encoded chunk."""
    view = memoryview(chunk)
    header = parse_header(view, Expected(key, shape), Limits(), len(chunk))
    layout = LandedLayout.of(header, LandingMode.VALUES)
    image = memoryview(bytearray(layout.total_bytes))
    decode = FrameDecoder(shape).begin(header, layout)
    for number, frame in enumerate(header.frames):
        place = layout.destination(frame)
        destination = None if place is None else image[place[0] : sum(place)]
        decode.decode(number, view[frame.offset : frame.offset + frame.encoded_bytes], destination)
    return image[HEADER_BYTES:]
