import os
import shutil
from pathlib import Path

import pytest

from shadowserve_lab.processes import ProcessFailed, Program
from shadowserve_lab.setup import STORE_SERVERS
from shadowserve_lab.stack import Environments, Stack, StackOptions


@pytest.fixture
def environments(tmp_path: Path) -> Environments:
    """A real store, and instead of an engine a program that fails."""
    server = next(filter(None, map(shutil.which, STORE_SERVERS)))
    return Environments(Path("/bin/false"), tmp_path, Path(server))


def started_from(folder: Path) -> list[int]:
    """Return the processes whose command line names something in the folder."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            named = os.fsencode(folder) in each.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        found += [int(each.parent.name)] if named else []
    return found


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (StackOptions(engines=("a",)), "engine a ended with exit code 1"),
        (StackOptions(engines=("a",), tier="Best"), "sidecar sidecar-a ended with exit code 2"),
        (StackOptions(engines=("a",), workers=0), "data plane ended with exit code 2"),
    ],
    ids=["engine", "sidecar", "data plane"],
)
def test_whatever_fails_at_the_start_nothing_is_left(
    options: StackOptions, words: str, environments: Environments
) -> None:
    stack = Stack(options, environments, lambda line: None)
    with pytest.raises(ProcessFailed, match=words), stack:
        raise AssertionError("it should not start")
    assert not stack.folder.exists()
    assert not stack.shared.exists()
    assert started_from(stack.folder) == []


def test_a_program_that_does_not_become_ready_is_stopped(tmp_path: Path) -> None:
    sleeper = Program("sleeper", ["sleep", "600"], tmp_path / "log")
    with pytest.raises(ProcessFailed, match="sleeper to be ready"):
        sleeper.wait_ready(lambda: False, 0.2)
    assert not sleeper.running


def test_a_program_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ProcessFailed, match="missing could not be started"):
        Program("missing", [str(tmp_path / "missing")], tmp_path / "log")
