"""An engine's memory and requests for tests of the connector that need no vLLM."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

from shadowserve_dataplane.chunks import KvDtype, KvShape
from shadowserve_dataplane.connector.landed_image import CodesImage, ValuesImage
from shadowserve_dataplane.connector.messages import PROTOCOL, Hello
from shadowserve_dataplane.connector.paged_copy import BlockSpan
from shadowserve_dataplane.connector.plan import Geometry, RequestTraits
from shadowserve_dataplane.connector.scheduler import NewRequest, ScheduledRequest

SHAPE = KvShape(layers=2, kv_heads=1, head_dim=8, dtype=KvDtype.FLOAT16, tokens=16)
GEOMETRY = Geometry(chunk=16, block=4)


def hello(role: str = "worker", world: int = 1) -> Hello:
    return Hello(PROTOCOL, role, "engine", 2, 1, 8, "float16", 16, 0, world)  # type: ignore[arg-type]


@dataclass
class FakeCache:
    """A `PagedCopy` over numpy: block `b` is `blocks[b]`, bits `[planes][block tokens][channels]`.

    `gate` closed keeps a copy from ending, `entered` says that one has begun; `adopted` are the landing buffers.
    """

    blocks: np.ndarray = field(default_factory=lambda: np.zeros((64, 4, 4, 8), np.uint16))
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    adopted: list[memoryview] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()

    def prepare(self) -> None:
        pass

    def adopt(self, landing: memoryview) -> None:
        self.adopted.append(landing)

    def scatter(self, image: CodesImage | ValuesImage, span: BlockSpan) -> None:
        self.entered.set()
        assert self.gate.wait(10)
        assert self.adopted, "a slot is read before its buffer was adopted"
        assert isinstance(image, ValuesImage)
        for number, block in enumerate(span.blocks, span.first):
            self.blocks[block] = image.values[:, 4 * number : 4 * number + 4]

    def gather(self, span: BlockSpan, values: memoryview) -> None:
        self.entered.set()
        assert self.gate.wait(10)
        chunk = np.concatenate([self.blocks[block] for block in span.blocks], axis=1)
        values[: chunk.nbytes] = chunk.tobytes()


def chunk_values(seed: int) -> bytes:
    """Canonical bits of one chunk."""
    return np.random.default_rng(seed).integers(0, 60000, (4, 16, 8)).astype(np.uint16).tobytes()


def request(name: str, tokens: Sequence[int], **traits: bool) -> NewRequest:
    """A request that arrives with `tokens`; append to `.live.all_token_ids` to let it grow."""
    live = SimpleNamespace(request_id=name, all_token_ids=list(tokens))
    return NewRequest(live, RequestTraits(len(tokens), **traits))


def scheduled(name: str, computed: int, blocks: Sequence[int] = tuple(range(64))) -> ScheduledRequest:
    return ScheduledRequest(name, computed, lambda: blocks)
