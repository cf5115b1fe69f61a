"""Which data plane is paired with this pod: a small file that the operator changes while the pod runs.

Either the file's only line is `host:port`, or it is a downward-API file of the pod's annotations, whose line
`shadowserve.io/data-plane="host:port"` counts. No file, no such line, or an empty value: no data plane.
"""

import json
import logging
from pathlib import Path

ANNOTATION = "shadowserve.io/data-plane"
_MAX_BYTES = 1 << 20

_log = logging.getLogger(__name__)


def parse_endpoint(text: str) -> str | None:
    """Return `host:port`, or None when the text names no data plane; raises `ValueError` for anything else."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line.partition("=")[2] for line in lines if line.partition("=")[0] == ANNOTATION]
    if named:
        return _checked(json.loads(named[-1]) if named[-1].startswith('"') else named[-1])
    if not lines or "=" in lines[0]:
        return None
    if len(lines) > 1:
        raise ValueError(f"{len(lines)} lines; one line host:port is expected")
    return _checked(lines[0])


def _checked(endpoint: str) -> str | None:
    if not endpoint:
        return None
    host, colon, port = endpoint.rpartition(":")
    if not (colon and host and port.isdecimal() and 0 < int(port) < 65_536) or any(c.isspace() for c in endpoint):
        raise ValueError(f"{endpoint!r} is not host:port")
    return endpoint


class EndpointFile:
    """Reads the endpoint file when it has changed. A file that makes no sense is said once and counts as none."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._text: str | None = None
        self._endpoint: str | None = None

    def read(self) -> str | None:
        """Return the endpoint that the file names now; never raises.

        The content is compared, not its time stamp: a Kubernetes volume swaps links, and clocks are coarse.
        """
        text = self._content()
        if text != self._text:
            self._text = text
            self._endpoint = self._parse(text)
        return self._endpoint

    def _content(self) -> str:
        if self._path is None:
            return ""
        try:
            with self._path.open("rb") as file:
                return file.read(_MAX_BYTES).decode("utf-8", "replace")
        except FileNotFoundError:
            return ""
        except OSError as error:
            return f"unreadable: {error.strerror}"

    def _parse(self, text: str) -> str | None:
        try:
            return parse_endpoint(text)
        except ValueError as error:
            _log.warning("endpoint file %s: %s; going on without a data plane", self._path, error)
            return None
