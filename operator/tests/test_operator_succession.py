"""An authority that another one follows: whoever sees a Secret late still talks to everybody, by real handshakes."""

import itertools
import ssl
from base64 import b64decode
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cache_on_a_cluster import SETTINGS, a_cluster
from fakes import FakeCluster, FakeNetwork
from test_operator_webhook_identity import AUTHORITY, CONFIG, SERVING, installed

from shadowserve_dataplane.renewal import CertificateFiles, RenewedContext
from shadowserve_operator.desired.certificates import AUTHORITY_LIFE
from shadowserve_operator.kinds import SECRET, Json, Ref
from shadowserve_operator.reconcile import reconcile_prefixcache
from shadowserve_operator.webhook_identity import renew_identity

SECRETS = ("kv-store-tls", "kv-data-plane-tls", "kv-sidecar-tls")
NOW = datetime.now(UTC)
"""TLS looks at the clock: everything happened shortly before now."""
STAGES = {
    "before": NOW - timedelta(days=30),
    "announced": NOW - timedelta(days=4),
    "taken over": NOW - timedelta(days=2),
    "forgotten": NOW - timedelta(hours=12),
}
MADE = NOW - AUTHORITY_LIFE * 2 / 3 - timedelta(days=5)
Files = dict[str, dict[str, bytes]]


async def reconciled(cluster: FakeCluster, now: datetime) -> Files:
    """Reconcile until nothing is written; return what the Secrets hold then."""
    for _ in range(10):
        result = await reconcile_prefixcache(cluster, "default", "kv", SETTINGS, lambda: now, FakeNetwork())
        if not result.writes:
            break
    return {name: held(cluster.objects[Ref(SECRET, "default", name)]) for name in (*SECRETS, "kv-authority")}


def held(secret: Json) -> dict[str, bytes]:
    return {key: b64decode(value) for key, value in secret["data"].items()}


def written(files: dict[str, bytes], folder: Path) -> CertificateFiles:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return CertificateFiles(folder / "ca.crt", folder / "tls.crt", folder / "tls.key")


def greet(server: CertificateFiles, client: CertificateFiles) -> None:
    """Shake hands, each showing its certificate. Raises `ssl.SSLError` when one does not trust the other."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    calling = RenewedContext(client)
    calling.check_hostname = False
    sides = [
        RenewedContext(server, server=True).wrap_bio(there, back, server_side=True),
        calling.wrap_bio(back, there),
    ]
    for side in sides[::-1] * 4:
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    for side in sides:
        side.do_handshake()


async def test_whoever_is_one_stage_behind_is_trusted_and_trusts(tmp_path: Path) -> None:
    cluster = a_cluster()
    await reconciled(cluster, MADE)
    seen = {stage: await reconciled(cluster, when) for stage, when in STAGES.items()}
    for stages in (*itertools.pairwise(STAGES), *itertools.pairwise(reversed(STAGES))):
        for server, client in itertools.product(SECRETS, SECRETS):
            ends = [
                written(seen[stage][name], tmp_path / stage / name)
                for stage, name in zip(stages, (server, client), strict=True)
            ]
            greet(*ends)
    first, last = (written(seen[each]["kv-store-tls"], tmp_path / each / "x") for each in ("before", "forgotten"))
    with pytest.raises(ssl.SSLError):  # the old authority is gone in the end
        greet(first, last)


async def test_the_old_one_goes_on_signing_while_the_new_one_is_announced_and_is_forgotten_later() -> None:
    cluster = a_cluster()
    await reconciled(cluster, MADE)
    seen = {stage: await reconciled(cluster, when) for stage, when in STAGES.items()}
    old, new = seen["before"]["kv-authority"]["tls.crt"], seen["forgotten"]["kv-authority"]["tls.crt"]
    assert old != new
    trusted = {stage: {files["ca.crt"] for files in secrets.values()} for stage, secrets in seen.items()}
    assert trusted == {"before": {old}, "announced": {old + new}, "taken over": {new + old}, "forgotten": {new}}
    leaves = [seen[stage]["kv-store-tls"]["tls.crt"] for stage in STAGES]
    assert leaves[0] == leaves[1] != leaves[2] == leaves[3], "certificates change once"
    assert "next.key" not in seen["taken over"]["kv-authority"]


async def test_a_lost_authority_is_made_anew_and_everything_with_it() -> None:
    cluster = a_cluster()
    before = await reconciled(cluster, NOW)
    cluster.remove(Ref(SECRET, "default", "kv-authority"))
    after = await reconciled(cluster, NOW)
    assert all(before[name]["tls.crt"] != after[name]["tls.crt"] for name in SECRETS)
    assert {files["ca.crt"] for files in after.values()} == {after["kv-authority"]["tls.crt"]}


async def test_an_authority_that_somebody_took_off_what_is_trusted_is_put_back() -> None:
    cluster = a_cluster()
    before = await reconciled(cluster, NOW)
    for name in before:
        cluster.objects[Ref(SECRET, "default", name)]["data"]["ca.crt"] = "eA=="
    assert await reconciled(cluster, NOW) == before


async def test_the_api_server_trusts_both_of_the_webhooks_authorities_until_the_last_certificate_was_replaced() -> None:
    cluster = installed()
    await renew_identity(cluster, "system", MADE)
    trusted, serving = [], []
    for when in STAGES.values():
        while await renew_identity(cluster, "system", when):
            pass
        hook = cluster.objects[CONFIG]["webhooks"][0]
        trusted.append(b64decode(hook["clientConfig"]["caBundle"]))
        serving.append(cluster.objects[SERVING]["data"]["tls.crt"])
    old, new = trusted[0], trusted[3]
    assert trusted == [old, old + new, new + old, new]
    assert serving[0] == serving[1] != serving[2] == serving[3]
    assert b64decode(cluster.objects[AUTHORITY]["data"]["tls.crt"]) == new
