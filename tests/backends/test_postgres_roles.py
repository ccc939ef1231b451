"""The rights that docs/postgres.md grants are enough for what it says, and for nothing else."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from backends.conformance.batches import Batches
from backends.conformance.commands import Commands, remembered, stored
from backends.conformance.concurrency import Concurrency
from backends.conformance.epochs import Epochs
from backends.conformance.events import collect, happened, numbers, outcome
from backends.conformance.forgetting import Forgetting
from backends.conformance.log import Log
from backends.conformance.ownership import Ownership
from backends.conformance.snapshots import Snapshots
from backends.conformance.sql import TRANSFERS, SQLTransactions
from backends.conformance.truncation import Truncation
from eventstore import EventStore, SchemaError
from eventstore.errors import CapabilityError
from eventstore.evidence.seal_verification import SealVerification
from eventstore.evidence.sealing import Sealer
from eventstore.evidence.signing import generate, private_key
from tests.servers.databases import Databases, asyncio_run

from .conftest import empty
from .postgres_help import backend_of, execute, fetch

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "postgres.md"


def documented(title: str) -> str:
    """The SQL of the document that begins with a comment of that title."""
    [script] = re.findall(rf"```sql\n-- {title}\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    return str(script)


def as_role(url: str, role: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}").geturl()


class Roles:
    """An application's role and a keeper's, which have what the document gives them in one database."""

    def __init__(self, url: str) -> None:
        self.owner_url = url
        suffix = uuid4().hex[:12]
        self.app, self.keeper, self.sealer = (f"{role}_{suffix}" for role in ("app", "keeper", "sealer"))
        self.app_url, self.keeper_url = as_role(url, self.app), as_role(url, self.keeper)
        self.sealer_url = as_role(url, self.sealer)

    async def make(self) -> None:
        script = "".join(documented(f"role: {role}") for role in ("app", "keeper", "sealer"))
        named = re.sub(r"\b(app|keeper|sealer)\b", lambda found: str(getattr(self, found[1])), script)
        revoked = "REVOKE ALL ON SCHEMA public FROM PUBLIC;"
        await execute(
            self.owner_url,
            f"CREATE ROLE {self.app} LOGIN; CREATE ROLE {self.keeper} LOGIN; CREATE ROLE {self.sealer} LOGIN; "
            f"{revoked} {named}",
        )

    async def drop(self) -> None:
        all_of_them = f"{self.keeper}, {self.app}, {self.sealer}"
        await execute(self.owner_url, f"DROP OWNED BY {all_of_them}; DROP ROLE {all_of_them}")


@pytest.fixture(scope="session")
def shared_roles(databases: Databases) -> Iterator[Roles]:
    with databases.migrated() as url:
        roles = Roles(url)
        asyncio_run(roles.make())
        yield roles
        asyncio_run(roles.drop())


@pytest.fixture
def roles(shared_roles: Roles) -> Roles:
    """Two roles, in a database with an empty journal."""
    empty(shared_roles.owner_url)
    return shared_roles


@pytest_asyncio.fixture
async def own_roles(postgres_url: str) -> AsyncGenerator[Roles, None]:
    """Two roles of this test alone, who may lose their rights."""
    roles = Roles(postgres_url)
    await roles.make()
    yield roles
    await roles.drop()


class TestTheApplicationsRole(Batches, Commands, Concurrency, Log, Ownership, Snapshots):
    """The parts of the contract that need no truncation."""

    @pytest.fixture
    def url(self, roles: Roles) -> str:
        return roles.app_url


class TestTheApplicationsRoleWithStatementsOfItsOwn(SQLTransactions):
    """Beside the journal's rights it needs those to the user's tables."""

    # To truncate is the keeper's right.
    test_what_is_asserted_of_truncated_and_owned_streams_decides_about_the_statements = None

    @pytest.fixture
    def url(self, roles: Roles) -> str:
        return roles.app_url

    @pytest_asyncio.fixture(autouse=True)
    async def transfers(self, roles: Roles) -> None:
        table = CreateTable(TRANSFERS).compile(dialect=postgresql.dialect())
        await execute(roles.owner_url, f"{table}; GRANT SELECT, INSERT ON {TRANSFERS.name} TO {roles.app}")


class TestTheKeepersRole(Epochs, Forgetting, Truncation):
    @pytest.fixture
    def url(self, roles: Roles) -> str:
        return roles.keeper_url


async def test_the_sealers_role_can_seal_and_verify_and_nothing_else(roles: Roles, tmp_path: Path) -> None:
    async with EventStore.open(roles.keeper_url) as store:
        await store.append("a", happened(1, 2, 3))
        await store.truncate("a", 1, reason="test")
    public = generate(tmp_path / "key")
    async with EventStore.open(roles.sealer_url) as store:
        seal = await Sealer(store, private_key(tmp_path / "key")).seal()
        assert seal is not None
        assert (seal.statement.count, seal.statement.removals.count) == (2, 1)
        verification = SealVerification(store, public)
        assert [finding async for finding in verification.findings()] == []
        with pytest.raises(CapabilityError):
            await store.append("a", happened(4))
    for statement in ("UPDATE journal_seals SET number = 2", "DELETE FROM journal_seals", "DELETE FROM journal_events"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await execute(roles.sealer_url, statement)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE journal_events SET type = 'forged'",
        "DELETE FROM journal_events",
        "TRUNCATE journal_events",
        "DROP TABLE journal_events CASCADE",
        "ALTER TABLE journal_events DISABLE TRIGGER ALL",
        "DROP TRIGGER journal_events_no_delete ON journal_events",
        "CREATE OR REPLACE FUNCTION journal_events_refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN END'",
        "INSERT INTO journal_removals (stream, through, reason, is_open, recorded_at) VALUES (1, 9, 'x', true, 1)",
        "UPDATE journal_removals SET is_open = true",
        "DELETE FROM journal_removals",
        "DELETE FROM journal_streams",
        "UPDATE journal_streams SET stream_id = 'x'",
        "UPDATE journal_streams SET truncated = 9",
        "UPDATE eventstore_version SET version_num = '9999'",
        "SELECT setval('journal_events_position_seq', 1)",
        "CREATE TABLE mine (id int)",
        "SET session_replication_role = replica",
    ],
)
async def test_the_applications_role_cannot_change_history(roles: Roles, statement: str) -> None:
    async with EventStore.open(roles.app_url) as store:
        await store.append("a", happened(1, 2))
        with pytest.raises((asyncpg.InsufficientPrivilegeError, asyncpg.InvalidObjectDefinitionError)):
            await execute(roles.app_url, statement)
        assert await numbers(store.read_all()) == [1, 2]


async def test_the_applications_role_forgets_commands_and_cannot_change_what_they_came_to(roles: Roles) -> None:
    async with EventStore.open(roles.app_url) as store:
        backend = backend_of(store)
        await stored(backend, outcome("c", issued_at=1), outcome("d"))
        for statement in ("UPDATE journal_commands SET payload = '7'", "TRUNCATE journal_commands"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await execute(roles.app_url, statement)
        assert await backend.forget_commands("a", keep=1, before=None) == 1
        assert await remembered(backend) == {"d"}


async def test_the_applications_role_is_told_that_it_may_not_truncate(roles: Roles) -> None:
    async with EventStore.open(roles.app_url) as store:
        await store.append("a", happened(1, 2))
        with pytest.raises(CapabilityError, match="docs/postgres.md"):
            await store.truncate("a", 1, reason="test")
        assert await numbers(store.read("a")) == [1, 2]


async def test_the_keepers_role_cannot_delete_without_the_record(roles: Roles) -> None:
    async with EventStore.open(roles.keeper_url) as store:
        await store.append("a", happened(1, 2))
        with pytest.raises(asyncpg.RestrictViolationError):
            await execute(roles.keeper_url, "DELETE FROM journal_events")
        await store.truncate("a", 1, reason="asked for")
        for statement in ("DELETE FROM journal_removals", "UPDATE journal_removals SET reason = 'another'"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await execute(roles.keeper_url, statement)


async def test_every_role_is_told_which_journal_it_is(roles: Roles) -> None:
    identities: set[str] = set()
    for url in (roles.owner_url, roles.app_url, roles.keeper_url):
        async with EventStore.open(url) as store:
            identities.add(await store.archive().identity())
    assert len(identities) == 1


async def test_a_role_without_rights_is_refused_when_the_store_is_opened(own_roles: Roles) -> None:
    roles = own_roles
    await execute(roles.owner_url, f"REVOKE ALL ON eventstore_version FROM {roles.app}")
    with pytest.raises(CapabilityError, match="grant"):
        async with EventStore.open(roles.app_url):
            pass
    await execute(roles.owner_url, f"REVOKE USAGE ON SCHEMA public FROM {roles.app}")
    with pytest.raises((CapabilityError, SchemaError)):
        async with EventStore.open(roles.app_url):
            pass


async def test_the_documented_query_runs(roles: Roles) -> None:
    async with EventStore.open(roles.app_url) as store:
        await store.append("a", happened(1))
    query = documented("example: deposits by day").replace("'Deposited'", "'conformance.happened'")
    rows = await fetch(roles.app_url, query.replace("'amount'", "'number'"))
    assert [row[1] for row in rows] == [1]


async def test_two_roles_of_one_journal_see_each_others_events(roles: Roles) -> None:
    async with EventStore.open(roles.app_url) as app, EventStore.open(roles.keeper_url) as keeper:
        await asyncio.gather(*(store.append("a", happened(1)) for store in (app, keeper) for _ in range(5)))
        assert len(await collect(app.read("a"))) == len(await collect(keeper.read_all())) == 10
