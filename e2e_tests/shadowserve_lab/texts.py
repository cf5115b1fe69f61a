"""Real texts to measure on: the licence, and Python's own reference manual."""

from pydoc_data.topics import topics

from shadowserve_lab.home import REPOSITORY

_MANUAL_CHARACTERS = 40_000


def real_texts() -> dict[str, str]:
    """Return the texts by name; each has more than 2200 tokens of the model."""
    manual = "\n\n".join(topics[name] for name in sorted(topics))
    return {"licence": (REPOSITORY / "LICENSE").read_text(), "python-manual": manual[:_MANUAL_CHARACTERS]}
