"""What `make demo` does, step by step, with progress in words."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from shadowserve_lab.demo import ANSWER_TOKENS, QUESTION, Prompts, make_prompts, warm_up
from shadowserve_lab.engine_client import Answer, Ask, EngineClient
from shadowserve_lab.home import Home
from shadowserve_lab.processes import wait_until
from shadowserve_testbed import scenario
from shadowserve_testbed.access import Access
from shadowserve_testbed.demo_report import AfterLoss, Event, RemoteHit
from shadowserve_testbed.errors import TestbedError
from shadowserve_testbed.installation import apply, install, overlay_of, remove
from shadowserve_testbed.pods import Pod, data_planes, engines
from shadowserve_testbed.provider import Provider
from shadowserve_testbed.traffic import Traffic
from shadowserve_testbed.waiting import unmet, wait_for

REMOVE_SECONDS = 90.0
_READY_SECONDS = 600.0
_STORED_SECONDS = 60.0
_ATTACHED_SECONDS = 60.0
_SWITCH_SECONDS = 60.0
_REQUESTS_BEFORE = 2
_LANDED = {"result": "landed"}


@dataclass(frozen=True, slots=True)
class Ready:
    """How long it took, from `kubectl apply` to both resources being ready."""

    seconds: float
    engine_seconds: float
    timeline: tuple[Event, ...]


class DemoStory:
    """One run; `provider_name` names the manifests for its kind of test bed."""

    def __init__(self, provider: Provider, home: Home, provider_name: str) -> None:
        self._provider, self._home, self._name = provider, home, provider_name
        self._say: Callable[[str], None] = home.say
        self._kubectl = provider.kubectl()
        self._access = Access(self._kubectl)

    def install(self) -> None:
        """Put the cluster in order. Raises `TestbedError`, `ImageError`, `KubectlError`."""
        if install(self._provider, self._home, overlay_of(self._name), scenario.NAMESPACE):
            # what an earlier demo was told to keep runs older code
            remove(self._kubectl, scenario.NAMESPACE, REMOVE_SECONDS, self._say)

    def apply_and_wait(self, now: datetime) -> Ready:
        """Apply both resources and return once both are ready; `now` is the time of day. Raises `TestbedError`."""
        self._say("kubectl apply: PrefixCache and InferencePool")
        start, timeline = time.monotonic(), [Event(0.0, "both resources are applied")]
        variables = {"VLLM_SERVER_DEV_MODE": "1"}  # so that an engine can be made to forget its own prefixes
        apply(self._kubectl, scenario.cache_manifest(), scenario.pool_manifest(variables=variables))
        for what in (f"pfc/{scenario.CACHE}", f"sspool/{scenario.POOL}"):
            wait_for(lambda what=what: unmet(self._kubectl.get(what)), what, _READY_SECONDS, self._say)  # type: ignore[misc]
            timeline.append(Event(time.monotonic() - start, f"{what} is ready"))
        seconds = time.monotonic() - start
        pods = self._engines()
        for pod in pods:
            for moment, what in ((pod.started, "starts"), (pod.ready, "is ready")):
                if moment is not None:
                    timeline.append(Event((moment - now.astimezone(UTC)).total_seconds(), f"engine {pod.name} {what}"))
        loading = [(pod.ready - pod.started).total_seconds() for pod in pods if pod.ready and pod.started]
        timeline.sort(key=lambda event: event.seconds)
        return Ready(seconds, max(loading, default=0.0), tuple(timeline))

    @contextmanager
    def talking(self) -> Iterator[None]:
        """Reach the pods meanwhile."""
        with self._access:
            yield

    def remote_hit(self, text: str) -> tuple[Prompts, Answer, RemoteHit]:
        """Send a prompt to A, then to B; return it, A's answer, and what B's came from. Raises `PromptError`."""
        first, second = self._pair()
        a, b = self._client(first), self._client(second)
        prompts = make_prompts(a.tokenize(text), a.tokenize(QUESTION))
        wait_until(lambda: self._place(second) == "dpu", _ATTACHED_SECONDS, "B's sidecar to attach to the card")
        warm_up([a, b], len(prompts.whole))
        self._say(f"a prompt of {len(prompts.whole)} tokens to A, which has never seen it")
        cold = a.complete(Ask(prompts.whole, ANSWER_TOKENS))
        self._wait_stored(first)
        plane = self._plane()
        before = self._restored(plane)
        self._say("the same prompt to B")
        answer, external = b.counted(Ask(prompts.whole, ANSWER_TOKENS))
        chunks = self._restored(plane) - before
        hit = RemoteHit(answer.ttft, external, answer.tokens == cold.tokens, self._place(second), chunks, plane.node)
        self._say(f"vLLM of B says: {hit.external_tokens} tokens of the prompt came from outside")
        self._say(f"the data plane on node {hit.node} says: it restored {hit.chunks} chunks for that")
        print(self._kubectl.run("get", "pfc,sspool,dpub"), end="")
        return prompts, cold, hit

    def lose_card(self, prompts: Prompts, cold: Answer) -> AfterLoss:
        """Let the data plane's node die while requests go on; return what became of them."""
        pods = self._pair()
        clients = [self._client(pod) for pod in pods]
        node = self._plane().node
        with Traffic(clients, prompts.whole, cold.tokens) as traffic:
            wait_until(lambda: traffic.requests >= _REQUESTS_BEFORE, _ATTACHED_SECONDS, "requests before the loss")
            self._say(f"node {node} dies, while both engines are asked on and on")
            died = time.monotonic()
            self._provider.lose(node)
            wait_until(
                lambda: all(self._place(pod) == "host" for pod in pods),
                _SWITCH_SECONDS,
                "every sidecar to leave the card",
            )
            switched = time.monotonic() - died
            self._say(f"every sidecar restores on the host, {switched:.1f} s later")
            settled = traffic.requests + len(pods)
            wait_until(lambda: traffic.requests >= settled, _ATTACHED_SECONDS, "requests after the loss")
        clients[1].reset_prefix_cache()
        answer, external = clients[1].counted(Ask(prompts.whole, ANSWER_TOKENS))
        self._provider.restore(node)
        return AfterLoss(
            tokens_equal=answer.tokens == cold.tokens,
            placement=self._place(pods[1]),
            switch_seconds=switched,
            requests=traffic.requests,
            failed_requests=traffic.failed,
            external_tokens=external,
            ttft_seconds=answer.ttft,
        )

    def _engines(self) -> list[Pod]:
        return engines(self._kubectl, scenario.NAMESPACE, scenario.POOL)

    def _pair(self) -> Sequence[Pod]:
        found = self._engines()
        if len(found) < 2:
            raise TestbedError(f"two engines were asked for, there are {len(found)}")
        return found[:2]

    def _plane(self) -> Pod:
        found = data_planes(self._kubectl, scenario.NAMESPACE, scenario.CACHE)
        if not found:
            raise TestbedError("there is no data plane: kubectl describe pfc")
        return found[0]

    def _client(self, pod: Pod) -> EngineClient:
        return self._access.engine(scenario.NAMESPACE, pod.name, scenario.MODEL)

    def _place(self, pod: Pod) -> str:
        """Return where the pod's sidecar restores chunks, as it says itself."""
        metrics = self._access.sidecar(scenario.NAMESPACE, pod.name)
        places = ("dpu", "host", "none")
        return next((place for place in places if metrics.total("shadowserve_placement_info", place=place)), "")

    def _restored(self, plane: Pod) -> int:
        metrics = self._access.data_plane(scenario.NAMESPACE, plane.name)
        return round(metrics.total("shadowserve_chunks_total", **_LANDED))

    def _wait_stored(self, pod: Pod) -> None:
        """Wait until nothing more is on its way from a pod to the store."""
        seen = [-1.0]

        def quiet() -> bool:
            now = self._access.sidecar(scenario.NAMESPACE, pod.name).total("shadowserve_stored_bytes_total")
            time.sleep(0.5)
            still = now > 0 and now == seen[-1]
            seen.append(now)
            return still

        wait_until(quiet, _STORED_SECONDS, "A's chunks to be in the store")
