"""How the framework is set up that the operator runs in."""

from itertools import islice

import kopf

from shadowserve_operator.main import configure


async def test_a_namespace_without_roles_is_asked_for_again_and_again_and_ends_nothing() -> None:
    settings = kopf.OperatorSettings()
    await configure(settings)
    backoffs = settings.networking.error_backoffs
    assert not isinstance(backoffs, float)
    delays = list(islice(backoffs, 1000))
    assert len(delays) == 1000
    assert delays == sorted(delays)
    assert delays[-1] <= 30, "roles that come back count soon"
