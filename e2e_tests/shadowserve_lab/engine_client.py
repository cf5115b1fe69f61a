"""Talks to an engine's HTTP endpoints, and reads Prometheus metrics. Standard library only."""

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_TIMEOUT = 300.0
EXTERNAL_HITS = "vllm:external_prefix_cache_hits_total"
"""vLLM's own counter of the prompt tokens that came from outside."""
_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Answer:
    """What an engine streamed for one prompt. Times in seconds from the request, which was made at `began` (seconds of
    `time.perf_counter`); `arrivals` are those of each token.
    """

    ttft: float
    tokens: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...] = ()
    arrivals: tuple[float, ...] = ()
    began: float = 0.0


@dataclass(frozen=True)
class Ask:
    """One completion: greedy, `max_tokens` long, the tokens given as ids."""

    prompt: Sequence[int]
    max_tokens: int = 24
    extra: Mapping[str, object] = field(default_factory=dict)


class EngineClient:
    """An OpenAI-compatible server at `base` (`http://host:port`) that serves `model`."""

    def __init__(self, base: str, model: str) -> None:
        self.base = base
        self.model = model

    def healthy(self) -> bool:
        """Whether it answers /health."""
        try:
            with urllib.request.urlopen(f"{self.base}/health", timeout=2) as reply:
                return bool(reply.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of `text`, without special tokens."""
        body = {"model": self.model, "prompt": text, "add_special_tokens": False}
        tokens: list[int] = json.loads(self._post("/tokenize", body).read())["tokens"]
        return tokens

    def complete(self, ask: Ask) -> Answer:
        """Return the streamed answer.

        Raises `urllib.error.HTTPError` when the engine refuses, `ConnectionError` when it fails on the way.
        """
        body = {
            "model": self.model,
            "prompt": list(ask.prompt),
            "max_tokens": ask.max_tokens,
            "temperature": 0,
            "stream": True,
            "logprobs": 1,
            "return_token_ids": True,
            "ignore_eos": True,
            **ask.extra,
        }
        start = time.perf_counter()
        tokens: list[int] = []
        logprobs: list[float] = []
        arrivals: list[float] = []
        text = ""
        with self._post("/v1/completions", body) as stream:
            for line in stream:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                if "choices" not in event:
                    raise ConnectionError(f"the engine broke off: {event.get('error', event)}")
                choice = event["choices"][0]
                new = choice.get("token_ids") or []
                tokens += new
                text += choice["text"]
                logprobs += (choice.get("logprobs") or {}).get("token_logprobs") or []
                arrivals += [time.perf_counter() - start] * len(new)
        if not arrivals:
            raise ConnectionError("the engine ended its answer before the first token")
        return Answer(arrivals[0], tuple(tokens), text, tuple(logprobs), tuple(arrivals), start)

    def counted(self, ask: Ask) -> tuple[Answer, int]:
        """Return the answer, and how many tokens the engine took from outside meanwhile: ask it nothing else."""
        before = self.external_tokens()
        answer = self.complete(ask)
        return answer, self.external_tokens() - before

    def external_tokens(self) -> int:
        """Return how many tokens of prompts came from outside so far, by vLLM's own counter."""
        return round(self.metrics().total(EXTERNAL_HITS))

    def reset_prefix_cache(self) -> None:
        """Make the engine forget its own cached prefixes (needs VLLM_SERVER_DEV_MODE)."""
        self._post("/reset_prefix_cache", {}).close()

    def metrics(self) -> "Metrics":
        """Return the engine's metrics as they are now."""
        return Metrics.scrape(f"{self.base}/metrics")

    def _post(self, path: str, body: Mapping[str, object]):  # type: ignore[no-untyped-def]  # urllib has no public type
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"})
        return urllib.request.urlopen(request, timeout=_TIMEOUT)


class Metrics:
    """A scrape: samples by name, each with its labels."""

    def __init__(self, text: str) -> None:
        self._samples: dict[str, list[tuple[dict[str, str], float]]] = {}
        for line in text.splitlines():
            if found := _SAMPLE.match(line):
                labels = dict(_LABEL.findall(found[2] or ""))
                self._samples.setdefault(found[1], []).append((labels, float(found[3])))

    @classmethod
    def scrape(cls, url: str) -> "Metrics":
        """Return what is served at `url`."""
        with urllib.request.urlopen(url, timeout=60) as reply:
            return cls(reply.read().decode())

    @property
    def names(self) -> set[str]:
        """Names of all samples."""
        return set(self._samples)

    @property
    def series(self) -> int:
        """Number of samples."""
        return sum(len(samples) for samples in self._samples.values())

    def buckets(self, name: str) -> dict[float, float]:
        """Return the cumulative counts of a histogram by upper bound, summed over its other labels."""
        found: dict[float, float] = {}
        for labels, value in self._samples.get(f"{name}_bucket", []):
            bound = float(labels["le"])
            found[bound] = found.get(bound, 0.0) + value
        return dict(sorted(found.items()))

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of all samples of `name` that have these labels; 0 when there are none."""
        return sum(value for found, value in self._samples.get(name, []) if labels.items() <= found.items())
