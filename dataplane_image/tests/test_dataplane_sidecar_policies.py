"""Small rules: what is stored, how look-ups count, how often the log speaks, one instance per folder."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from shadowserve_dataplane.chunks import ChunkKey
from shadowserve_dataplane.deadline import Deadline
from shadowserve_dataplane.errors import DeadlineExceeded, NetworkError, SettingsError, ShadowServeError
from shadowserve_dataplane.sidecar.index import Answer, Index, leading_chunks
from shadowserve_dataplane.sidecar.instance import only_instance, remove_stale_files
from shadowserve_dataplane.sidecar.metrics import LookupResult
from shadowserve_dataplane.sidecar.quiet_log import QuietLog
from shadowserve_dataplane.sidecar.staging import share
from shadowserve_dataplane.sidecar.store_policy import DropReason, Load, reason_to_drop


@pytest.mark.parametrize(
    ("load", "reason"),
    [
        (Load(queued=0, queue_limit=8, fetches=0, closing=False), None),
        (Load(queued=7, queue_limit=8, fetches=0, closing=False), None),
        (Load(queued=8, queue_limit=8, fetches=0, closing=False), DropReason.QUEUE_FULL),
        (Load(queued=3, queue_limit=8, fetches=1, closing=False), None),
        (Load(queued=4, queue_limit=8, fetches=1, closing=False), DropReason.PRESSURE),
        (Load(queued=0, queue_limit=8, fetches=0, closing=True), DropReason.SHUTDOWN),
        (Load(queued=0, queue_limit=0, fetches=0, closing=False), DropReason.QUEUE_FULL),
    ],
)
def test_stores_give_way(load: Load, reason: DropReason | None):
    assert reason_to_drop(load) is reason


def test_leading_chunks_are_those_that_every_rank_has():
    assert leading_chunks([[True, True, False, True], [True, True, True, True]]) == 2
    assert leading_chunks([[False, True]]) == 0
    assert leading_chunks([[True, True]]) == 2


class FakeStore:
    """Knows some keys, or fails."""

    def __init__(self, known: set[bytes], error: ShadowServeError | None = None) -> None:
        self.known = known
        self.error = error

    async def exists(self, keys: Sequence[ChunkKey], deadline: Deadline) -> list[bool]:
        if self.error is not None:
            raise self.error
        return [key in self.known for key in keys]


A, B, C, D = (bytes([n]) * 32 for n in range(4))


@pytest.mark.parametrize(
    ("ranks", "chunks", "result"),
    [
        ([[A, B]], 2, LookupResult.HIT),
        ([[A, D, B]], 1, LookupResult.PARTIAL),
        ([[D, A]], 0, LookupResult.MISS),
        ([[A, B], [C, D]], 1, LookupResult.PARTIAL),
        ([], 0, LookupResult.MISS),
        ([[]], 0, LookupResult.MISS),
        ([[A, b"short"]], 0, LookupResult.REFUSED),
        ([[A], [B, C]], 0, LookupResult.REFUSED),
    ],
)
async def test_look_ups(ranks: list[list[bytes]], chunks: int, result: LookupResult):
    answer = await Index(FakeStore({A, B, C}), 0.02).look_up(ranks)
    assert (answer.chunks, answer.result) == (chunks, result)


@pytest.mark.parametrize(
    ("error", "result"),
    [(DeadlineExceeded("slow"), LookupResult.LATE), (NetworkError("refused"), LookupResult.ERROR)],
)
async def test_a_store_that_fails_is_a_miss_that_is_counted(error: ShadowServeError, result: LookupResult):
    assert await Index(FakeStore(set(), error), 0.02).look_up([[A]]) == Answer(0, result, str(error))


def test_the_log_speaks_now_and_then(caplog: pytest.LogCaptureFixture):
    now = [0.0]
    log = QuietLog(logging.getLogger("test"), lambda: now[0])
    for _ in range(1000):
        log.warning("frame", "nonsense")
    log.warning("hello", "another kind")
    now[0] = 11.0
    log.warning("frame", "nonsense")
    assert [record.getMessage() for record in caplog.records] == [
        "nonsense",
        "another kind",
        "nonsense (999 more like this before)",
    ]


def test_one_sidecar_per_run_folder(tmp_path: Path):
    run = tmp_path / "run"
    with only_instance(run), pytest.raises(SettingsError, match="another sidecar runs in"), only_instance(run):
        pass
    assert list(run.iterdir()) == []
    with only_instance(run):
        assert [path.name for path in run.iterdir()] == ["sidecar.lock"]


def test_files_of_a_killed_predecessor_are_removed_and_others_are_not(tmp_path: Path):
    for name in ("landing-1-2.buffer", "staging-1-2.buffer", "landing-notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert remove_stale_files(tmp_path) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["landing-notes.txt"]


def test_ranks_share_the_staging_slots():
    assert [list(share(8, rank, 3)) for rank in range(3)] == [[0, 1], [2, 3], [4, 5]]
    assert list(share(1, 0, 2)) == []
