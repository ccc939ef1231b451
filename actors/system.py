"""ActorSystem: the live actors of one process over one store."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from socket import gethostname
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

from actors.actor import PersistentActor, stream_id_of
from actors.dead_letters import DeadLetter, DeadLetters
from actors.ref import ActorRef
from actors.replicas.peer import Peer
from actors.replicas.replicated_actor import ReplicatedActor
from actors.replicas.replicated_ref import ReplicatedRef
from actors.replication import Replication
from actors.runtime import Runtime
from actors.settings import Settings
from actors.stats import SystemStats
from actors.supervision import Restart, Supervision
from actors.transactions.transacting import RETRIES
from actors.transactions.transaction import Transaction
from eventstore.calls.finishing import finish_then_cancel
from eventstore.errors import DefinitionError, InvalidTenant, StoreClosed
from eventstore.events import Metadata
from eventstore.projections import Projection
from eventstore.read_models.inline import InlineProjections
from eventstore.store import EventStore
from eventstore.vector_clock import checked_replica

A = TypeVar("A", bound=PersistentActor[Any])
RA = TypeVar("RA", bound=ReplicatedActor[Any])
T = TypeVar("T")


class ActorSystem:
    """Live actors over one store.

        async with ActorSystem("sqlite:///bank.db") as system:
            alice = system.ref(Account, "alice")
            print(await alice.ask(Deposit(amount=100)))

    An actor comes to life with its first message, and leaves memory when nobody has talked to it for
    `idle_seconds`, or when more than `max_live` are there, the least recently used first. Nothing is lost by that.

    A store given as a URL is opened and closed by the system, for a `tenant` if one is named; one given as an object
    stays the caller's, and knows its tenant. Two tenants' actors of one key are two actors.

    `ownership` is for classes that do not say it themselves: with "shared" any number of processes may have an actor in
    memory at the same time; who was slower decides again, and learns within `catch_up_seconds` what others appended.
    With "exclusive" one process at a time has it, by a lease of `lease_seconds` that it holds under `name`: others get
    `OwnedElsewhere`, and take over when that process has stopped, or at the latest when its lease has run out.

    A `transaction` may hold up whoever asks its actors for `transaction_timeout` seconds; then it ends.

    With a `replica` name the system is one of several that change the same actors, those of classes that are a
    `ReplicatedActor`; docs/replication.md says how. `peers` are the others, by name: the URL of each one's store, the
    store itself, or a `Peer`; each of them of this system's tenant. Events are fetched from them of the classes that
    are `replicated` or were given to `ref`, at the latest `replication_seconds` after they were stored; with None, when
    `replication.pull_from` is called.

    `inline` are projections whose read models are written in the same commits as the events, on stores with SQL:
    whoever has got a reply finds it there. A command whose events one of them cannot apply is refused with
    `ProjectionFailed`; docs/projections.md says what it costs.

    `supervision` says what becomes of failed actors whose class does not say it. `dead_letters` is how many failed
    tells are kept, the newest, and `on_dead_letter` a function that is called with each.
    """

    def __init__(
        self,
        store: str | EventStore,
        *,
        tenant: str | None = None,
        ask_timeout: float = 30.0,
        mailbox_size: int = 1000,
        mailbox_overflow: Literal["reject", "wait"] = "reject",
        idle_seconds: float = 300.0,
        max_live: int = 100_000,
        recoveries_at_once: int = 50,
        recovery_timeout: float = 30.0,
        shutdown_timeout: float = 30.0,
        ownership: Literal["shared", "exclusive"] = "shared",
        lease_seconds: float = 10.0,
        catch_up_seconds: float = 0.5,
        transaction_timeout: float = 5.0,
        name: str | None = None,
        replica: str | None = None,
        peers: Mapping[str, str | EventStore | Peer] | None = None,
        replicated: Iterable[type[ReplicatedActor[Any]]] = (),
        replication_seconds: float | None = 0.5,
        inline: Iterable[type[Projection]] = (),
        supervision: Supervision = Restart(),  # noqa: B008 (it is frozen)
        dead_letters: int = 1000,
        on_dead_letter: Callable[[DeadLetter], object] | None = None,
    ) -> None:
        # What is neither is refused as a URL.
        self._owns_store = not isinstance(store, EventStore)
        self._store = store if isinstance(store, EventStore) else EventStore.open(store, tenant=tenant)
        if tenant is not None and self._store.tenant != tenant:
            raise InvalidTenant(
                f"ActorSystem: the store was opened for {self._store.tenant or 'no tenant'}, not for {tenant}: open it "
                "with tenant=…"
            )
        self._settings = Settings(
            ask_timeout,
            mailbox_size,
            mailbox_overflow,
            idle_seconds,
            max_live,
            recoveries_at_once,
            recovery_timeout,
            shutdown_timeout,
            supervision,
            ownership,
            lease_seconds,
            catch_up_seconds,
            transaction_timeout,
            f"{gethostname()}:{os.getpid()}" if name is None else name,
        )
        if isinstance(inline, type):
            raise DefinitionError(f"ActorSystem: inline are several projections: inline=({inline.__qualname__},)")
        classes = tuple(inline)
        self._inline = InlineProjections(self._store, classes) if classes else None
        self._dead_letters = DeadLetters(dead_letters, on_dead_letter)
        self._classes: dict[str, type[PersistentActor[Any]]] = {}
        self._runtime: Runtime | None = None
        self._closing: asyncio.Future[None] | None = None
        if replica is None and (peers or tuple(replicated)):
            raise DefinitionError("ActorSystem: peers and replicated classes need a name for this replica: replica=…")
        self._replica = None if replica is None else checked_replica(replica)
        self._peers = dict(peers or {})
        self._replicated = tuple(replicated)
        self._replication_seconds = replication_seconds
        self._replication: Replication | None = None

    async def __aenter__(self) -> Self:
        """Open the store, if it was given as a URL. Raises as `EventStore` does."""
        if self._runtime is not None:
            raise StoreClosed("this actor system was entered before: make a new one")
        if self._owns_store:
            await self._store.__aenter__()
        try:
            if self._inline is not None:
                await self._inline.open()
        except BaseException:
            if self._owns_store:
                await self._store.close()
            raise
        self._runtime = Runtime(self._store, self._settings, self._dead_letters, inline=self._inline)
        if self._replica is not None:
            try:
                await self._open_replication(self._runtime, self._replica)
            except BaseException:
                await self.close()
                raise
        return self

    async def _open_replication(self, runtime: Runtime, replica: str) -> None:
        self._replication = Replication(
            runtime,
            self._store,
            replica=replica,
            peers=self._peers,
            seconds=self._replication_seconds,
            page_timeout=self._settings.recovery_timeout,
        )
        await self._replication.open()
        runtime.membership = self._replication
        for actor in self._replicated:
            self.ref(actor, "any")
        self._replication.start()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Take no more commands, finish those accepted, save what is to be saved, and let go of the store.

        What is not finished within `shutdown_timeout` is answered with `ActorStopped`, or with `OutcomeUnknown`
        where its events are on their way. A handler that goes on although it is cancelled then is left behind after
        five seconds more.

        A caller that is cancelled does not wait for what is unfinished, but until the store is let go of, and is
        cancelled then. Whoever closes it again waits for the same end. In the child of a fork nothing is done: actors
        and store are the parent's.
        """
        if self._runtime is None or self._store.is_forked:
            return
        if self._closing is None:
            self._runtime.refuse()
            self._closing = asyncio.ensure_future(self._close(self._runtime))
        try:
            await asyncio.shield(self._closing)
        except asyncio.CancelledError:
            self._runtime.hurry()
            await finish_then_cancel(self._closing)
            raise

    async def _close(self, runtime: Runtime) -> None:
        try:
            try:
                if self._replication is not None:
                    await self._replication.close()
            finally:
                await runtime.close()
        finally:
            if self._inline is not None:
                self._inline.close()
            if self._owns_store:
                await self._store.close()

    @property
    def store(self) -> EventStore:
        """The journal the actors live on."""
        return self._store

    @property
    def replication(self) -> Replication:
        """What makes this system one of several replicas. Raises `DefinitionError` if it is none."""
        if self._replication is None:
            raise DefinitionError("this system is no replica: give it a name, ActorSystem(…, replica=…), and enter it")
        return self._replication

    @overload
    def ref(self, actor: type[RA], key: str) -> ReplicatedRef[RA]: ...
    @overload
    def ref(self, actor: type[A], key: str) -> ActorRef[A]: ...
    def ref(self, actor: type[PersistentActor[Any]], key: str) -> ActorRef[Any]:
        """A reference to one actor. It costs nothing: the actor comes to life with its first message.

        Raises `InvalidStreamId` for a key that cannot be part of a stream's id, `DefinitionError` when another class of
        this system has the same kind, and `StoreClosed` before the system is entered.
        """
        runtime = self._entered
        stream_id = stream_id_of(actor, key)
        known = self._classes.setdefault(actor.kind, actor)
        if known is not actor:
            raise DefinitionError(
                f"{actor.__qualname__} and {known.__module__}.{known.__qualname__} are both of kind {actor.kind!r}: "
                "their events would share streams; give one of them another: class …(PersistentActor[…], kind=…)"
            )
        if issubclass(actor, ReplicatedActor):
            self.replication.replicate(actor)
            return ReplicatedRef(runtime, actor, stream_id)
        return ActorRef(runtime, actor, stream_id)

    def transaction(
        self, *, command_id: str | None = None, timeout: float | None = None, metadata: Metadata | None = None
    ) -> Transaction:
        """A block in which commands to several actors are decided, and stored together or not at all.

            async with system.transaction(command_id="transfer-17") as tx:
                await tx.ask(alice, Withdraw(amount=50))
                await tx.ask(bob, Deposit(amount=50))

        With a `command_id` it is stored once: run again under the same id, it answers each command with the reply of
        that time. After `timeout` seconds (by default the system's `transaction_timeout`) it ends, and its actors serve
        others. `metadata` goes with all events; without a correlation id of its own they get one by which they are
        found together.

        A block cannot be run again by itself, so it raises `ConcurrencyError` where another process, or an older
        transaction, was faster; `transact` runs a function again.
        """
        return self._entered.transaction(timeout=timeout, metadata=metadata, command_id=command_id)

    async def transact(
        self,
        work: Callable[[Transaction], Awaitable[T]],
        *,
        retries: int = RETRIES,
        command_id: str | None = None,
        timeout: float | None = None,
        metadata: Metadata | None = None,
    ) -> T:
        """Run a function in a `transaction`, and again where others were faster, at most `retries` times more.

            balance = await system.transact(lambda tx: tx.ask(alice, Withdraw(amount=50)))

        It keeps its age, so that the oldest gets through. The `timeout` is for each run. Nothing is run again in which
        an `async def` handler took part: then the `ConcurrencyError` is raised at once.
        """
        return await self._entered.transact(
            work, retries=retries, timeout=timeout, metadata=metadata, command_id=command_id
        )

    @property
    def _entered(self) -> Runtime:
        if self._runtime is None:
            raise StoreClosed("the actor system is not open: use it inside `async with ActorSystem(url) as system`")
        return self._runtime

    def stats(self) -> SystemStats:
        """What lives here now, and what failed. It may be called in any thread."""
        if self._runtime is None:
            return SystemStats(0, 0, 0, {}, 0, {}, [], None, 0, 0)
        return self._runtime.stats()

    def dead_letters(self) -> list[DeadLetter]:
        """The told commands that failed, the oldest first, as far as they are kept. It works after the close as well,
        which may have added some."""
        return self._dead_letters.kept()
