"""What a user's type checker knows. Nothing here is run: `test_checkers.py` has mypy and basedpyright read it.

Every ignored line is a negative case: there both checkers are told to complain about an ignore that is not needed.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Generic, TypeVar, assert_type

from pydantic import BaseModel
from sqlalchemy import Connection, CursorResult, text

from actors import (
    ActorRef,
    ActorSystem,
    Command,
    CommandRetention,
    DeadLetter,
    Escalate,
    Folded,
    Match,
    PersistentActor,
    Restart,
    Resume,
    SnapshotPolicy,
    Stop,
    Transaction,
    command_handler,
    event_handler,
    fold,
    new_command_id,
)
from actors.testing import Outcome, Scenario
from eventstore import Event, EventStore, Metadata

T = TypeVar("T")
S = TypeVar("S")


class Deposit(Command[int]):
    amount: int


class Rename(Command[None]):
    name: str


class Find(Command[list[str]]):
    pass


class Maybe(Command[str | None]):
    pass


class DepositLater(Deposit):
    days: int = 0


class Get(Command[T], Generic[T]):
    pass


class Deposited(Event, name="typing.deposited"):
    amount: int


class Balance(BaseModel):
    amount: int = 0


class Account(PersistentActor[Balance]):
    snapshot_policy = SnapshotPolicy(every=100)
    supervision = Restart(max_restarts=3)

    @command_handler
    def deposit(self, command: Deposit | DepositLater) -> int:
        assert_type(self.state, Balance)
        assert_type(self.state.amount, int)
        assert_type(self.persist(Deposited(amount=command.amount)), Awaitable[None])
        assert_type(self.key, str)
        assert_type(self.version, int)
        self.persist(command)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        self.persist("deposited")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        self.state = 7  # type: ignore[assignment] # pyright: ignore[reportAttributeAccessIssue]
        return self.state.amount

    @command_handler
    async def rename(self, command: Rename) -> None:
        await self.persist(Deposited(amount=1))

    @event_handler
    def deposited(self, event: Deposited) -> None:
        self.state.amount += event.amount
        print(self.state.missing)  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownArgumentType]

    def recovered(self) -> None:
        assert_type(self.state, Balance)


class Recovering(PersistentActor[dict[str, int]]):
    supervision = Stop()

    def initial_state(self) -> dict[str, int]:
        return {"a": 1}

    async def recovered(self) -> None:
        assert_type(self.state, dict[str, int])


class Trusted(PersistentActor[Balance]):
    ownership = "exclusive"
    always_fresh = True
    command_retention = CommandRetention(count=100, seconds=3600.0)
    supervision = Match({KeyError: Resume(), OSError: Restart(), ValueError: Escalate()}, otherwise=Stop())

    def before_restart(self, error: BaseException) -> None:
        assert_type(self.state, Balance)

    async def after_restart(self, error: BaseException) -> None:
        assert_type(self.state, Balance)


class Misconfigured(PersistentActor[Balance]):
    ownership = "mine"  # type: ignore[assignment] # pyright: ignore[reportAssignmentType]
    supervision = "restart"  # type: ignore[assignment] # pyright: ignore[reportAssignmentType]
    snapshot_policy = SnapshotPolicy(every="100")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]

    def initial_state(self) -> int:  # type: ignore[override] # pyright: ignore[reportIncompatibleMethodOverride]
        return 0


class Base(PersistentActor[S], Generic[S]):
    def current(self) -> S:
        return self.state


class Derived(Base[Balance]):
    @command_handler
    def find(self, command: Find) -> list[str]:
        assert_type(self.current(), Balance)
        return []


async def asking(system: ActorSystem) -> None:
    alice = system.ref(Account, "alice")
    assert_type(alice, ActorRef[Account])
    assert_type(alice.stream_id, str)
    assert_type(await alice.ask(Deposit(amount=1)), int)
    assert_type(await alice.ask(Deposit(amount=1), timeout=1.5, metadata=Metadata(user="ann")), int)
    assert_type(await alice.ask(DepositLater(amount=1, days=2)), int)
    assert_type(await alice.ask(Deposit(amount=1), command_id=new_command_id(), fresh=True), int)
    await alice.ask(Deposit(amount=1), command_id=17)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    assert_type(system.dead_letters(), list[DeadLetter])
    assert_type(await alice.ask(Find()), list[str])
    assert_type(await alice.ask(Maybe()), str | None)
    assert_type(await alice.ask(Get[bytes]()), bytes)
    assert_type(alice.restart(), None)

    nothing: None = await alice.ask(Rename(name="x"))  # type: ignore[func-returns-value]
    number: int = await alice.ask(Deposit(amount=1))
    text: str = await alice.ask(Deposit(amount=1))  # type: ignore[arg-type] # pyright: ignore[reportAssignmentType]
    print(nothing, number, text)

    await alice.ask(Deposited(amount=1))  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    await alice.ask("deposit")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    await alice.ask(Deposit)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    await alice.ask(Deposit())  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    await alice.ask(Deposit(amount=1), timeout="1")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    await alice.ask(Deposit(amount=1), 1.5)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    await alice.tell(Deposited(amount=1))  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    number = alice.ask(Deposit(amount=1))  # type: ignore[assignment] # pyright: ignore[reportAssignmentType]


def len_of(connection: Connection) -> int:
    return len(str(connection))


async def transactions(system: ActorSystem) -> None:
    alice, list_ = system.ref(Account, "alice"), system.ref(Derived, "list")
    block = system.transaction(command_id=new_command_id(), timeout=1.5, metadata=Metadata(user="ann"))
    assert_type(block, Transaction)
    async with block as tx:
        assert_type(tx, Transaction)
        assert_type(await tx.ask(alice, Deposit(amount=1)), int)
        assert_type(await tx.ask(alice, DepositLater(amount=1, days=2)), int)
        assert_type(await tx.ask(list_, Find()), list[str])
        assert_type(await tx.ask(alice, Maybe()), str | None)
        assert_type(await tx.ask(alice, Get[bytes]()), bytes)
        assert_type(tx.expect(list_, version=3), None)
        assert_type(tx.replies, tuple[Any, ...])
        assert_type(tx.is_repeated, bool)
        assert_type(await tx.hold(alice, list_), None)
        assert_type(await tx.connection.execute(text("SELECT 1")), CursorResult[Any])
        assert_type(await tx.connection.run_sync(len_of), int)
        await tx.hold("alice")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        await tx.connection.execute("SELECT 1")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        nothing: None = await tx.ask(alice, Rename(name="x"))  # type: ignore[func-returns-value]
        words: str = await tx.ask(alice, Deposit(amount=1))  # type: ignore[arg-type] # pyright: ignore[reportAssignmentType]
        number: int = tx.ask(alice, Deposit(amount=1))  # type: ignore[assignment] # pyright: ignore[reportAssignmentType]
        await tx.ask(alice, Deposited(amount=1))  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        await tx.ask(alice, Deposit)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        await tx.ask("alice", Deposit(amount=1))  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        await tx.ask(Deposit(amount=1))  # type: ignore[arg-type, call-arg] # pyright: ignore[reportCallIssue]
        await tx.ask(alice, Deposit(amount=1), command_id="one")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
        tx.expect(list_, 3)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
        tx.expect(list_, version="3")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        print(nothing, words, number)
    system.transaction(command_id=17)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    system.transaction("transfer-17")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    with system.transaction():  # type: ignore[attr-defined] # pyright: ignore[reportGeneralTypeIssues]
        pass

    async def move(tx: Transaction) -> tuple[int, list[str]]:
        return await tx.ask(alice, Deposit(amount=1)), await tx.ask(list_, Find())

    assert_type(await system.transact(move), tuple[int, list[str]])
    assert_type(
        await system.transact(move, retries=3, command_id="one", timeout=2, metadata=Metadata()), tuple[int, list[str]]
    )
    assert_type(await system.transact(lambda tx: tx.ask(alice, Deposit(amount=1))), int)
    texts: list[str] = await system.transact(move)  # type: ignore[arg-type] # pyright: ignore[reportAssignmentType]
    await system.transact(move(block))  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    await system.transact(lambda: 7)  # type: ignore[arg-type, misc] # pyright: ignore[reportArgumentType]

    assert_type(await alice.batch([Deposit(amount=1), Deposit(amount=2)]), list[int])
    assert_type(await alice.batch([Deposit(amount=1), DepositLater(amount=1)], command_id="two", timeout=1), list[int])
    assert_type(await alice.batch(Deposit(amount=amount) for amount in range(3)), list[int])
    assert_type(await list_.batch((Find(), Find())), list[list[str]])
    replies: list[str] = await alice.batch([Deposit(amount=1)])  # type: ignore[list-item] # pyright: ignore[reportAssignmentType]
    await alice.batch(Deposit(amount=1))  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    await alice.batch([Deposited(amount=1)])  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    print(texts, replies)


async def systems(store: EventStore) -> None:
    async with ActorSystem("sqlite:///bank.db", mailbox_overflow="wait", idle_seconds=1) as system:
        assert_type(system, ActorSystem)
        assert_type(system.store, EventStore)
        assert_type(system.ref(Derived, "a"), ActorRef[Derived])
        system.ref(int, "a")  # type: ignore[type-var] # pyright: ignore[reportCallIssue, reportArgumentType]
        system.ref(Account, 1)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue, reportArgumentType]
        system.ref(Account)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]
    ActorSystem(store, mailbox_overflow="drop")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    ActorSystem(7)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    assert_type(await fold(store, Account, "alice"), Folded)


def handlers_keep_their_signatures(account: Account) -> None:
    assert_type(account.deposit(Deposit(amount=1)), int)
    assert_type(account.deposited(Deposited(amount=1)), None)
    account.deposit(Rename(name="x"))  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


async def scenarios() -> None:
    scenario = Scenario(Account)
    assert_type(scenario, Scenario[Balance])
    assert_type(scenario.given(Deposited(amount=5)), Scenario[Balance])
    outcome = await scenario.when(Deposit(amount=3))
    assert_type(outcome, Outcome[Balance, int])
    assert_type(outcome.reply, int)
    assert_type(outcome.state, Balance)
    assert_type(outcome.events, tuple[Event, ...])
    assert_type(outcome.rejection, Exception | None)
    assert_type((await scenario.when(Find())).reply, list[str])
    scenario.given(Deposit(amount=3))  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    await scenario.when(Deposited(amount=3))  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    Scenario(int)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


def events() -> None:
    # Only mypy's pydantic plugin knows that it is frozen.
    Deposited(amount=1).amount = 2  # type: ignore[misc]
    Deposited()  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    Deposit(amount=1, more=2)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]


def dynamic(command: Command[Any]) -> Command[Any]:
    return command
