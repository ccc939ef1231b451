"""RedisBackend: the journal on a Redis server. One connection writes, a few read, one listens for news."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from redis import exceptions as driver

from backends.redis_append_script import APPEND
from backends.redis_archive import RedisArchive
from backends.redis_changing_scripts import DELETE_SNAPSHOTS, SAVE_SNAPSHOT, TRUNCATE
from backends.redis_checkpoints import (
    CHANGE_CHECKPOINTS,
    CHECKPOINTS,
    checkpoint_changes,
    found_checkpoint,
    found_checkpoints,
)
from backends.redis_command_scripts import FORGET_COMMANDS
from backends.redis_connection import REVISION, Argument, RedisConnection, ReplyLost, Script, translated
from backends.redis_journal import RedisJournal
from backends.redis_listener import RedisListener
from backends.redis_ownership import RedisLease, claim_answer, claim_arguments, release_arguments
from backends.redis_ownership_scripts import CLAIM, RELEASE
from backends.redis_reading import RedisReader
from backends.redis_records import MAX_VERSION, Group, outcomes_of, packed_group, packed_snapshot
from backends.redis_scripts import RIGHTS
from backends.redis_seals import ADD_SEAL, packed_seal
from backends.redis_server import check_server
from backends.redis_tenant import RedisTenant
from backends.redis_turn import RedisTurn
from backends.redis_url import parse_redis_url
from backends.times import microseconds
from backends.waiters import Waiters
from eventstore.backend import (
    Appended,
    AppendOutcome,
    Batch,
    Capabilities,
    CheckpointKey,
    Claim,
    Durability,
    Holder,
    Owner,
    StoredCheckpoint,
    StoredSeal,
    StoredSnapshot,
)
from eventstore.calls.appending import Appending
from eventstore.contract.passed_events import check_passed, no_snapshot
from eventstore.contract.sql_transaction import SqlTransaction
from eventstore.errors import (
    BackendUnavailable,
    CapabilityError,
    EventStoreError,
    FencedError,
    SchemaError,
    SchemaMissing,
)
from eventstore.events import stream_kind
from eventstore.tenant import NO_TENANT
from eventstore.url import StoreUrl

logger = logging.getLogger(__name__)

# So many events, and outcomes of commands, are removed by one script, during which the server does nothing else.
_REMOVED_AT_ONCE = 2000

# What the script of a truncation that was refused replies first.
_FENCED = -1
_BEHIND = -2
_NO_SNAPSHOT = -3


class RedisBackend(RedisReader):
    """`redis://host:6379/0`, `rediss://` with TLS, `unix:///path/to/socket`; `docs/redis.md` has the parameters.

    Any number of processes may write to one journal: a group is one script, and the server runs one at a time.
    """

    capabilities = Capabilities(creates_schema=False, survives_restart=True, tenants=True, archive=True)

    def __init__(self, url: StoreUrl) -> None:
        super().__init__(parse_redis_url(url), RedisTenant(url.tenant))
        # For best-effort it is what `open` finds.
        self.durability = self._target.durability or Durability.NONE
        self.schema_revision: str | None = None
        self.database = "Redis"
        self._writer: RedisConnection | None = None
        self._turn = RedisTurn()
        self._listener: RedisListener | None = None
        self._waiters = Waiters()
        self._news = 0

    async def open(self) -> None:
        writer = RedisConnection(self._target, on_connect=self._check_server)
        try:
            await writer.connect()
            journal = await self._found_journal(writer)
            await self._check_rights(writer)
        except (ReplyLost, driver.RedisError) as error:
            await writer.close()
            raise translated(error, writing=False) from error
        except BaseException:
            await writer.close()
            raise
        self._writer = writer
        # A store may be opened again, in another loop.
        self._turn = RedisTurn()
        self._news = 0
        self.schema_revision = REVISION
        self._listener = RedisListener(self._target, journal.identity, self._on_news)
        self.open_reader(journal)

    async def close(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            await listener.close()
        self._wake()
        # Appends are among what is finished first.
        await self.close_reader()
        writer, self._writer = self._writer, None
        if writer is not None:
            await writer.close()

    # Writing

    def append(self, batches: Sequence[Batch]) -> Appending:
        self.check_open()
        appending = Appending()
        if self._start(batches, appending):
            self._tasks.watch(appending)
        else:
            self._tasks.watch(appending.start(self._append(batches)))
        return appending

    async def forget_commands(self, stream_id: str, *, keep: int, before: datetime | None) -> int:
        return await self._tasks.finish(self._forget_commands(stream_id, keep, before))

    def archive(self) -> RedisArchive:
        return RedisArchive(self._opened.identity, self._run, self._archive_write)

    async def begin_sql(self, *, seconds: float) -> SqlTransaction:
        raise CapabilityError(
            "Redis knows no SQL: nothing was done; SQL goes with a batch on Postgres and SQLite alone"
        )

    def lease(self, owner: Owner) -> RedisLease:
        # It is made in another event loop than the store was opened in.
        return RedisLease(self._target, self.opened_journal(), self._whose, owner)

    async def claim(self, claims: Sequence[Claim]) -> Sequence[int | Holder]:
        self.check_open()
        if not claims:
            return []
        reply: Sequence[Any] = await self._tasks.finish(self._write(CLAIM, claim_arguments(self._whose, claims)))
        return [claim_answer(self._whose, answer) for answer in reply]

    async def release(self, owner: bytes, epochs: Mapping[str, int]) -> None:
        self.check_open()
        if epochs:
            await self._tasks.finish(self._write(RELEASE, release_arguments(self._whose, owner, epochs)))

    async def checkpoints(self, *, shared: bool = False) -> Sequence[StoredCheckpoint]:
        return found_checkpoints(RedisTenant(NO_TENANT) if shared else self._whose, await self._run(CHECKPOINTS, []))

    async def change_checkpoints(
        self, saving: Sequence[StoredCheckpoint], removing: Sequence[CheckpointKey] = ()
    ) -> bool:
        changes = checkpoint_changes(self._whose, saving, removing)
        return bool(await self._tasks.finish(self._write(CHANGE_CHECKPOINTS, changes)))

    async def add_seal(self, seal: StoredSeal) -> bool:
        # Not on the writer's connection: a seal is large, and appends would wait for it.
        return bool(await self._run(ADD_SEAL, [seal.number, packed_seal(seal)]))

    async def truncate(
        self, stream_id: str, through: int, *, reason: str, epoch: int | None = None, fingerprint: str | None = None
    ) -> int:
        last = min(through, MAX_VERSION)
        return await self._tasks.finish(self._truncate(stream_id, last, reason, epoch, fingerprint))

    async def save_snapshot(self, snapshot: StoredSnapshot, *, keep: int) -> bool:
        if snapshot.version > MAX_VERSION:
            raise CapabilityError(f"Redis counts versions up to {MAX_VERSION}, not {snapshot.version}")
        stream_id, version, epoch = snapshot.stream_id, snapshot.version, snapshot.epoch
        arguments: list[Argument] = [self._whose.name(stream_id), version, packed_snapshot(snapshot), keep, epoch]
        # Not on the writer's connection: many actors save at about the same time, and appends would wait for each.
        current, is_there = await self._run(SAVE_SNAPSHOT, arguments)
        if current:
            raise FencedError(stream_id, epoch, current)
        return bool(is_there)

    async def delete_snapshots(self, stream_id: str, *, through: int | None) -> int:
        last = MAX_VERSION if through is None else min(through, MAX_VERSION)
        removed: int = await self._tasks.finish(self._write(DELETE_SNAPSHOTS, [self._whose.name(stream_id), last]))
        return removed

    async def wait(self, after: int, timeout: float) -> None:
        journal = self._opened
        if max(journal.position, self._news) > after:
            return
        if self._listener is not None:
            self._listener.start()
        await self._waiters.wait(timeout)

    def _start(self, batches: Sequence[Batch], appending: Appending) -> bool:
        """Append without a task, which sends a turn of the event loop later and hears of the reply another one later:
        two turns in which the server has nothing to do. False: nothing was sent, it has to be done by a task."""
        journal, writer, turn = self._opened, self._writer, self._turn
        if writer is None or not turn.share():
            return False

        def receive(reply: Any, error: BaseException | None) -> None:
            turn.release()
            if isinstance(error, driver.NoScriptError):
                self._tasks.watch(appending.start(self._append(batches)))
                return
            outcomes = None
            try:
                if error is None:
                    outcomes = self._outcomes(batches, group, reply)
            except Exception as unexpected:
                error = unexpected
            if isinstance(error, ReplyLost | driver.RedisError):
                cause, error = error, translated(error, writing=True)
                error.__cause__ = cause
            appending.end(outcomes, error)

        is_sent = False
        try:
            group = packed_group(self._whose, batches)
            is_sent = writer.start(APPEND, journal.key, [*journal.arguments, *group.arguments], receive)
        except EventStoreError:
            # A task finds out again, and tells it. Raised here it would keep the callers' frames, and these keep it.
            return False
        finally:
            if not is_sent:
                turn.release()
        appending.may_be_followed = is_sent
        return is_sent

    async def _append(self, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        group = packed_group(self._whose, batches)
        return self._outcomes(batches, group, await self._write(APPEND, group.arguments))

    def _outcomes(self, batches: Sequence[Batch], group: Group, reply: Any) -> Sequence[AppendOutcome]:
        outcomes = outcomes_of(batches, reply)
        for outcome, last_id in zip(reversed(outcomes), reversed(group.last_ids), strict=True):
            if isinstance(outcome, Appended) and outcome.position and last_id is not None:
                self._opened.saw(outcome.position, last_id)
                break
        self._wake()
        return outcomes

    async def _truncate(
        self, stream_id: str, through: int, reason: str, epoch: int | None, fingerprint: str | None
    ) -> int:
        own = -1 if epoch is None else epoch
        arguments: list[Argument] = [self._whose.name(stream_id), through, _REMOVED_AT_ONCE, reason.encode(), own]
        arguments += (self._whose.name(""), self.tenant.encode(), stream_kind(stream_id).encode())
        arguments.append(b"" if fingerprint is None else b"=" + fingerprint.encode())
        removed, more = 0, 1
        while more:
            count, more, *behind = await self._write(TRUNCATE, arguments)
            if count == _FENCED:
                raise FencedError(stream_id, own, more)
            if count == _NO_SNAPSHOT and fingerprint is not None:
                raise no_snapshot(stream_id, more, fingerprint, removed=removed)
            if count == _BEHIND:
                check_passed([found_checkpoint(*behind)], self.tenant, stream_id, more, removed=removed)
                # It is of a partition to which the stream does not belong.
                arguments.append(behind[0])
                continue
            removed += count
        return removed

    async def _forget_commands(self, stream_id: str, keep: int, before: datetime | None) -> int:
        time: Argument = b"" if before is None else microseconds(before)
        forgotten, more = 0, 1
        while more:
            count, more = await self._write(
                FORGET_COMMANDS, [self._whose.name(stream_id), max(keep, 0), time, _REMOVED_AT_ONCE]
            )
            forgotten += count
        return forgotten

    async def _archive_write(self, script: Script, arguments: Sequence[Argument]) -> Any:
        return await self._tasks.finish(self._write(script, arguments))

    async def _write(self, script: Script, arguments: Sequence[Argument]) -> Any:
        journal, writer = self._opened, self._writer
        if writer is None:
            raise BackendUnavailable("the store is being closed: nothing was stored")
        async with self._writers_turn():
            try:
                return await writer.run(script, journal.key, [*journal.arguments, *arguments])
            except (ReplyLost, driver.RedisError) as error:
                raise translated(error, writing=True) from error

    @asynccontextmanager
    async def _writers_turn(self) -> AsyncGenerator[None, None]:
        seconds = self._target.command_timeout
        try:
            await self._turn.wait(seconds)
        except TimeoutError as error:
            raise BackendUnavailable(
                f"earlier writes of this store have waited for Redis for {seconds:g} s: nothing was stored, try again"
            ) from error
        try:
            yield
        finally:
            self._turn.release()

    # Opening

    async def _check_server(self, connection: RedisConnection) -> None:
        """At every connection of the writer: the server may have been started anew with other settings."""
        self.database, found = await check_server(connection, self._target)
        if self.schema_revision is not None and found is not self.durability:
            logger.warning("%s: the server's durability is now %s", self._target.url, found.value)
        self.durability = found

    async def _found_journal(self, connection: RedisConnection) -> RedisJournal:
        url = self._target.url
        try:
            identity, found = await connection.call(b"HMGET", self._target.key, b"identity", b"revision")
        except driver.ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
            raise SchemaError(
                f"{url}: the key {self._target.key.decode()!r} is something else's; choose another ?prefix=",
                found=None,
                expected=REVISION,
            ) from error
        if identity is None or found is None:
            raise SchemaMissing(
                f"{url} holds no journal; to make one, run: eventstore migrate {url}", found=None, expected=REVISION
            )
        revision = found.decode()
        if revision != REVISION:
            remedy = (
                f"run: eventstore migrate {url}"
                if revision < REVISION
                else "it was written by a newer version of this package: upgrade the package"
            )
            raise SchemaError(
                f"{url} has a journal of schema revision {revision}, this version needs {REVISION}; {remedy}",
                found=revision,
                expected=REVISION,
            )
        return RedisJournal(self._target.key, identity)

    async def _check_rights(self, connection: RedisConnection) -> None:
        # As a text, and then by its hash, because both ways take a right of their own: a server may forget its scripts,
        # and then each is sent as a text again.
        await connection.call(b"EVAL", RIGHTS.source, 1, self._target.key)
        lacking = await connection.call(b"EVALSHA", RIGHTS.sha, 1, self._target.key)
        if lacking:
            names = ", ".join(name.decode() for name in lacking)
            raise BackendUnavailable(
                f"{self._target.url}: the user may not use {names}; docs/redis.md lists the rights that are needed"
            )

    # News

    def _on_news(self, position: int) -> None:
        self._news = max(self._news, position)
        self._wake()

    def _wake(self) -> None:
        self._waiters.wake()
