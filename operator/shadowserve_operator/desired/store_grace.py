"""A store that was ready and is merely silent for a moment: what `StoreReady` says until it has lasted. Pure.

A server that hands slots over answers nobody meanwhile, and one answer that does not come proves nothing.
All that is needed stands in the status, so that a restart of the operator neither shortens nor prolongs it.
"""

from datetime import UTC, datetime, timedelta

from shadowserve_crds.conditions import Condition, ConditionStatus, Reason, condition
from shadowserve_crds.prefixcache import PrefixCacheCondition, PrefixCacheStatus

GRACE = timedelta(seconds=30)
"""So long a store that was ready may be silent: more than the ten seconds that a server may take to hand keys over."""
_TIME = "%Y-%m-%dT%H:%M:%SZ"


def with_grace(
    before: PrefixCacheStatus, found: Condition, silence: str, now: datetime
) -> tuple[Condition, str | None]:
    """Return `StoreReady` and since when silence stands between the store and being ready, None if it does not.

    `found` is what a look says, `silence` who did not answer it, or refused something, in words.
    """
    if found.status is not ConditionStatus.FALSE or not silence:
        return found, None
    since = before.store.silent_since or now.astimezone(UTC).strftime(_TIME)
    if not _was_ready(before) or now >= _end(since):
        return found, since
    message = f"{silence} (since {since}); the store was ready, and is not any more when that lasts {GRACE.seconds} s"
    return condition(found.type, True, Reason.PENDING, message), since


def grace_left(status: PrefixCacheStatus, now: datetime) -> float | None:
    """Return after how many seconds a silence counts, None for a store that is not silent, or is not ready any more."""
    since = status.store.silent_since
    if since is None or not _was_ready(status):
        return None
    return max(0.0, (_end(since) - now).total_seconds())


def _was_ready(status: PrefixCacheStatus) -> bool:
    ready = (each.status for each in status.conditions if each.type == PrefixCacheCondition.STORE_READY)
    return next(ready, ConditionStatus.UNKNOWN) is ConditionStatus.TRUE


def _end(since: str) -> datetime:
    return datetime.fromisoformat(since) + GRACE
