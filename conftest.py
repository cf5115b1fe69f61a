"""What holds for every test of the repository.

Properties are tried with the same examples at each run, so that the same code gets the same verdict; `make fuzz` tries
others, and many.
"""

import gc
import inspect
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

_PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # neither reads the clock
settings.register_profile("same", _PATIENT, max_examples=200, derandomize=True, database=None)
settings.register_profile("fuzz", _PATIENT, max_examples=4000, print_blob=True)
settings.load_profile("same")


@pytest.fixture(autouse=True)
def nothing_left_open(request: pytest.FixtureRequest) -> Iterator[None]:
    """Collect garbage after tests that open connections, so that one left open fails the test that left it.

    Without it Python warns when it comes by, in the middle of another test. It costs 40 ms: the others go without.
    """
    yield
    if inspect.iscoroutinefunction(request.function) or "store_binary" in request.fixturenames:
        gc.collect()
