"""Runs kubectl with one kubeconfig."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SECONDS = 120.0


class KubectlError(Exception):
    """kubectl refused; the message is what it printed."""


class Kubectl:
    """kubectl as an administrator of one cluster."""

    def __init__(self, program: Path, kubeconfig: Path) -> None:
        self.program, self.kubeconfig = program, kubeconfig

    def run(self, *arguments: str, manifest: Mapping[str, Any] | None = None, seconds: float = _SECONDS) -> str:
        """Run it, with `manifest` as its input, and return what it printed. Raises `KubectlError`."""
        try:
            done = subprocess.run(
                [str(self.program), "--kubeconfig", str(self.kubeconfig), *arguments],
                input=None if manifest is None else json.dumps(manifest),
                capture_output=True,
                text=True,
                check=False,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired as error:
            raise KubectlError(f"kubectl {' '.join(arguments)}: no answer within {seconds:g} s") from error
        if done.returncode:
            raise KubectlError(done.stderr.strip() or done.stdout.strip())
        return done.stdout

    def get(self, *what: str) -> dict[str, Any] | None:
        """Return an object, or a list of them; None when it does not exist. Raises `KubectlError`."""
        try:
            found: dict[str, Any] = json.loads(self.run("get", *what, "-o", "json"))
        except KubectlError as error:
            if "NotFound" in str(error):
                return None
            raise
        return found

    def items(self, *what: str) -> list[dict[str, Any]]:
        """Return the objects of a list; none when its kind is not known."""
        found: list[dict[str, Any]] = (self.get(*what) or {}).get("items", [])
        return found

    def answers(self) -> bool:
        """Whether the API server is ready."""
        try:
            return self.run("get", "--raw", "/readyz") == "ok"
        except KubectlError:
            return False
