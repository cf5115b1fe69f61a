"""What is rendered for a cache, as files that a reviewer reads: a change of a manifest is a change of a file.

`SHADOWSERVE_WRITE_GOLDEN=1` writes them anew.
"""

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from shadowserve_crds.prefixcache import PrefixCache
from shadowserve_crds.samples import valid_samples
from shadowserve_operator.desired.certificates import Certificate, tls_secret, wanted_certificates
from shadowserve_operator.desired.config import config_map
from shadowserve_operator.desired.dataplane import dataplane_objects
from shadowserve_operator.desired.secrets import SecretValues, secret_manifests
from shadowserve_operator.desired.store import store_objects
from shadowserve_operator.kinds import Json
from shadowserve_operator.settings import OperatorSettings

GOLDEN = Path(__file__).parent / "golden"
NAMES = [name for name, body in valid_samples().items() if body["kind"] == "PrefixCache"]
SECRET_VALUES = SecretValues("sidecar-password", "admin-password", b"salt")


def _objects(name: str) -> list[Json]:
    body = valid_samples()[name]
    cache = PrefixCache.parse({**body, "metadata": {**body["metadata"], "namespace": "default", "uid": "0-1-2"}})
    settings = OperatorSettings(version="0", dataplane_image="dataplane:0", store_image="valkey:0")
    secrets = [*secret_manifests(cache, SECRET_VALUES), *(_tls(cache, w.secret) for w in wanted_certificates(cache))]
    return [*secrets, config_map(cache), *store_objects(cache, settings), *dataplane_objects(cache, settings)]


def _tls(cache: PrefixCache, secret: str) -> Json:
    when = datetime(2026, 1, 1, tzinfo=UTC)
    return tls_secret(cache, secret, Certificate(b"certificate", b"key", b"authority", (), when, when))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_rendered_is_what_was_reviewed(name: str) -> None:
    text = yaml.safe_dump_all(_objects(name), sort_keys=True, width=120)
    file = GOLDEN / f"{name}.yaml"
    if os.environ.get("SHADOWSERVE_WRITE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text(), f"{file} differs; write it anew with SHADOWSERVE_WRITE_GOLDEN=1 and review it"
