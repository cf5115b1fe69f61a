"""The folder that set-up fills: `SHADOWSERVE_HOME`, or `shadowserve` in the user's cache directory."""

import fcntl
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PINS = Path(__file__).parent / "pins"
REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Artifact:
    """Something that set-up makes: a folder `name-<key>` in the home. The key is a digest of all that goes into it."""

    name: str
    ingredients: tuple[str, ...]

    @property
    def key(self) -> str:
        """Twelve hex digits that change when an ingredient does."""
        return hashlib.sha256("\n".join(self.ingredients).encode()).hexdigest()[:12]


class Home:
    """Finds and makes artifacts. An artifact is there whole or not at all: it is made aside and renamed."""

    def __init__(self, root: Path, say: Callable[[str], None]) -> None:
        self.root = root
        self.say = say

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], say: Callable[[str], None]) -> "Home":
        """Return the home that the environment names."""
        if named := environment.get("SHADOWSERVE_HOME"):
            return cls(Path(named).expanduser().absolute(), say)
        cache = environment.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
        return cls(Path(cache).absolute() / "shadowserve", say)

    def path(self, artifact: Artifact) -> Path:
        """Return where the artifact is, or would be."""
        return self.root / f"{artifact.name}-{artifact.key}"

    def has(self, artifact: Artifact) -> bool:
        """Whether the artifact is there."""
        return self.path(artifact).is_dir()

    def make(self, artifact: Artifact, build: Callable[[Path], None]) -> Path:
        """Return the artifact, building it first if need be; an interrupted build is started again."""
        place = self.path(artifact)
        if place.is_dir():
            return place
        partial = place.with_name(f".{place.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        start = time.monotonic()
        self.say(f"{artifact.name}: making {place}")
        build(partial)
        partial.rename(place)
        self.say(f"{artifact.name}: ready after {time.monotonic() - start:.0f} s")
        return place

    def keep_newest(self, artifact: Artifact, count: int) -> None:
        """Remove what was made under the artifact's name of other ingredients, but for the `count` newest."""
        keys = "[0-9a-f]" * len(artifact.key)
        made = sorted(self.root.glob(f"{artifact.name}-{keys}"), key=lambda place: place.stat().st_mtime)
        for old in made[:-count]:
            if old != self.path(artifact):
                shutil.rmtree(old)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other set-ups out of this home meanwhile; waits for them, and says so."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.say(f"another set-up is at work in {self.root}: waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def say(line: str) -> None:
    """Print a line of progress; never to stdout, which belongs to results."""
    print(f"[shadowserve] {line}", file=sys.stderr, flush=True)


def default_home() -> Home:
    """Return the home of this user."""
    return Home.from_environment(os.environ, say)
