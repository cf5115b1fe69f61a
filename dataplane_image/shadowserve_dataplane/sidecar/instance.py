"""One sidecar per run folder: a lock, and the removal of what a killed predecessor left behind."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shadowserve_dataplane.errors import SettingsError

LANDING_PATTERN = "landing-*.buffer"
STAGING_PATTERN = "staging-*.buffer"


@contextmanager
def only_instance(run: Path) -> Iterator[None]:
    """Hold the run folder's lock; raises `SettingsError` when another sidecar holds it or the folder cannot be used."""
    path = run / "sidecar.lock"
    try:
        run.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(path)
    except BlockingIOError as error:
        raise SettingsError(
            f"another sidecar runs in {run} (it holds {path}); stop it, or give this one its own folder by --run-dir"
        ) from error
    except OSError as error:
        raise SettingsError(f"run folder {run}: {error.strerror}; --run-dir must be a writable folder") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(path: Path) -> int:
    """Return a descriptor that holds the lock of the file that is at `path` now, not of one unlinked meanwhile."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def remove_stale_files(landing: Path) -> int:
    """Remove buffer files of an earlier instance and return how many there were; the lock must be held.

    Makes the folder if there is none; raises `OSError`.

    They are unlinked, never truncated or used again: an engine may still have them mapped and read from them. It gets
    new files by name with its next `Welcome`.
    """
    landing.mkdir(parents=True, exist_ok=True)
    stale = [path for pattern in (LANDING_PATTERN, STAGING_PATTERN) for path in landing.glob(pattern)]
    for path in stale:
        path.unlink(missing_ok=True)
    return len(stale)
