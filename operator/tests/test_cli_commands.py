"""The command line itself: its help, and its words when there is no cluster."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from shadowserve_cli.main import assembled

RUNNER = CliRunner()
NOBODY = "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: k, user: u}}]\n" + (
    "clusters: [{name: k, cluster: {server: 'https://127.0.0.1:1'}}]\nusers: [{name: u, user: {}}]\n"
)


@pytest.fixture(scope="module")
def application() -> Iterator[object]:
    return assembled()


@pytest.mark.parametrize("command", ["status", "explain", "doctor", "plan"])
def test_help_has_examples(application: object, command: str) -> None:
    done = RUNNER.invoke(application, [command, "--help"])  # type: ignore[arg-type]
    assert done.exit_code == 0
    assert f"shadowserve {command}" in done.output.split("Examples:")[1]


@pytest.mark.parametrize("command", [["status"], ["explain", "pod"], ["doctor"]])
def test_without_a_cluster_the_message_is_clear_and_the_code_is_2(
    application: object, command: list[str], tmp_path: Path
) -> None:
    absent, nobody = tmp_path / "absent", tmp_path / "nobody"
    nobody.write_text(NOBODY)
    done = RUNNER.invoke(application, [*command, "--kubeconfig", str(absent)])  # type: ignore[arg-type]
    assert done.exit_code == 2
    assert f"{absent} does not exist" in done.output
    done = RUNNER.invoke(application, [*command, "--kubeconfig", str(nobody)])  # type: ignore[arg-type]
    assert done.exit_code == 2
    assert "127.0.0.1:1" in done.output
    done = RUNNER.invoke(application, [*command, "--kubeconfig", str(nobody), "--context", "x"])  # type: ignore[arg-type]
    assert done.exit_code == 2
    assert "Traceback" not in done.output


def test_a_plan_needs_no_cluster(application: object, tmp_path: Path) -> None:
    manifest = tmp_path / "cache.json"
    body = {"apiVersion": "shadowserve.io/v1alpha1", "kind": "PrefixCache", "metadata": {"name": "kv"}, "spec": {}}
    manifest.write_text(json.dumps(body))
    done = RUNNER.invoke(application, ["plan", "-f", str(manifest)])  # type: ignore[arg-type]
    assert done.exit_code == 0
    assert "create StatefulSet kv-store" in done.output


def test_the_example_is_what_the_readme_shows_and_can_be_planned(application: object) -> None:
    sources = Path(__file__).parents[2]
    example = sources / "examples" / "pool-with-cache.yaml"
    shown = re.findall(r"```yaml\n(.*?)```", (sources / "README.md").read_text(), re.DOTALL)
    assert [list(yaml.safe_load_all(part)) for part in shown] == [list(yaml.safe_load_all(example.read_text()))]
    done = RUNNER.invoke(application, ["plan", "-f", str(example)])  # type: ignore[arg-type]
    assert done.exit_code == 0
    assert "create StatefulSet prefixes-store" in done.output
    assert "create Deployment chat" in done.output


def test_without_the_test_bed_everything_else_is_there() -> None:
    """As in our images. A process of its own: nothing that was imported here is there."""
    sources = Path(__file__).parents[2]
    product = os.pathsep.join(str(sources / part) for part in ("crds", "dataplane_image", "operator"))
    command = [sys.executable, "-m", "shadowserve_cli.main", "--help"]
    environment = {**os.environ, "PYTHONPATH": product}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, cwd=sources, check=True)
    assert {"status", "capacity", "chunk"} <= set(done.stdout.split())
    assert "testbed" not in done.stdout
