"""What holds for every test of the repository."""

import gc
import inspect
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def nothing_left_open(request: pytest.FixtureRequest) -> Iterator[None]:
    """Collect garbage after tests that open connections, so that one left open fails the test that left it.

    Without it Python warns when it comes by, in the middle of another test. It costs 40 ms: the others go without.
    """
    yield
    if inspect.iscoroutinefunction(request.function) or "store_binary" in request.fixturenames:
        gc.collect()
