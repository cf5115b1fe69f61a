"""Words that several conditions and reports put together in the same way."""

from collections.abc import Iterable, Mapping


def first_few(words: Iterable[str], most: int) -> str:
    """Return the first `most` of the words, and how many more there are: a condition stays short however many pods."""
    listed = list(words)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def see_pods(namespace: str, labels: Mapping[str, str]) -> str:
    """Return the command that shows the pods which something waits for, as the end of a message."""
    selector = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
    return f"see kubectl -n {namespace} get pods -o wide -l {selector}"


def see(kind: str, name: str, namespace: str = "") -> str:
    """Return the command that tells all about one object, its events too, as the end of a message."""
    return f"see kubectl {f'-n {namespace} ' if namespace else ''}describe {kind} {name}"
