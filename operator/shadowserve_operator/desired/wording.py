"""Words that several conditions and reports put together in the same way."""

from collections.abc import Iterable


def first_few(words: Iterable[str], most: int) -> str:
    """Return the first `most` of the words, and how many more there are: a condition stays short however many pods."""
    listed = list(words)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
