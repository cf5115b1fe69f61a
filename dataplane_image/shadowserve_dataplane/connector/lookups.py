"""Look-ups under way: asked on the engine's thread, answered on the client's, given up at their deadline."""

import threading


class Lookups:
    """Questions by number; every one gets exactly one result: an answer, or nothing found when its time has passed."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._deadlines: dict[int, float] = {}
        self._answers: dict[int, int] = {}

    def ask(self, lookup: int, deadline: float) -> None:
        """Begin to wait for the answer to `lookup`."""
        with self._changed:
            self._deadlines[lookup] = deadline

    def answer(self, lookup: int, chunks: int) -> None:
        """Note an answer; one that nobody waits for is dropped."""
        with self._changed:
            if lookup in self._deadlines:
                self._answers[lookup] = chunks
                self._changed.notify_all()

    def give_up(self) -> None:
        """No answer will come to anything asked so far."""
        with self._changed:
            for lookup in self._deadlines:
                self._deadlines[lookup] = float("-inf")
            self._changed.notify_all()

    def forget(self, lookup: int) -> None:
        """Stop waiting for `lookup`."""
        with self._changed:
            self._deadlines.pop(lookup, None)
            self._answers.pop(lookup, None)

    def late(self, lookup: int, now: float) -> bool:
        """Whether `lookup` has waited long enough without an answer."""
        with self._changed:
            return lookup not in self._answers and now >= self._deadlines.get(lookup, now)

    def take(self, lookup: int) -> int | None:
        """Return the answer, once; None while there is none."""
        with self._changed:
            chunks = self._answers.pop(lookup, None)
            if chunks is not None:
                del self._deadlines[lookup]
            return chunks

    def wait(self, seconds: float) -> None:
        """Wait until any look-up is answered; returns at once when none is under way."""
        with self._changed:
            if self._deadlines:
                self._changed.wait_for(lambda: bool(self._answers) or not self._deadlines, seconds)
