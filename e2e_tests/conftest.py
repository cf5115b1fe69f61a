"""One stack of real parts for all stories: float32 and lossless, so that answers can be compared token by token."""

import itertools
import os
import shutil
from collections.abc import Generator, Iterator

import pytest

from cluster_story import Bed
from engine_story import Story
from shadowserve_crds import names
from shadowserve_crds.generate import KINDS
from shadowserve_lab.home import REPOSITORY, default_home, say
from shadowserve_lab.stack import Environments, Stack, StackOptions
from shadowserve_testbed import scenario
from shadowserve_testbed.api_server import ESTABLISHED, ApiServer
from shadowserve_testbed.binaries import CONTROL_PLANE, Binaries, ModulesUnreachable
from shadowserve_testbed.choosing import refuse_beside, running_providers
from shadowserve_testbed.errors import TestbedError
from shadowserve_testbed.installation import install, overlay_of, remove
from shadowserve_testbed.native import preflight
from shadowserve_testbed.provider import Provider, Shape
from shadowserve_testbed.providers import PROVIDERS

_PROMPT_NUMBERS = itertools.count()
_LOG_BYTES = 3000


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of every part's log with a test that failed."""
    report = yield
    stack = getattr(item, "funcargs", {}).get("exact_stack")
    if report.failed and stack is not None:
        for log in sorted(stack.folder.rglob("*.log")):
            report.sections.append((str(log.relative_to(stack.folder)), log.read_text()[-_LOG_BYTES:]))
    return report


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    """Show what is said while the parts of a story are made: on a new machine they are built, which takes minutes."""
    with item.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        return (yield)


@pytest.fixture(scope="session")
def api_server() -> Iterator[ApiServer]:
    """A real API server that knows our resources."""
    if shutil.which("go") is None:
        pytest.skip("Go is not installed: the API server is built from Go modules")
    home = default_home()
    binaries = Binaries(home)
    try:
        with home.locked():
            for tool in CONTROL_PLANE:
                binaries.path(tool)
    except ModulesUnreachable as error:
        pytest.skip(f"the API server cannot be built here: {error}")
    with ApiServer(binaries, home.say) as server:
        server.kubectl("apply", "--server-side", "-k", str(REPOSITORY / "crds/generated"))
        server.kubectl(*ESTABLISHED, *(f"{kind.plural}.shadowserve.io" for kind in KINDS))
        yield server


@pytest.fixture(scope="module")
def api(api_server: ApiServer) -> Iterator[ApiServer]:
    """The API server, and in its default namespace nothing that an operator made in the stories of another file.

    No garbage collector runs: what a deleted cache owned would be taken for what the next of its name has.
    """
    yield api_server
    mine = f"{names.MANAGED_BY_LABEL}={names.MANAGED_BY}"
    made = "deployment,service,configmap,secret,statefulset,daemonset,pdb"
    api_server.kubectl("delete", made, "-l", mine)


@pytest.fixture(scope="session")
def provider() -> Provider:
    """What makes clusters with nodes, named by PROVIDER; everything it needs is built."""
    name, home = os.environ.get("PROVIDER", "native"), default_home()
    if name == "native":
        if shutil.which("go") is None:
            pytest.skip("no cluster with nodes here: Go is not installed")
        try:
            preflight.ensure(home.root, say)
        except TestbedError as error:
            pytest.skip(f"no cluster with nodes here: {error}")
    found = PROVIDERS[name](home)
    refuse_beside(name, running_providers(home))
    try:
        found.build()
    except ModulesUnreachable as error:
        pytest.skip(f"the cluster cannot be built here: {error}")
    return found


@pytest.fixture(scope="session")
def bed(provider: Provider) -> Iterator[Bed]:
    """A cluster with nodes, with everything installed. One that runs already stays."""
    name, home = os.environ.get("PROVIDER", "native"), default_home()
    ours = not provider.running()
    try:
        kubectl = provider.up(Shape())
        remove(kubectl, scenario.NAMESPACE, 120.0, say)
        install(provider, home, overlay_of(name), scenario.NAMESPACE)
        found = Bed(provider)
        with found.access:
            yield found
    finally:
        if ours:
            provider.down()


@pytest.fixture(scope="session")
def environments() -> Environments:
    return Environments.from_environment()


@pytest.fixture(scope="session")
def exact_stack(environments: Environments) -> Iterator[Stack]:
    limits = {"fetchDeadlineMs": 3000, "lookupDeadlineMs": 500}
    options = StackOptions(tier="Lossless", dtype="float32", sidecar={"limits": limits})
    with Stack(options, environments, say) as stack:
        stack.use_store_proxy()
        for engine in stack.engines.values():
            engine.client.tokenize("warm")
        yield stack


@pytest.fixture
def story(exact_stack: Stack) -> Story:
    """A prompt that no other test uses, and the stack, put back in order whatever an earlier test did to it."""
    story = Story(exact_stack, next(_PROMPT_NUMBERS))
    story.restore()
    return story
