"""Whose cache it is."""

import os
from pathlib import Path

import pytest
from real_store import wait_until

from shadowserve_dataplane.chunks import KvShape
from shadowserve_dataplane.connector.identity import (
    CacheIdentity,
    ModelSource,
    file_digest,
    identity_files,
    model_digest,
    tenant_salt,
    with_adapter,
)
from shadowserve_dataplane.connector.messages import Welcome


def welcome(isolation: str = "PerPool", salt: bytes = b"pool") -> Welcome:
    return Welcome(1, 1, None, None, 20, 5000, isolation, salt)  # type: ignore[arg-type]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights" * 1000)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "sub" / "config.json").write_text("{}")
    (folder / "README.md").write_text("not part of it")
    return folder


def test_only_files_that_decide_the_values_count(model: Path) -> None:
    names = [path.relative_to(model).as_posix() for path in identity_files(model)]
    assert names == ["model.safetensors", "sub/config.json", "tokenizer.json"]


def test_the_same_files_elsewhere_are_the_same_model(model: Path, tmp_path: Path) -> None:
    before = model_digest([model])
    (model / "README.md").write_text("changed")
    moved = model.rename(tmp_path / "moved")
    assert model_digest([moved]) == before
    (moved / "tokenizer.json").rename(moved / "tokenizer2.json")
    assert model_digest([moved]) != before


def test_a_changed_byte_or_option_is_another_model(model: Path) -> None:
    before = model_digest([model])
    assert model_digest([model], ["quantization=fp8"]) != before
    data = bytearray((model / "model.safetensors").read_bytes())
    data[100] ^= 1
    (model / "model.safetensors").write_bytes(data)
    os.utime(model / "model.safetensors", ns=(1, 1))
    assert model_digest([model]) != before


def test_one_file_is_a_model_and_none_is_not(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"weights")
    assert model_digest([file]) != model_digest([model])
    assert len(file_digest(file)) == 32
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no weights"):
        model_digest([tmp_path / "empty"])


def test_tenants_are_kept_apart_and_so_is_who_asks_for_it() -> None:
    assert tenant_salt(welcome(), None) == b"pool"
    per_tenant = welcome("PerTenant")
    salts = {tenant_salt(per_tenant, name) for name in (None, "a", "b")} | {tenant_salt(welcome(), None)}
    assert len(salts) == 4
    assert tenant_salt(welcome(), "a") != tenant_salt(welcome(), None)
    assert tenant_salt(welcome(salt=b"x"), "yz") != tenant_salt(welcome(salt=b"xy"), "z")


def test_every_rank_adapter_and_tenant_has_its_own_chain(model: Path) -> None:
    identity = CacheIdentity(ModelSource(lambda: [model]), KvShape(2, 2, 8), world=2)
    assert identity.roots(welcome(), None, None) is None
    identity.start()
    wait_until(lambda: identity.roots(welcome(), None, None) is not None, "the model is hashed")
    plain = identity.roots(welcome(), None, None)
    assert plain is not None
    assert len(set(plain)) == 2
    wait_until(lambda: identity.roots(welcome(), str(model), None) is not None, "the adapter is hashed")
    adapted = identity.roots(welcome(), str(model), None)
    assert adapted is not None
    assert len({*plain, *adapted, *(identity.roots(welcome("PerTenant"), None, "t") or ())}) == 6


def test_a_given_identity_hashes_nothing() -> None:
    def locate() -> list[Path]:
        raise AssertionError("looked for files")

    identity = CacheIdentity(ModelSource(locate, given=b"given"), KvShape(2, 2, 8), world=1)
    identity.start()
    assert identity.roots(welcome(), None, None) is not None


def test_files_that_cannot_be_read_mean_no_cache_and_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    identity = CacheIdentity(ModelSource(lambda: [tmp_path / "gone"]), KvShape(2, 2, 8), world=1)
    identity.start()
    wait_until(lambda: "model_identity" in caplog.text, "a warning")
    assert identity.roots(welcome(), None, None) is None


def test_an_adapter_changes_the_identity() -> None:
    assert len({with_adapter(b"m", b"a"), with_adapter(b"m", b"b"), with_adapter(b"n", b"a")}) == 3
