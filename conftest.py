"""What holds for every test of the repository.

Properties are tried with the same examples at each run, so that the same code gets the same verdict; `make fuzz` tries
others, and many.
"""

import gc
import inspect
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from shadowserve_lab.processes import PORTS_SHARE

_PATIENT = settings(  # no clock is read; and Hypothesis' own choice depends on whether it finds itself in CI
    settings.get_profile("default"), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("same", _PATIENT, max_examples=200, derandomize=True, database=None)
settings.register_profile("fuzz", _PATIENT, max_examples=4000, print_blob=True)
settings.load_profile("same")

for _name in ("CLICOLOR_FORCE", "COLUMNS", "FORCE_COLOR", "GITHUB_ACTIONS", "LINES", "PY_COLORS", "TTY_COMPATIBLE"):
    os.environ.pop(_name, None)  # command lines and their help look the same in every terminal and in CI
for _name in ("no_proxy", "NO_PROXY"):  # a proxy is for the way out: what tests start is here
    os.environ[_name] = ",".join(filter(None, (os.environ.get(_name), "127.0.0.1", "localhost", "::1")))
if _worker := os.environ.get("PYTEST_XDIST_WORKER"):  # no two that run side by side take the same port
    os.environ[PORTS_SHARE] = f"{_worker.removeprefix('gw')}/{os.environ['PYTEST_XDIST_WORKER_COUNT']}"


def pytest_collection_finish() -> None:
    """Have the garbage collector leave alone what all tests have in common: modules, and the tests themselves."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_left_open(request: pytest.FixtureRequest) -> Iterator[None]:
    """Collect garbage after tests that open connections, so that one left open fails the test that left it.

    Without it Python warns when it comes by, in the middle of another test. It costs time: the others go without.
    """
    yield
    if inspect.iscoroutinefunction(request.function) or "store_binary" in request.fixturenames:
        gc.collect()
