"""config.json: defaults, and errors that name the key and the fix."""

import json
from pathlib import Path

import pytest

from shadowserve_dataplane.errors import SettingsError
from shadowserve_dataplane.sidecar.settings import (
    file_mode,
    namespace_salt,
    parse_config,
    read_config,
    scoped,
    store_settings,
)
from shadowserve_dataplane.store.topology import Address, Topology

MINIMAL = {"store": {"endpoints": ["store:6379"]}}


def config_text(**changes: object) -> str:
    return json.dumps(MINIMAL | changes)


def test_a_store_endpoint_is_all_that_must_be_said():
    config = parse_config(config_text())
    assert config.tier == "Balanced"
    assert config.landing == "Codes"
    assert config.landing_buffer_bytes == 512 << 20
    assert config.limits.lookup_deadline_ms == 20
    assert config.limits.fetch_deadline_ms == 5000
    assert config.limits.max_in_flight_chunks == 64
    assert config.placement.order == ["DPU", "Host"]
    assert config.metrics_port == 9465
    assert file_mode(config) == 0o660


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tier": "Best"}, ["tier", "'Best'"]),
        ({"landingBufferBytes": "512Mi"}, ["landingBufferBytes", "`int`", "`str`"]),
        ({"landingBufferBytes": 5}, ["landingBufferBytes", "4096"]),
        ({"limits": {"lookupDeadlineMs": 0}}, ["limits.lookupDeadlineMs", ">= 1"]),
        ({"limits": {"lookupDeadline": "20ms"}}, ["limits", "'lookupDeadline'", "known keys", "lookupDeadlineMs"]),
        ({"colour": "red"}, ["'colour'", "known keys", "stagingSlots"]),
        ({"store": {"topology": "Cluster"}}, ["store", "'endpoints'", "missing"]),
        ({"store": {"endpoints": []}}, ["store.endpoints", ">= 1"]),
        ({"store": {"endpoints": ["store"]}}, ["store.endpoints", "'store'", "host:port"]),
        ({"store": {"endpoints": ["a:1", "b:2"]}}, ["store.endpoints", "Cluster"]),
        ({"placement": {"order": ["Host", "Host"]}}, ["placement.order", "twice"]),
        ({"placement": {"order": ["Moon"]}}, ["placement.order", "'Moon'"]),
        ({"isolation": "PerTenant"}, ["saltFile", "PerPool"]),
        ({"fileMode": "rw"}, ["fileMode"]),
    ],
)
def test_what_cannot_work_is_refused_with_key_and_fix(changes: dict[str, object], words: list[str]):
    with pytest.raises(SettingsError) as refused:
        parse_config(config_text(**changes))
    for word in words:
        assert word in str(refused.value)


def test_text_that_is_not_json_is_refused():
    with pytest.raises(SettingsError, match="not JSON"):
        parse_config("{store:")


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(SettingsError, match=r"nowhere\.json: No such file"):
        read_config(tmp_path / "nowhere.json")


def test_the_store_gets_addresses_password_and_times(tmp_path: Path):
    secret = tmp_path / "password"
    secret.write_text("s3cret\n")
    section = {
        "endpoints": ["a:1", "[::1]:2"],
        "topology": "Cluster",
        "username": "shadowserve",
        "passwordFile": str(secret),
        "readTimeoutMs": 250,
    }
    settings = store_settings(parse_config(config_text(store=section, limits={"timeToLiveSeconds": 60})))
    assert settings.endpoints == (Address("a", 1), Address("::1", 2))
    assert settings.topology is Topology.CLUSTER
    assert settings.password == "s3cret"
    assert "s3cret" not in repr(settings)
    assert settings.read_timeout == 0.25
    assert settings.time_to_live == 60


def test_a_password_file_that_is_missing_is_named(tmp_path: Path):
    section = {"endpoints": ["a:1"], "username": "u", "passwordFile": str(tmp_path / "none")}
    with pytest.raises(SettingsError, match=r"store\.passwordFile.*No such file"):
        store_settings(parse_config(config_text(store=section)))


def test_the_salt_is_the_content_of_its_file(tmp_path: Path):
    salt = tmp_path / "salt"
    salt.write_bytes(b"\x00\x01pool")
    assert namespace_salt(parse_config(config_text(saltFile=str(salt)))) == b"\x00\x01pool"
    assert namespace_salt(parse_config(config_text())) == b""


def test_every_pool_of_a_cache_has_a_salt_of_its_own_unless_they_share(tmp_path: Path):
    salt = tmp_path / "salt"
    salt.write_bytes(b"secret")

    def salt_of(isolation: str, scope: str | None) -> bytes:
        config = parse_config(config_text(isolation=isolation, saltFile=str(salt)))
        return namespace_salt(scoped(config, scope))

    for isolation in ("PerPool", "PerTenant"):
        assert len({salt_of(isolation, scope) for scope in (None, "a", "b")}) == 3
        assert salt_of(isolation, "a") == salt_of(isolation, "a")
    assert {salt_of("Shared", scope) for scope in (None, "a", "b")} == {b""}
    salt.write_bytes(b"secreta")
    before = salt_of("PerPool", "b")
    salt.write_bytes(b"secret")
    assert salt_of("PerPool", "ab") != before, "where salt ends and scope begins matters"


def test_a_scope_that_is_given_goes_before_that_of_the_file():
    config = parse_config(config_text(scope="written"))
    assert scoped(config, "given").scope == "given"
    assert scoped(config, None).scope == scoped(config, "").scope == "written"
