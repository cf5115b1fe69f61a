"""Keys are the same on every machine, in every process, under every Python: a fixture proves it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shadowserve_dataplane.chunks import (
    KvDtype,
    KvShape,
    RankInWorld,
    chunk_keys,
    extend_keys,
    namespace,
    store_key,
)

FIXTURE = Path(__file__).parent / "fixtures" / "keys-v1.json"
PACKAGE = Path(__file__).parents[1]
CASES = json.loads(FIXTURE.read_text())
_SCRIPT = """
import json, sys
from shadowserve_dataplane.chunks import KvDtype, KvShape, RankInWorld, chunk_keys, namespace
for case in json.load(open(sys.argv[1])):
    shape = KvShape(case["layers"], case["kv_heads"], case["head_dim"], KvDtype(case["dtype"]), case["chunk_tokens"])
    identity, salt = bytes.fromhex(case["model_identity"]), bytes.fromhex(case["tenant_salt"])
    root = namespace(identity, shape, RankInWorld(case["rank"], case["world"]), salt)
    keys = [key.hex() for key in chunk_keys(root, case["tokens"], shape.tokens)]
    assert (root.hex(), keys) == (case["namespace"], case["keys"]), case["name"]
"""


def shape_of(case: dict) -> KvShape:
    return KvShape(case["layers"], case["kv_heads"], case["head_dim"], KvDtype(case["dtype"]), case["chunk_tokens"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_keys_are_those_of_the_fixture(case: dict) -> None:
    where = RankInWorld(case["rank"], case["world"])
    salt = bytes.fromhex(case["tenant_salt"])
    root = namespace(bytes.fromhex(case["model_identity"]), shape_of(case), where, salt)
    assert root.hex() == case["namespace"]
    assert [key.hex() for key in chunk_keys(root, case["tokens"], case["chunk_tokens"])] == case["keys"]


@pytest.mark.parametrize("hash_seed", ["0", "1", "random"])
def test_keys_do_not_depend_on_the_process(hash_seed: str) -> None:
    run_with(sys.executable, hash_seed)


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_keys_do_not_depend_on_the_version_of_python(version: str) -> None:
    installed = sorted(Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python"))
    candidates = [shutil.which(f"python{version}"), *map(str, installed)]
    works = [python for python in candidates if python and answers(python)]
    if not works:
        pytest.skip(f"no Python {version} on PATH or under ~/.pyenv")
    run_with(works[0], "0")


def answers(python: str) -> bool:
    return subprocess.run([python, "-c", ""], capture_output=True, check=False, timeout=60).returncode == 0


def run_with(python: str, hash_seed: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE), "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [python, "-c", _SCRIPT, str(FIXTURE)], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_every_ingredient_makes_another_namespace() -> None:
    shape = KvShape(2, 2, 8)
    roots = [
        namespace(b"model", shape),
        namespace(b"other", shape),
        namespace(b"model", KvShape(3, 2, 8)),
        namespace(b"model", KvShape(2, 1, 8)),
        namespace(b"model", KvShape(2, 2, 16)),
        namespace(b"model", KvShape(2, 2, 8, KvDtype.FLOAT16)),
        namespace(b"model", KvShape(2, 2, 8, tokens=128)),
        namespace(b"model", shape, RankInWorld(0, 2)),
        namespace(b"model", shape, RankInWorld(1, 2)),
        namespace(b"model", shape, tenant_salt=b"tenant"),
        namespace(b"modeltenant", shape),
    ]
    assert len(set(roots)) == len(roots)


def test_a_key_depends_on_all_tokens_before_it_and_none_after() -> None:
    root = namespace(b"model", KvShape(2, 2, 8))
    tokens = list(range(1000))
    keys = chunk_keys(root, tokens)
    assert len(keys) == 3
    assert chunk_keys(root, tokens[:512]) == keys[:2]
    assert list(extend_keys(keys[0], tokens[256:])) == keys[1:]
    changed = chunk_keys(root, [5, *tokens[1:]])
    assert not set(changed) & set(keys)


def test_the_name_in_the_store_is_readable() -> None:
    key = chunk_keys(namespace(b"model", KvShape(2, 2, 8)), range(256))[0]
    assert store_key(key) == b"shadowserve:" + key.hex().encode()
