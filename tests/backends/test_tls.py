"""Stores over TLS: which servers are spoken to, and which are told nothing."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from backends.conformance.events import happened, numbers
from eventstore import BackendUnavailable, EventStore, InvalidStoreUrl, schema
from eventstore.url import parse_store_url
from tests.servers.tls import Authority, TlsFront

# The words of each scheme for the same.
_WORDS = {
    "postgres": {
        "authority": "sslmode=verify-full&sslrootcert={}",
        "system": "sslmode=verify-full",
        "any name": "sslmode=verify-ca&sslrootcert={}",
        "any server": "sslmode=require",
        "certificate": "sslcert={}&sslkey={}",
    },
    "redis": {
        "authority": "ssl_ca_certs={}",
        "system": "",
        "any name": "ssl_check_hostname=false&ssl_ca_certs={}",
        "any server": "ssl_cert_reqs=none",
        "certificate": "ssl_certfile={}&ssl_keyfile={}",
    },
}


class Place:
    """A journal behind a front that speaks TLS, and its URLs."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self.is_postgres = self._parts.scheme == "postgresql"
        self._words = _WORDS["postgres" if self.is_postgres else "redis"]

    def front(self, context: ssl.SSLContext) -> TlsFront:
        host, port = self._parts.hostname or "", self._parts.port or 0
        return TlsFront(host, port, context, is_postgres=self.is_postgres)

    def url(
        self,
        front: TlsFront,
        words: str,
        *paths: Path,
        certificate: tuple[Path, Path] | None = None,
        connect_timeout: int = 20,
    ) -> str:
        scheme, login = ("postgresql", f"{self._parts.username}:hunter2@") if self.is_postgres else ("rediss", "")
        said = [self._parts.query, f"connect_timeout={connect_timeout}", self._words[words].format(*paths)]
        if certificate is not None:
            said.append(self._words["certificate"].format(*certificate))
        return f"{scheme}://{login}localhost:{front.port}{self._parts.path}?{'&'.join(filter(None, said))}"


@pytest.fixture(params=["postgres_url", "redis_url"])
def place(request: pytest.FixtureRequest) -> Place:
    return Place(request.getfixturevalue(request.param))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


async def use(url: str) -> None:
    """Append and read, and look at the schema, which has another way of connecting."""
    assert (await asyncio.to_thread(schema.check, parse_store_url(url))).is_current
    async with EventStore.open(url) as store:
        appended = await asyncio.gather(*(store.append("a", happened(number)) for number in range(50)))
        assert [one.versions for one in appended] == [(number + 1,) for number in range(50)]
        assert await numbers(store.read("a")) == list(range(50))


async def assert_told_nothing(url: str, front: TlsFront) -> None:
    with pytest.raises(BackendUnavailable, match="CERTIFICATE_VERIFY_FAILED|certificate verify failed") as refused:
        await use(url)
    with pytest.raises(BackendUnavailable) as refused_by_the_store:
        async with EventStore.open(url):
            pass
    assert front.bytes_from_clients == 0
    assert "hunter2" not in f"{refused.value!r} {refused_by_the_store.value!r}"


async def test_a_server_whose_certificate_is_of_the_named_authority_is_spoken_to(
    place: Place, authority: Authority
) -> None:
    async with place.front(authority.context("localhost")) as front:
        await use(place.url(front, "authority", authority.path))
        assert front.bytes_from_clients > 1000


async def test_a_server_whose_certificate_is_of_another_authority_is_told_nothing(
    place: Place, authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path, "another")
    async with place.front(authority.context("localhost")) as front:
        await assert_told_nothing(place.url(front, "authority", other.path), front)


async def test_a_server_whose_authority_nobody_has_named_is_told_nothing(place: Place, authority: Authority) -> None:
    async with place.front(authority.context("localhost")) as front:
        await assert_told_nothing(place.url(front, "system"), front)


async def test_a_server_with_the_certificate_of_another_host_is_told_nothing_unless_the_url_says_any_name(
    place: Place, authority: Authority
) -> None:
    async with place.front(authority.context("elsewhere.example")) as front:
        await assert_told_nothing(place.url(front, "authority", authority.path), front)
        await use(place.url(front, "any name", authority.path))


async def test_any_server_is_spoken_to_where_the_url_says_so(place: Place, authority: Authority) -> None:
    async with place.front(authority.context("elsewhere.example")) as front:
        await use(place.url(front, "any server"))


async def test_a_client_shows_its_certificate_to_a_server_that_asks_for_one(place: Place, authority: Authority) -> None:
    own = authority.issue("ann")
    async with place.front(authority.context("localhost", asks_clients=True)) as front:
        await use(place.url(front, "authority", authority.path, certificate=own))
        said = front.bytes_from_clients
        with pytest.raises(BackendUnavailable):
            # A Postgres that hangs up may be one that is about to start, and is asked again until the time is over.
            async with EventStore.open(place.url(front, "authority", authority.path, connect_timeout=1)):
                pass
        assert front.bytes_from_clients == said


async def test_a_certificate_that_is_not_there_is_told_as_such(
    place: Place, authority: Authority, tmp_path: Path
) -> None:
    async with place.front(authority.context("localhost")) as front:
        for url in (
            place.url(front, "authority", tmp_path / "nowhere.pem"),
            place.url(front, "any server", certificate=(tmp_path / "nowhere.crt", tmp_path / "nowhere.key")),
        ):
            with pytest.raises(InvalidStoreUrl, match="cannot be used: .*No such file"):
                await use(url)
            with pytest.raises(InvalidStoreUrl, match="cannot be used: .*No such file"):
                async with EventStore.open(url):
                    pass
        assert front.bytes_from_clients == 0
