"""What comes within moments is told of together: a Deployment's pods are made at once, and are one thing to people."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Gathered(Generic[T]):
    """Hands on what `add` was given: whoever comes first waits for the others, as long as `pause` takes."""

    def __init__(
        self, hand_on: Callable[[Sequence[T]], Awaitable[object]], pause: Callable[[], Awaitable[object]]
    ) -> None:
        self._hand_on, self._pause = hand_on, pause
        self._waiting: list[T] = []

    async def add(self, one: T) -> None:
        """Return when it was handed on, or somebody who came before will do that."""
        self._waiting.append(one)
        if len(self._waiting) > 1:
            return
        try:
            await self._pause()
        finally:
            gathered, self._waiting = self._waiting, []
        await self._hand_on(gathered)
