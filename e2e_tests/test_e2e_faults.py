"""Whatever fails in the cache: the request is answered, its tokens are right, the time lost is at most the deadline, a
counter says what happened, and the next request works again. float32, compared with A's answer computed from scratch.

Time is what the parts count themselves: vLLM, in every story, how long its requests waited before it computed them;
the sidecar, how long fetches took that its deadline ended; the connector, that no chunk of the others waited for it.
"""

import signal
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import xxhash

from engine_story import ANSWER_TOKENS, SECONDS, Story, key_of, reconnected, sidecar_b, values_of
from shadowserve_dataplane.chunks import CHUNK_TOKENS, KvDtype, KvShape
from shadowserve_dataplane.codec.encode import Encoder
from shadowserve_dataplane.codec.format import Expected, Limits, parse_header
from shadowserve_dataplane.codec.tiers import Tier
from shadowserve_lab.engine_client import Answer, Ask
from shadowserve_lab.processes import wait_until

CHUNKS = 3
FETCH_DEADLINE = 3.0
SLACK = 3.0
"""What a busy machine may add to a deadline."""
LONGEST_WAIT = 10.0
"""Bucket of vLLM's histogram: the deadlines of look-up and fetch, and what a busy machine may add."""


@pytest.fixture(autouse=True)
def bounded_waits(story: Story) -> Iterator[None]:
    """In every story: no request of B waits for its cache much longer than the deadlines."""
    before = story.waits_over(LONGEST_WAIT)
    yield
    assert story.waits_over(LONGEST_WAIT) == before, f"a request waited for more than {LONGEST_WAIT:g} s"


@contextmanager
def noticed_at_once(story: Story) -> Iterator[None]:
    """Check that nothing waited for the deadline meanwhile: the fault was known before."""
    late = story.events("chunk_deadline")
    yield
    assert story.events("chunk_deadline") == late


@contextmanager
def ended_by_the_deadline(story: Story, jobs: int = 1) -> Iterator[None]:
    """Check that the deadline ended so many fetches meanwhile, and that they took no longer."""
    late, spent = story.fetches("deadline"), fetch_seconds(story)
    yield
    assert story.fetches("deadline") == late + jobs
    assert fetch_seconds(story) - spent < jobs * FETCH_DEADLINE + SLACK


def tampered(story: Story, change: Callable[[bytes, bytes], bytes]) -> tuple[list[int], Answer]:
    """Have A compute a prompt, change one of its chunks in the store; return the prompt and A's answer."""
    prompt = story.prompt(CHUNKS)
    before = story.keys()
    truth = story.computed(prompt)
    name = story.chunk(story.keys() - before)
    client = story.stack.store.client()
    client.set(name, change(name, client.get(name)))
    return prompt, truth


def recomputed(story: Story, prompt: list[int], truth: Answer, result: str) -> None:
    """Check that B answers right although a fetch ended with `result`, and that what the store has is sound then."""
    before, stored = story.fetches(result), story.stored_bytes()
    with noticed_at_once(story):
        answer, _ = story.asked(prompt)
    assert answer.tokens == truth.tokens
    assert story.fetches(result) == before + 1
    wait_until(lambda: story.stored_bytes() > stored, SECONDS, "B to replace the chunk")
    story.b.reset_prefix_cache()
    healed, external = story.asked(prompt)
    assert external == CHUNKS * CHUNK_TOKENS
    assert healed.tokens == truth.tokens
    story.works_again()


@contextmanager
def held_fetch(story: Story) -> Iterator[tuple["Future[Answer]", Answer]]:
    """Yield B's answer to come, while its fetch is under way and held back, and A's answer."""
    prompt = story.prompt(CHUNKS)
    truth = story.computed(prompt)
    story.stack.store_proxy.hold()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(story.b.complete, Ask(prompt, ANSWER_TOKENS))
        story.stack.store_proxy.wait_held(SECONDS)
        yield coming, truth
        coming.result(SECONDS)


def fetch_seconds(story: Story) -> float:
    """Return the time B's fetches took, all together."""
    return story.stack.sidecars["b"].metrics().total("shadowserve_fetch_seconds_sum")


def test_chunk_evicted_between_look_up_and_fetch(story: Story) -> None:
    known, missing = story.keys(), story.fetches("missing")
    with noticed_at_once(story), held_fetch(story) as (coming, truth):
        client = story.stack.store.client()
        client.delete(story.chunk(story.keys() - known))
        story.stack.store_proxy.release()
        assert coming.result(SECONDS).tokens == truth.tokens
    assert story.fetches("missing") == missing + 1
    story.works_again()


def test_chunk_truncated(story: Story) -> None:
    recomputed(story, *tampered(story, lambda _, chunk: chunk[: len(chunk) * 2 // 3]), "damaged")


@pytest.mark.parametrize("place", ["header", "frame"])
def test_one_byte_flipped(story: Story, place: str) -> None:
    def flip(name: bytes, chunk: bytes) -> bytes:
        header = parse_header(memoryview(chunk), Expected(key_of(name), story.shape()), Limits(), len(chunk))
        at = {"header": header.header_bytes - 20, "frame": header.frames[1].offset + 100}[place]
        return chunk[:at] + bytes([chunk[at] ^ 4]) + chunk[at + 1 :]

    recomputed(story, *tampered(story, flip), "damaged")


def test_one_byte_flipped_in_the_scales(story: Story) -> None:
    def flip(name: bytes, chunk: bytes) -> bytes:
        balanced = bytearray(encoded_again(story, name, chunk, Tier.BALANCED))
        header = parse_header(memoryview(balanced), Expected(key_of(name), story.shape()), Limits(), len(balanced))
        balanced[header.frames[0].offset + 3] ^= 1
        return bytes(balanced)

    recomputed(story, *tampered(story, flip), "damaged")


def encoded_again(story: Story, name: bytes, chunk: bytes, tier: Tier) -> bytes:
    """Return the chunk's values in another tier."""
    shape, key = story.shape(), key_of(name)
    return bytes(Encoder(shape, tier).encode(values_of(chunk, key, shape), key, False))


def test_chunk_of_another_model_under_the_right_key(story: Story) -> None:
    def other_model(name: bytes, chunk: bytes) -> bytes:
        shape = KvShape(2, 2, 32, KvDtype.FLOAT32)
        return bytes(Encoder(shape, Tier.LOSSLESS).encode(memoryview(bytes(shape.values_bytes)), key_of(name), False))

    recomputed(story, *tampered(story, other_model), "refused")


def test_chunk_of_the_same_shape_under_another_key(story: Story) -> None:
    def swapped(name: bytes, chunk: bytes) -> bytes:
        changed = bytearray(chunk)
        found = changed.find(key_of(name), 0, 128)
        assert found > 0
        changed[found : found + 32] = bytes(32)
        header_bytes = struct.unpack_from("<I", chunk, chunk.find(key_of(name)) - 12)[0]
        end = header_bytes - 8
        struct.pack_into("<Q", changed, end, xxhash.xxh3_64_intdigest(bytes(changed[:end])))
        return bytes(changed)

    recomputed(story, *tampered(story, swapped), "refused")


def test_unknown_format_version(story: Story) -> None:
    recomputed(story, *tampered(story, lambda _, chunk: chunk[:4] + b"\xff\x7f" + chunk[6:]), "refused")


def test_chunk_of_another_tier_works(story: Story) -> None:
    prompt, truth = tampered(story, lambda name, chunk: encoded_again(story, name, chunk, Tier.HIGH))
    landed = story.fetches("landed")
    answer, external = story.asked(prompt)
    assert external == CHUNKS * CHUNK_TOKENS
    assert story.fetches("landed") == landed + 1
    assert len(answer.tokens) == len(truth.tokens)
    again, external = story.asked(prompt)
    assert (again.tokens, external) == (answer.tokens, 0), "its own prefix cache holds what came from outside"


def test_store_killed_during_a_fetch_and_started_again(story: Story) -> None:
    before = story.fetches("store_error")
    with noticed_at_once(story), held_fetch(story) as (coming, truth):
        story.stack.store.program.kill()
        story.stack.store_proxy.release()
        assert coming.result(SECONDS).tokens == truth.tokens
    assert story.fetches("store_error") == before + 1
    story.stack.store.restart()
    story.works_again()


def test_connection_to_the_store_breaks_in_the_middle_of_a_chunk(story: Story) -> None:
    before = story.fetches("store_error")
    with noticed_at_once(story), held_fetch(story) as (coming, truth):
        story.stack.store_proxy.cut_after(1_000_000)
        story.stack.store_proxy.release()
        assert coming.result(SECONDS).tokens == truth.tokens
    assert story.fetches("store_error") == before + 1
    story.works_again()


def test_store_accepts_and_never_answers(story: Story) -> None:
    with ended_by_the_deadline(story), held_fetch(story) as (coming, truth):
        assert coming.result(SECONDS).tokens == truth.tokens
    story.restore()
    story.works_again()


def test_data_plane_killed_during_a_fetch(story: Story) -> None:
    lost = story.fetches("place_error")
    with noticed_at_once(story), held_fetch(story) as (coming, truth):
        assert story.stack.data_plane is not None
        story.stack.data_plane.program.kill()
        assert coming.result(SECONDS).tokens == truth.tokens
        story.stack.store_proxy.release()
    assert story.fetches("place_error") == lost + 1
    story.works_again()  # on the host's cores
    story.restore()
    story.works_again()  # at the data plane


def test_data_plane_stalls_past_the_deadline(story: Story) -> None:
    assert story.stack.data_plane is not None
    with ended_by_the_deadline(story), held_fetch(story) as (coming, truth):
        story.stack.data_plane.program.signal(signal.SIGSTOP)
        story.stack.store_proxy.release()
        assert coming.result(SECONDS).tokens == truth.tokens
    story.works_again()  # on the host's cores
    story.stack.data_plane.program.signal(signal.SIGCONT)
    story.restore()
    story.works_again()


def test_sidecar_killed_during_a_fetch_and_restarted(story: Story) -> None:
    lost = story.events("chunk_sidecar_lost")
    with noticed_at_once(story), held_fetch(story) as (coming, truth):
        story.stack.sidecars["b"].program.kill()
        assert coming.result(SECONDS).tokens == truth.tokens
        story.stack.store_proxy.release()
    assert story.events("chunk_sidecar_lost") == lost + CHUNKS
    story.stack.sidecars["b"].restart()
    story.restore()
    reconnected(story)
    story.works_again()


def test_landing_buffer_exhausted(story: Story) -> None:
    """Two slots: a fetch of three chunks reuses them, and a second fetch that finds none in time recomputes."""
    two_slots = 2 * (story.shape().values_bytes + 65_536) + 65_536
    with sidecar_b(story, {"landingBufferBytes": two_slots}):
        said = story.stack.sidecars["b"].engine()
        assert (said["state"], said["chunks"]) == ("LandingBufferTooSmall", 2)
        story.works_again(CHUNKS)
        other = Story(story.stack, 777)
        second = other.prompt(2)
        truth_of_second = other.computed(second)
        with ended_by_the_deadline(story, jobs=2), held_fetch(story) as (coming, truth):
            answer, _ = story.asked(second)
            assert answer.tokens == truth_of_second.tokens
            story.stack.store_proxy.release()
            assert coming.result(SECONDS).tokens == truth.tokens
        story.works_again(CHUNKS)


def test_connector_with_another_protocol_version_than_the_sidecar(story: Story) -> None:
    newer = (
        "-c",
        "import shadowserve_dataplane.connector.messages as messages; messages.PROTOCOL += 1;"
        "from shadowserve_dataplane.sidecar.__main__ import main; main()",
    )
    prompt = story.prompt(2)
    truth = story.computed(prompt)
    sidecar = story.stack.sidecars["b"]
    sidecar.restart(main=newer)
    refused = "shadowserve_messages_refused_total"
    try:
        wait_until(lambda: sidecar.metrics().total(refused) > 0, SECONDS, "the sidecar to refuse the connector")
        answer, external = story.asked(prompt)
        assert (answer.tokens, external) == (truth.tokens, 0)
        assert sidecar.engine()["state"] == "EngineRefused"
    finally:
        sidecar.restart()
        story.restore()
        reconnected(story)
    story.works_again()
