"""Whose cache it is: a digest of everything that decides the KV values besides the tokens.

Two engines share chunks only when weights, tokenizer, configuration and adapter are byte for byte the same. Hashing
takes about a second per gigabyte, so it runs in a background thread; until it is done nothing is looked up or stored.
"""

import hashlib
import logging
import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shadowserve_dataplane.chunks import KEY_BYTES, ChunkKey, KvShape, RankInWorld, namespace
from shadowserve_dataplane.connector.messages import Welcome

_log = logging.getLogger(f"vllm.{__name__}")  # a child of the logger that vLLM has set up
_READ_BYTES = 1 << 22
_SUFFIXES = (
    ".safetensors", ".bin", ".pt", ".pth", ".gguf", ".npz",  # weights
    ".json", ".model", ".txt", ".jinja", ".tiktoken", ".py",  # configuration and tokenizer
)  # fmt: skip

_digests: dict[tuple[str, int, int], bytes] = {}
"""Digests of files read before in this process, by path, size and modification time."""


def identity_files(folder: Path) -> list[Path]:
    """Return the files of a model or adapter folder that decide its KV values, sorted by relative path."""
    if folder.is_file():
        return [folder]
    files = (path for path in folder.rglob("*") if path.suffix in _SUFFIXES and path.is_file())
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def file_digest(path: Path) -> bytes:
    """Return the BLAKE2b digest of a file's bytes. Raises `OSError`."""
    stat = path.stat()
    known = (str(path), stat.st_size, stat.st_mtime_ns)
    if known not in _digests:
        digest = hashlib.blake2b(digest_size=KEY_BYTES, person=b"shadowserve-file")
        with path.open("rb", buffering=0) as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
        _digests[known] = digest.digest()
    return _digests[known]


def model_digest(folders: Sequence[Path], extras: Iterable[str] = ()) -> bytes:
    """Return the identity of the model in `folders`; `extras` are engine options that change its KV values.

    Only names relative to their folder count, so that the same files elsewhere are the same model. Raises `OSError`,
    or `ValueError` when there is nothing to hash.
    """
    digest = hashlib.blake2b(digest_size=KEY_BYTES, person=b"shadowserve-mod")
    for folder in folders:
        files = identity_files(folder)
        if not files:
            raise ValueError(f"{folder} holds no weights, configuration or tokenizer")
        for path in files:
            name = path.name if path == folder else path.relative_to(folder).as_posix()
            _add(digest, name.encode())
            _add(digest, file_digest(path))
    for extra in extras:
        _add(digest, extra.encode())
    return digest.digest()


def with_adapter(model: bytes, adapter: bytes) -> bytes:
    """Return the identity of a model under a LoRA adapter."""
    return hashlib.blake2b(model + adapter, digest_size=KEY_BYTES, person=b"shadowserve-lora").digest()


def tenant_salt(welcome: Welcome, request_salt: str | None) -> bytes:
    """Return what is mixed into the namespace: the sidecar's salt and, per tenant, the request's `cache_salt`.

    A request that brings a `cache_salt` is kept apart under every isolation: its author asked for that.
    """
    if not request_salt and welcome.isolation != "PerTenant":
        return welcome.salt
    tenant = (request_salt or "").encode()
    return struct.pack("<I", len(welcome.salt)) + welcome.salt + tenant


def _add(digest: "hashlib.blake2b", part: bytes) -> None:
    digest.update(struct.pack("<I", len(part)))
    digest.update(part)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where the model's files are. `locate` may look on disk; `given` replaces hashing them."""

    locate: Callable[[], Sequence[Path]]
    extras: tuple[str, ...] = ()
    given: bytes | None = None


class CacheIdentity:
    """The roots of all key chains of this engine; known once its files are hashed, in the background."""

    def __init__(self, source: ModelSource, shape: KvShape, world: int) -> None:
        self._source = source
        self._shape = shape
        self._world = world
        self._model = source.given
        self._adapters: dict[str, bytes | None] = {}

    def start(self, known: Callable[[], None] = lambda: None) -> None:
        """Begin to hash the model, unless its identity was given; `known` is called when it is, on another thread."""
        if self._model is None:
            self._in_background(lambda: self._hash_model(known))

    def roots(self, welcome: Welcome, adapter: str | None, request_salt: str | None) -> tuple[ChunkKey, ...] | None:
        """Return the root of the key chain of every rank; None while the identity is not known."""
        identity = self._model if adapter is None else self._adapted(adapter)
        if identity is None:
            return None
        salt = tenant_salt(welcome, request_salt)
        ranks = (RankInWorld(rank, self._world) for rank in range(self._world))
        return tuple(ChunkKey(bytes(namespace(identity, self._shape, where, salt))) for where in ranks)

    def contract(self, welcome: Welcome) -> bytes | None:
        """Return what engines that share chunks have in common; None while the identity is not known.

        It says nothing of the keys themselves, so it may be told to anybody.
        """
        roots = self.roots(welcome, None, None)
        if roots is None:
            return None
        return hashlib.blake2b(b"".join(roots), digest_size=8, person=b"shadowserve-hash").digest()

    def _adapted(self, adapter: str) -> bytes | None:
        if self._model is None:
            return None
        if adapter not in self._adapters:
            self._adapters[adapter] = None
            self._in_background(lambda: self._hash_adapter(adapter))
        digest = self._adapters[adapter]
        return None if digest is None else with_adapter(self._model, digest)

    def _hash_model(self, known: Callable[[], None]) -> None:
        self._model = model_digest(self._source.locate(), self._source.extras)
        _log.info("KV cache identity of the model: %s", self._model.hex())
        known()

    def _hash_adapter(self, adapter: str) -> None:
        self._adapters[adapter] = model_digest([Path(adapter)])

    def _in_background(self, work: Callable[[], None]) -> None:
        threading.Thread(target=_logged, args=(work,), name="shadowserve-identity", daemon=True).start()


def _logged(work: Callable[[], None]) -> None:
    """Run `work`; an identity that cannot be known means that nothing is cached, which must be said."""
    try:
        work()
    except (OSError, ValueError) as error:
        _log.warning(
            "no KV cache: the model's files cannot be hashed (%s); set kv_connector_extra_config.model_identity", error
        )
