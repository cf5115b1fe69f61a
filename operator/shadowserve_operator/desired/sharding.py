"""How the servers of a managed store become the shards that its PrefixCache asks for. Pure; every step says why.

The store is a cluster from its first server on, so that growing is never a change of mode. What a look at the servers
shows is all that counts: nothing is remembered, every step can be repeated, and whoever is stopped between two of them
goes on from what is found. What was begun is ended first: a half-moved slot belongs to two servers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shadowserve_operator.desired.labels import digest
from shadowserve_operator.desired.shard_views import SLOTS, Member, ServerView, ranges

_BATCH = 256
"""Slots that are moved together."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command for one server."""

    member: Member
    words: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Move:
    """Slots that go from one server to another, with all their keys."""

    source: ServerView
    target: ServerView
    slots: tuple[int, ...]
    reason: str


ShardStep = Command | Move


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """What to do now; `waiting` is what is awaited before or after that, in words, "" when all is as it should be.

    `servers` is how many pods there have to be: more than asked for while one that is to go still has slots.
    `serving` is how many shards serve slots; `covered`: between them they serve every slot, so the store works.
    """

    steps: tuple[ShardStep, ...] = ()
    waiting: str = ""
    servers: int = 0
    serving: int = 0
    covered: bool = False


@dataclass(frozen=True, slots=True)
class Wish:
    """What the PrefixCache asks for; `pods` exist now. `policy`: what servers give up first, "" = anything."""

    shards: int
    replicas: int
    pods: int
    policy: str = ""

    @property
    def servers(self) -> int:
        """How many servers that makes."""
        return self.shards * (1 + self.replicas)


@dataclass(frozen=True, slots=True)
class StoreSeen:
    """How the servers were found, and what is left to do. `silent` says why some do not answer, by pod.

    `trouble` is what a server refused; `layout` names who has which slot, "" while that changes.
    """

    plan: ShardPlan
    silent: Mapping[str, str] = field(default_factory=dict)
    trouble: str = ""
    layout: str = ""


def seen_as(plan: ShardPlan, views: Sequence[ServerView], silent: Mapping[str, str]) -> StoreSeen:
    """Return what a look has shown."""
    layout = "" if plan.waiting else digest(sorted((view.id, ranges(view.slots)) for view in views))
    return StoreSeen(plan, silent, layout=layout)


def plan_shards(wish: Wish, views: Sequence[ServerView]) -> ShardPlan:
    """Return what to do; `views` are of all servers that answer."""
    ordered = sorted(views, key=lambda view: view.member.number)
    serving = sum(bool(view.slots) for view in ordered)
    covered = len(frozenset[int]().union(*(view.slots for view in ordered))) == SLOTS
    if len(ordered) < max(wish.pods, wish.servers):
        waiting = f"{len(ordered)} of {max(wish.pods, wish.servers)} store servers answer"
        return ShardPlan((), waiting, max(wish.pods, wish.servers), serving, covered)
    holders = [view.member.number for view in ordered if view.slots or view.importing]
    servers = max(wish.servers, max(holders, default=-1) + 1)
    for stage in (_configure, _finish, _forget, _meet, _form, _agree, _spread, _follow):
        steps, waiting = stage(wish, ordered)
        if steps or waiting:
            return ShardPlan(tuple(steps), waiting, servers, serving, covered)
    return ShardPlan((), "", servers, serving, covered)


Stage = tuple[Sequence[ShardStep], str]


def _configure(wish: Wish, views: Sequence[ServerView]) -> Stage:
    """Have every server give up the same chunks first; a restart would give up all of them."""
    if not wish.policy:
        return (), ""
    words = ("CONFIG", "SET", "maxmemory-policy", wish.policy)
    others = [view for view in views if view.policy != wish.policy]
    steps = [Command(view.member, words, f"it evicts by {view.policy}") for view in others]
    return steps, "servers take the eviction policy" if steps else ""


def _finish(wish: Wish, views: Sequence[ServerView]) -> Stage:
    """End what was begun: slots between two servers."""
    by_id = {view.id: view for view in views}
    moves: dict[tuple[str, str], list[int]] = {}
    steps: list[ShardStep] = []
    for view in views:
        for slot, other in sorted(view.migrating.items()):
            if other not in by_id:
                steps.append(_stable(view, slot))
            else:
                moves.setdefault((view.id, other), []).append(slot)
        for slot, other in sorted(view.importing.items()):
            source = by_id.get(other)
            if slot in view.slots or source is None or slot not in source.slots:
                steps.append(_stable(view, slot))
            elif slot not in source.migrating:
                moves.setdefault((other, view.id), []).append(slot)
    for (source_id, target_id), slots in moves.items():
        steps += _moves(by_id[source_id], by_id[target_id], slots, "they were on their way")
    return steps, "slots on their way arrive" if steps else ""


def _forget(wish: Wish, views: Sequence[ServerView]) -> Stage:
    """Forget servers that are gone for good: every pod answers, and none of them is it."""
    alive = {view.id for view in views}
    steps: list[ShardStep] = []
    for view in views:
        gone = sorted(set(view.known) - alive)
        if view.follows in gone:
            words = ("CLUSTER", "FAILOVER", "TAKEOVER")
            return [Command(view.member, words, "the primary that it follows is gone")], "a replica takes over"
        steps += [
            Command(view.member, ("CLUSTER", "FORGET", each), f"server {each[:8]} is gone for good") for each in gone
        ]
    return steps, ""


def _meet(wish: Wish, views: Sequence[ServerView]) -> Stage:
    """Make every server know every other one, at its address."""
    first = next((view for view in views if view.slots), views[0])
    steps: list[ShardStep] = []
    for view in views:
        if view is first:
            continue
        seen = first.known.get(view.id)
        if seen is None or seen.address != view.member.address or first.id not in view.known:
            words = ("CLUSTER", "MEET", view.member.address, str(view.member.port))
            steps.append(Command(first.member, words, f"{view.member.pod} is new to it"))
    alive = {view.id for view in views}
    strangers = [view.member.pod for view in views if not alive <= set(view.known)]
    return steps, f"{', '.join(strangers[:3])} hear of the others" if strangers or steps else ""


def _form(wish: Wish, views: Sequence[ServerView]) -> Stage:
    """Give every slot that nobody serves to a primary; what is served twice settles by itself."""
    claims = sum(len(view.slots) for view in views)
    served = frozenset[int]().union(*(view.slots for view in views))
    if claims > len(served):
        return (), "servers agree on who has which slot"
    primaries, steps = _primaries(wish, views)
    if steps:
        return steps, "a server becomes a primary"
    free = sorted(set(range(SLOTS)) - served)
    targets = _targets(primaries)
    for view in primaries:
        wanted = max(0, targets[view.id] - len(view.slots))
        mine, free = free[:wanted], free[wanted:]
        if mine:
            words = ("CLUSTER", "ADDSLOTSRANGE", *(str(end) for part in ranges(mine) for end in part))
            steps.append(Command(view.member, words, f"nobody serves {len(mine)} slots"))
    return steps, "slots are given out" if steps else ""


def _agree(wish: Wish, views: Sequence[ServerView]) -> Stage:
    """Wait for servers that do not serve yet, for two seconds after their start, or do not know who has which slot."""
    quiet = [view.member.pod for view in views if not view.agrees]
    if quiet:
        return (), f"{', '.join(quiet[:3])} do not serve yet"
    behind = [view.member.pod for view in views if any(view.known[each.id].slots != each.slots for each in views)]
    return (), f"{', '.join(behind[:3])} hear who has which slot" if behind else ""


def _spread(wish: Wish, views: Sequence[ServerView]) -> Stage:
    """Move slots until all primaries have equally many, and the others none."""
    primaries, _ = _primaries(wish, views)
    targets = _targets(primaries)
    spare = [(view, sorted(view.slots)[targets.get(view.id, 0) :]) for view in views if view.slots]
    steps: list[ShardStep] = []
    left = sum(len(slots) for _, slots in spare)
    for target in primaries:
        room = targets[target.id] - len(target.slots)
        for source, slots in spare:
            taken = [slots.pop() for _ in range(min(max(0, room), len(slots)))]
            room -= len(taken)
            going = "it is to go" if source.id not in targets else "shards are of equal size"
            steps += _moves(source, target, sorted(taken), going)
    return steps, f"{left} slots move to other shards" if steps else ""


def _follow(wish: Wish, views: Sequence[ServerView]) -> Stage:
    """Have every server that is no primary follow one, all of them equally many."""
    primaries, _ = _primaries(wish, views)
    chosen = {view.id for view in primaries}
    others = [view for view in views if view.id not in chosen and view.member.number < wish.servers]
    followers = {view.id: 0 for view in primaries}
    idle: list[ServerView] = []
    for view in others:
        if view.follows in followers and followers[view.follows] < wish.replicas:
            followers[view.follows] += 1
        else:
            idle.append(view)
    steps: list[ShardStep] = []
    for view in idle:
        leader = min(primaries, key=lambda each: (followers[each.id], each.member.number))
        followers[leader.id] += 1
        words = ("CLUSTER", "REPLICATE", leader.id)
        steps.append(Command(view.member, words, f"shard of {leader.member.pod} needs a replica"))
    return steps, "replicas copy their shards" if steps else ""


def _primaries(wish: Wish, views: Sequence[ServerView]) -> tuple[list[ServerView], list[ShardStep]]:
    """Return which servers are to serve slots, and what makes one of a replica if there are too few."""
    staying = [view for view in views if view.member.number < wish.servers]
    holding = [view for view in staying if view.slots]
    empty = [view for view in staying if not view.slots and not view.follows]
    found = sorted([*holding, *empty][: wish.shards], key=lambda view: view.member.number)
    if len(found) == wish.shards:
        return found, []
    crowd: dict[str, list[ServerView]] = {}
    for view in staying:
        if view.follows:
            crowd.setdefault(view.follows, []).append(view)
    spare = max(crowd.values(), key=len)[-1]
    return found, [Command(spare.member, ("CLUSTER", "RESET", "SOFT"), "it is to be a shard of its own")]


def _targets(primaries: Sequence[ServerView]) -> Mapping[str, int]:
    """Return how many slots each primary is to have; those with the most keep one more, so that little moves."""
    share, more = divmod(SLOTS, len(primaries))
    largest = sorted(primaries, key=lambda view: (-len(view.slots), view.member.number))
    return {view.id: share + (place < more) for place, view in enumerate(largest)}


def _moves(source: ServerView, target: ServerView, slots: Sequence[int], why: str) -> list[ShardStep]:
    return [
        Move(source, target, tuple(slots[at : at + _BATCH]), f"{why}: {len(slots[at : at + _BATCH])} slots")
        for at in range(0, len(slots), _BATCH)
    ]


def _stable(view: ServerView, slot: int) -> Command:
    words = ("CLUSTER", "SETSLOT", str(slot), "STABLE")
    return Command(view.member, words, f"slot {slot} is not on its way any more")
