"""What A computed, B answers from: exactly, for every number of chunks, and without a look-up where none can help."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from engine_story import ANSWER_TOKENS, SECONDS, Story, sidecar_b
from shadowserve_dataplane.chunks import CHUNK_TOKENS
from shadowserve_lab.engine_client import Ask
from shadowserve_lab.processes import wait_until

CHUNKS = 5


def test_lossless_hit_equals_a_local_hit_to_the_last_digit(story: Story) -> None:
    prompt = story.prompt(3)
    story.computed(prompt)
    local = story.a.complete(Ask(prompt, ANSWER_TOKENS))
    remote, external = story.asked(prompt)
    again = story.b.complete(Ask(prompt, ANSWER_TOKENS))
    assert external == 3 * CHUNK_TOKENS
    assert remote.tokens == local.tokens == again.tokens
    assert remote.logprobs[0] == pytest.approx(local.logprobs[0], abs=5e-5)
    assert remote.logprobs[0] == pytest.approx(again.logprobs[0], abs=5e-5)


def test_every_number_of_leading_chunks_is_a_hit(story: Story) -> None:
    prompt = story.prompt(CHUNKS)
    story.computed(prompt)
    for shared in range(1, CHUNKS + 1):
        story.b.reset_prefix_cache()
        other = [*prompt[: shared * CHUNK_TOKENS], *story.prompt(CHUNKS - shared, question=40)]
        answer, external = story.asked(other)  # before A: it would store what B shall not find
        truth = story.a.complete(Ask(other, ANSWER_TOKENS))
        assert external == shared * CHUNK_TOKENS, f"{shared} chunks were shared"
        assert answer.tokens == truth.tokens, f"{shared} chunks were shared"


def test_a_local_hit_is_continued_from_outside(story: Story) -> None:
    """B knows the first chunk and a half by itself; only what is beyond comes from outside."""
    prompt = story.prompt(3)
    truth = story.computed(prompt)
    story.b.complete(Ask(prompt[: CHUNK_TOKENS + CHUNK_TOKENS // 2 + 1], 1))
    answer, external = story.asked(prompt)
    assert answer.tokens == truth.tokens
    assert 0 < external < 3 * CHUNK_TOKENS


def test_a_prompt_of_whole_chunks_comes_from_outside(story: Story) -> None:
    prompt = story.prompt(2, question=0)
    truth = story.computed(prompt)
    answer, external = story.asked(prompt)
    assert answer.tokens == truth.tokens
    assert external >= 2 * CHUNK_TOKENS - 1


def test_a_short_request_costs_no_look_up(story: Story) -> None:
    lookups = story.stack.sidecars["b"].metrics().total("shadowserve_lookups_total")
    story.b.complete(Ask(story.prompt(0, question=CHUNK_TOKENS - 1), 2))
    assert story.stack.sidecars["b"].metrics().total("shadowserve_lookups_total") == lookups


def test_long_outputs_are_stored_as_chunks_fill(story: Story) -> None:
    prompt = story.prompt(0, question=CHUNK_TOKENS - 20)
    before = len(story.keys())
    answer = story.a.complete(Ask(prompt, 60))
    wait_until(lambda: len(story.keys()) == before + 1, SECONDS, "the chunk that prompt and output filled together")
    grown = [*prompt, *answer.tokens]
    truth = story.a.complete(Ask(grown, ANSWER_TOKENS))
    continued, external = story.asked(grown)
    assert external == CHUNK_TOKENS
    assert continued.tokens == truth.tokens


def test_another_cache_salt_shares_nothing_and_answers_the_same(story: Story) -> None:
    prompt, salted = story.prompt(2), {"cache_salt": "tenant-1"}
    truth, before = story.computed(prompt), len(story.keys())
    answer, external = story.asked(prompt, salted)
    assert (answer.tokens, external) == (truth.tokens, 0)
    wait_until(lambda: len(story.keys()) == before + 2, SECONDS, "B's own chunks under the salt")
    story.b.reset_prefix_cache()
    again, external = story.asked(prompt, salted)
    assert (again.tokens, external) == (truth.tokens, 2 * CHUNK_TOKENS), "who brings the same salt shares"


def contract(story: Story, engine: str) -> object:
    """Return what engines that share chunks have in common, once the engine has said it."""
    sidecar = story.stack.sidecars[engine]
    wait_until(lambda: sidecar.engine()["contract"], SECONDS, f"engine {engine} to say whose chunks it shares")
    assert sidecar.engine()["state"] == "Attached"
    return sidecar.engine()["contract"]


def test_pools_of_one_cache_never_read_one_anothers_chunks(story: Story) -> None:
    prompt = story.prompt(2)
    truth = story.computed(prompt)
    of_a = story.keys()
    with sidecar_b(story, {"scope": "pool-b"}):
        story.b.reset_prefix_cache()
        answer, external = story.asked(prompt)
        assert (answer.tokens, external) == (truth.tokens, 0)
        wait_until(lambda: len(story.keys() - of_a) == 2, SECONDS, "the chunks of the other pool")
        story.b.reset_prefix_cache()
        again, external = story.asked(prompt)
        assert (again.tokens, external) == (truth.tokens, 2 * CHUNK_TOKENS), "its own are found"
        assert contract(story, "a") != contract(story, "b")
    assert contract(story, "a") == contract(story, "b")


def test_requests_at_the_same_time_get_their_own_caches(story: Story) -> None:
    prompts = [Story(story.stack, 500 + n).prompt(2) for n in range(4)]
    truths = [story.computed(prompt) for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda prompt: story.b.complete(Ask(prompt, ANSWER_TOKENS)), prompts))
    assert [answer.tokens for answer in answers] == [truth.tokens for truth in truths]
