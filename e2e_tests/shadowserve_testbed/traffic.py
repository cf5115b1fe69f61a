"""Requests that go on while something breaks: each is made to fetch from the store, and none may fail."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from shadowserve_lab.demo import ANSWER_TOKENS
from shadowserve_lab.engine_client import Ask, EngineClient


@dataclass(slots=True)
class Outcome:
    """What became of the requests of one engine; `errors` are in words, `different` had other tokens."""

    requests: int = 0
    different: int = 0
    errors: list[str] = field(default_factory=list)


_PAUSE_SECONDS = 0.3
"""Between an engine's requests: what has to notice and to mend needs a core, too."""


class Traffic:
    """Asks every engine the same prompt over and over, from `__enter__` to `__exit__`, without its own prefix cache."""

    def __init__(self, engines: Sequence[EngineClient], prompt: Sequence[int], answer: Sequence[int]) -> None:
        self._prompt, self._answer = prompt, tuple(answer)
        self._stop = threading.Event()
        self.outcomes = [Outcome() for _ in engines]
        self._threads = [
            threading.Thread(target=self._ask, args=(engine, outcome), daemon=True)
            for engine, outcome in zip(engines, self.outcomes, strict=True)
        ]

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def requests(self) -> int:
        """How many were answered or failed."""
        return sum(outcome.requests for outcome in self.outcomes)

    @property
    def failed(self) -> int:
        """How many failed."""
        return sum(len(outcome.errors) for outcome in self.outcomes)

    @property
    def different(self) -> int:
        """How many answers had other tokens."""
        return sum(outcome.different for outcome in self.outcomes)

    def _ask(self, engine: EngineClient, outcome: Outcome) -> None:
        while not self._stop.is_set():
            try:
                engine.reset_prefix_cache()
                answer = engine.complete(Ask(self._prompt, ANSWER_TOKENS))
                outcome.different += answer.tokens != self._answer
            except (OSError, ValueError, IndexError) as error:
                outcome.errors.append(repr(error))
            outcome.requests += 1
            self._stop.wait(_PAUSE_SECONDS)
