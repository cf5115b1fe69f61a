import sys
import zipfile
from pathlib import Path

import pytest

from shadowserve_lab.home import default_home
from shadowserve_lab.processes import PORTS_SHARE, free_port
from shadowserve_lab.setup import Setup, SetupError, offered

_METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
_WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture
def uv() -> str:
    return Setup(default_home()).uv()


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip and uv look for wheels in; there is no index."""
    for name in ("UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UV_NO_CONFIG", "1")
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "links"
    folder.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def add_wheel(folder: Path, name: str, version: str) -> None:
    facts = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{facts}/METADATA", _METADATA.format(name=name, version=version))
        wheel.writestr(f"{facts}/WHEEL", _WHEEL)
        wheel.writestr(f"{facts}/RECORD", "")


def test_only_a_wheel_of_the_very_build_that_is_wanted_counts_as_offered(uv: str, links: Path) -> None:
    environment = Path(sys.prefix)
    add_wheel(links, "torch", "2.13.0")
    assert not offered(uv, environment, "torch==2.13.0+cpu")
    add_wheel(links, "torch", "2.13.0+cpu")
    assert offered(uv, environment, "torch==2.13.0+cpu")


def test_an_index_that_cannot_be_asked_is_an_error_and_not_a_missing_wheel(
    uv: str, links: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UV_OFFLINE")
    monkeypatch.setenv("UV_DEFAULT_INDEX", f"http://127.0.0.1:{free_port()}/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(SetupError, match="cannot be asked for torch"):
        offered(uv, Path(sys.prefix), "torch==2.13.0+cpu")


def test_no_port_is_given_twice_nor_is_one_the_bus_of_another() -> None:
    taken = [free_port() for _ in range(2000)]
    assert len(set(taken)) == len(taken)
    assert not set(taken) & {port + 10_000 for port in taken}


def test_runs_side_by_side_take_ports_of_their_own(monkeypatch):
    taken = []
    for share in ("0/2", "1/2"):
        monkeypatch.setenv(PORTS_SHARE, share)
        taken.append({free_port() for _ in range(200)})
    assert not taken[0] & taken[1]
