"""Looks at the servers of a store and carries out a shard plan; decides nothing. The one place that speaks to stores.

Every command can be repeated: whoever is stopped between two of them leaves nothing that the next plan does not end.
"""

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

from valkey.asyncio import Connection
from valkey.exceptions import (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    ResponseError,
    ValkeyError,
)

from shadowserve_operator.desired.external_store import EndpointSeen, Finding
from shadowserve_operator.desired.shard_views import BadView, Member, ServerView, parse_nodes
from shadowserve_operator.desired.sharding import Command, Move, ShardPlan, StoreSeen, Wish, plan_shards, seen_as

_CONNECT_SECONDS, _ANSWER_SECONDS = 1.5, 15.0
_MIGRATE_MILLISECONDS = "10000"
_KEYS_AT_ONCE = "4"
"""Chunks are megabytes, and a server answers nobody while it hands keys over."""
_BREATH_SECONDS = 0.1
_MOST_SILENT = 3
"""How often in a row servers are found silent until that is told: one that is busy for a moment is not gone."""
Reply = bytes | int | str | list[Any] | None


class StoreTrouble(Exception):
    """A server cannot be reached, or refuses; the message names it and is for people."""


@dataclass(frozen=True, slots=True)
class Access:
    """How the servers of a store are spoken to: by their administrator. `files` are certificate, key, authority (PEM).

    None: in plain text.
    """

    username: str
    password: str
    files: tuple[bytes, bytes, bytes] | None = None

    def context(self) -> ssl.SSLContext | None:
        """Return what connections are made with. Raises `StoreTrouble` for files that are no certificates."""
        if self.files is None:
            return None
        certificate, key, authority = self.files
        try:
            context = ssl.create_default_context(cadata=authority.decode("ascii"))
            with TemporaryDirectory(prefix="shadowserve-") as folder:  # it reads them from files only
                pair = Path(folder) / "tls.crt", Path(folder) / "tls.key"
                pair[0].write_bytes(certificate)
                pair[1].write_bytes(key)
                context.load_cert_chain(*pair)
        except (OSError, ValueError) as error:
            raise StoreTrouble(f"the store's certificate cannot be used: {error}") from error
        return context


@dataclass(frozen=True, slots=True)
class ExternalAccess:
    """How a store of somebody else is spoken to. `authority` (PEM): whom to trust; None: whom the system does."""

    username: str | None = None
    password: str | None = None
    encrypted: bool = False
    authority: bytes | None = None

    def context(self) -> ssl.SSLContext | None:
        """Return what connections are made with. Raises `StoreTrouble` for an authority that is none."""
        if not self.encrypted:
            return None
        try:
            return ssl.create_default_context(cadata=self.authority.decode("ascii") if self.authority else None)
        except (OSError, ValueError) as error:
            raise StoreTrouble(f"its authority cannot be used: {error}") from error


async def find_out(endpoints: Sequence[str], access: ExternalAccess) -> list[EndpointSeen]:
    """Return what is at these endpoints (`host:port`); raises nothing."""
    try:
        context = access.context()
    except StoreTrouble as trouble:
        return [EndpointSeen(endpoint, Finding.NOT_TRUSTED, str(trouble)) for endpoint in endpoints]
    return list(await asyncio.gather(*(_found_out(endpoint, access, context) for endpoint in endpoints)))


async def _found_out(endpoint: str, access: ExternalAccess, context: ssl.SSLContext | None) -> EndpointSeen:
    host, _, port = endpoint.rpartition(":")
    host = host.strip("[]")
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(host, int(port))
    except (OSError, TimeoutError) as error:
        return EndpointSeen(endpoint, Finding.SILENT, _why(error))
    writer.close()
    try:
        async with _Link(Member(endpoint, 0, host, host, int(port)), access, context) as link:
            ping, slots = await link.run([("EXISTS", "shadowserve:"), ("CLUSTER", "SLOTS")])
    except StoreTrouble as trouble:
        return _diagnosed(endpoint, trouble.__cause__)
    if str(ping).startswith(("NOAUTH", "WRONGPASS")):
        return EndpointSeen(endpoint, Finding.NOT_LET_IN, str(ping))
    cluster = isinstance(slots, list) or str(ping).startswith(("MOVED", "CLUSTERDOWN"))
    return EndpointSeen(endpoint, Finding.CLUSTER if cluster else Finding.STANDALONE)


def _diagnosed(endpoint: str, error: BaseException | None) -> EndpointSeen:
    cause = error.__context__ if error is not None and not isinstance(error, ssl.SSLError) else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return EndpointSeen(endpoint, Finding.NOT_TRUSTED, f"its certificate is not accepted: {cause.verify_message}")
    if isinstance(cause, ssl.SSLError):
        return EndpointSeen(endpoint, Finding.NO_STORE, f"TLS is not what it speaks: {cause.reason}")
    if isinstance(error, AuthenticationError | AuthenticationWrongNumberOfArgsError | ResponseError):
        return EndpointSeen(endpoint, Finding.NOT_LET_IN, str(error))
    why = _why(error) if isinstance(error, Exception) else "nothing"
    return EndpointSeen(endpoint, Finding.NO_STORE, f"something listens, but it says no word of a store: {why}")


@dataclass(frozen=True, slots=True)
class Looked:
    """Servers that answer, and why the others do not, by pod."""

    views: tuple[ServerView, ...] = ()
    silent: Mapping[str, str] = field(default_factory=dict)


async def look(members: Sequence[Member], access: Access) -> Looked:
    """Return what all servers say now."""
    try:
        context = access.context()
    except StoreTrouble as trouble:
        return Looked(silent={member.pod: str(trouble) for member in members})
    answers = await asyncio.gather(*(_looked(member, access, context) for member in members))
    views = tuple(answer for answer in answers if isinstance(answer, ServerView))
    pairs = zip(members, answers, strict=True)
    return Looked(views, {member.pod: answer for member, answer in pairs if isinstance(answer, str)})


async def shard(members: Sequence[Member], access: Access, wish: Wish, seconds: float) -> StoreSeen:
    """Carry out one plan after the other until all is as wished, or that time is over; return what is then.

    No time is enough for a look. Raises `StoreTrouble` when a server fails meanwhile.
    """
    until, silent = monotonic() + seconds, 0
    while True:
        looked = await look(members, access)
        plan = plan_shards(wish, looked.views)
        silent = silent + 1 if looked.silent else 0
        missing = not silent and len(looked.views) < max(wish.pods, wish.servers)
        if missing or silent >= _MOST_SILENT or not (plan.steps or plan.waiting) or monotonic() >= until:
            return seen_as(plan, looked.views, looked.silent)
        await _carry_out(plan, access, until)
        await asyncio.sleep(0 if plan.steps and monotonic() < until else _BREATH_SECONDS)


async def _carry_out(plan: ShardPlan, access: Access, until: float) -> None:
    context = access.context()
    async with AsyncExitStack() as stack:
        links: dict[str, _Link] = {}

        async def link_to(member: Member) -> _Link:
            if member.pod not in links:
                links[member.pod] = await stack.enter_async_context(_Link(member, access, context))
            return links[member.pod]

        for step in plan.steps:
            if monotonic() >= until:
                return
            if isinstance(step, Move):
                await _move(step, await link_to(step.source.member), await link_to(step.target.member), access)
            else:
                await _command(step, await link_to(step.member))


async def _command(step: Command, link: "_Link") -> None:
    [reply] = await link.run([step.words])
    if isinstance(reply, ResponseError) and not str(reply).lower().startswith("unknown node"):
        raise StoreTrouble(f"{step.member.pod}: {' '.join(step.words[:2])}: {reply}")


async def _move(step: Move, source: "_Link", target: "_Link", access: Access) -> None:
    """Move slots with the protocol of the cluster specification ("Live reconfiguration"), all of them together."""
    slots = [str(slot) for slot in step.slots]
    # refused by a target that has the slot already, which then is only to be told around
    await target.run([("CLUSTER", "SETSLOT", slot, "IMPORTING", step.source.id) for slot in slots])
    await source.run([("CLUSTER", "SETSLOT", slot, "MIGRATING", step.target.id) for slot in slots])
    await _move_keys(step, slots, source, access)
    given = [("CLUSTER", "SETSLOT", slot, "NODE", step.target.id) for slot in slots]
    for link in (target, source):
        for reply in await link.run(given):
            if isinstance(reply, ResponseError):
                raise StoreTrouble(f"{link.member.pod}: CLUSTER SETSLOT: {reply}")


async def _move_keys(step: Move, slots: Sequence[str], source: "_Link", access: Access) -> None:
    address = (step.target.member.address, str(step.target.member.port))
    words = ("MIGRATE", *address, "", "0", _MIGRATE_MILLISECONDS, "REPLACE", "AUTH2", access.username, access.password)
    while True:
        listed = await source.run([("CLUSTER", "GETKEYSINSLOT", slot, _KEYS_AT_ONCE) for slot in slots])
        batches = [keys for keys in listed if isinstance(keys, list) and keys]  # of one slot each, as it has to be
        if not batches:
            return
        for keys in batches:  # one after the other: in between the server answers others
            [reply] = await source.run([(*words, "KEYS", *keys)])
            if isinstance(reply, ResponseError):
                raise StoreTrouble(f"{source.member.pod}: keys cannot go to {step.target.member.pod}: {reply}")


async def _looked(member: Member, access: Access, context: ssl.SSLContext | None) -> ServerView | str:
    try:
        async with _Link(member, access, context) as link:
            asked = [("CLUSTER", "NODES"), ("CLUSTER", "INFO"), ("CONFIG", "GET", "maxmemory-policy")]
            nodes, state, policy = await link.run(asked)
        if isinstance(nodes, ResponseError):
            return f"{member.pod}: {nodes}"
        view = parse_nodes(member, _text(nodes), "cluster_state:ok" in _text(state))
        return replace(view, policy=_text(policy[-1]) if isinstance(policy, list) else "")
    except (StoreTrouble, BadView) as trouble:
        return str(trouble)


class _Link:
    """One connection to one server, in `async with`. Raises `StoreTrouble`."""

    def __init__(self, member: Member, access: Access | ExternalAccess, context: ssl.SSLContext | None) -> None:
        self.member = member
        self._connection = _NamedConnection(
            context,
            member.host,
            host=member.address,
            port=member.port,
            username=access.username,
            password=access.password,
            socket_connect_timeout=_CONNECT_SECONDS,
            socket_timeout=_ANSWER_SECONDS,
        )

    async def __aenter__(self) -> "_Link":
        try:
            async with asyncio.timeout(2 * _CONNECT_SECONDS):
                await self._connection.connect()  # type: ignore[no-untyped-call]
        except (ValkeyError, OSError, TimeoutError) as error:
            await self._connection.disconnect(nowait=True)
            raise StoreTrouble(f"{self.member.pod} at {self.member.address}: {_why(error)}") from error
        return self

    async def __aexit__(self, *_: object) -> None:
        with suppress(ValkeyError, OSError):
            await self._connection.disconnect(nowait=True)

    async def run(self, commands: Sequence[tuple[bytes | str, ...]]) -> list[Reply | ResponseError]:
        """Return the replies; an error that a server answers is returned, not raised."""
        replies: list[Reply | ResponseError] = []
        try:
            await self._connection.send_packed_command(self._connection.pack_commands(commands), check_health=False)
            for _ in commands:
                try:
                    replies.append(await self._connection.read_response())
                except ResponseError as refusal:
                    replies.append(refusal)
        except (ValkeyError, OSError, TimeoutError) as error:
            raise StoreTrouble(f"{self.member.pod} at {self.member.address}: {_why(error)}") from error
        return replies


class _NamedConnection(Connection):
    """A connection to an address whose certificate names a host; the library's own takes context nor name."""

    def __init__(self, context: ssl.SSLContext | None, name: str, **options: Any) -> None:
        self._tls, self._name = context, name
        super().__init__(lib_name=None, lib_version=None, **options)

    def _connection_arguments(self) -> dict[str, Any]:
        plain = super()._connection_arguments()
        return dict(plain) if self._tls is None else {**plain, "ssl": self._tls, "server_hostname": self._name}


def _text(reply: Reply | ResponseError) -> str:
    return reply.decode("utf-8", "replace") if isinstance(reply, bytes) else str(reply)


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__
