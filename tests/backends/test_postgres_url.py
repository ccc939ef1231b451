"""Postgres URLs: what they mean, what is refused, and that no password is shown."""

from __future__ import annotations

import ssl
from pathlib import Path
from urllib.parse import quote

import pytest

from eventstore import EventStore, InvalidStoreUrl
from eventstore.postgres_url import PostgresTarget, postgres_target
from eventstore.url import parse_store_url


def target(url: str) -> PostgresTarget:
    return postgres_target(parse_store_url(url))


@pytest.mark.parametrize(
    ("url", "hosts", "user", "password", "database"),
    [
        ("postgresql://db.example.com/bank", [("db.example.com", 5432)], None, None, "bank"),
        ("postgres://ann:pw@127.0.0.1:6000/bank", [("127.0.0.1", 6000)], "ann", "pw", "bank"),
        ("postgresql://a%40b:p%2F%3A%40%20w@h/x%20y", [("h", 5432)], "a@b", "p/:@ w", "x y"),
        ("postgresql://h/a%2Fb%3F", [("h", 5432)], None, None, "a/b?"),
        ("postgresql://ann@[::1]:6000/bank", [("::1", 6000)], "ann", None, "bank"),
        ("postgresql://ann@/bank?host=/run/pg&port=6000", [("/run/pg", 6000)], "ann", None, "bank"),
        ("postgresql://ann@%2Frun%2Fpg:6000/bank", [("/run/pg", 6000)], "ann", None, "bank"),
        ("postgresql:///bank?host=h&user=ann&password=pw", [("h", 5432)], "ann", "pw", "bank"),
        ("postgresql://one:1,two:2/bank", [("one", 1), ("two", 2)], None, None, "bank"),
        ("postgresql:///bank?host=one,two&port=1,2", [("one", 1), ("two", 2)], None, None, "bank"),
        ("postgresql:///bank?host=one,two&port=6000", [("one", 6000), ("two", 6000)], None, None, "bank"),
    ],
)
def test_the_parts_are_those_that_libpq_would_find(
    url: str, hosts: list[tuple[str, int]], user: str | None, password: str | None, database: str
):
    found = target(url)
    assert (list(found.hosts), found.user, found.password, found.database) == (hosts, user, password, database)


def test_without_a_host_the_server_is_looked_for_on_this_machine():
    hosts = [host for host, _ in target("postgresql:///bank").hosts]
    assert hosts[-1] == "localhost"
    assert all(host.startswith("/") for host in hosts[:-1])


def test_what_is_not_said_has_a_default():
    found = target("postgresql://localhost/bank")
    assert (found.schema, found.durability, found.pooling) == ("public", "power-loss", "auto")
    assert (found.connect_timeout, found.command_timeout, found.pool_size) == (10, 30, 4)


@pytest.mark.parametrize(
    ("url", "sslmode"),
    [
        ("postgresql://localhost/bank", "prefer"),
        ("postgresql://127.3.4.5/bank", "prefer"),
        ("postgresql://[::1]/bank", "prefer"),
        ("postgresql:///bank?host=/run/pg", "prefer"),
        ("postgresql://db/bank", "verify-full"),
        ("postgresql://10.0.0.1/bank", "verify-full"),
        ("postgresql://localhost,db/bank", "verify-full"),
        ("postgresql://db/bank?sslmode=disable", "disable"),
        ("postgresql://localhost/bank?sslmode=verify-full", "verify-full"),
    ],
)
def test_another_machine_is_spoken_to_over_tls_that_is_verified_unless_the_url_says_otherwise(url: str, sslmode: str):
    assert target(url).sslmode == sslmode


@pytest.mark.parametrize(
    ("sslmode", "checks_host", "verifies"),
    [
        ("require", False, ssl.CERT_NONE),
        ("verify-ca", False, ssl.CERT_REQUIRED),
        ("verify-full", True, ssl.CERT_REQUIRED),
    ],
)
def test_each_sslmode_checks_what_its_name_says(sslmode: str, checks_host: bool, verifies: ssl.VerifyMode):
    context = target(f"postgresql://db/bank?sslmode={sslmode}").connect_arguments()["ssl"]
    assert isinstance(context, ssl.SSLContext)
    assert (context.check_hostname, context.verify_mode) == (checks_host, verifies)
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize(
    ("url", "variables", "hosts", "sslmode"),
    [
        ("postgresql:///bank", {"PGHOST": "h"}, [("h", 5432)], "verify-full"),
        ("postgresql:///bank", {"PGHOST": "h,i", "PGPORT": "1,2"}, [("h", 1), ("i", 2)], "verify-full"),
        ("postgresql://h,i:7/bank", {"PGPORT": "6000"}, [("h", 6000), ("i", 7)], "verify-full"),
        ("postgresql://h/bank", {"PGHOST": "other", "PGSSLMODE": "require"}, [("h", 5432)], "require"),
        ("postgresql:///bank?host=h&port=7", {"PGHOST": "other", "PGPORT": "6000"}, [("h", 7)], "verify-full"),
        ("postgresql://localhost/bank", {"PGSSLMODE": "verify-ca"}, [("localhost", 5432)], "verify-ca"),
        ("postgresql://h/bank?sslmode=require", {"PGSSLMODE": "disable"}, [("h", 5432)], "require"),
    ],
)
def test_what_a_url_does_not_say_is_taken_from_the_environment(
    url: str,
    variables: dict[str, str],
    hosts: list[tuple[str, int]],
    sslmode: str,
    monkeypatch: pytest.MonkeyPatch,
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = target(url)
    assert (list(found.hosts), found.sslmode) == (hosts, sslmode)


def test_certificates_of_the_environment_are_taken_where_there_is_tls_for_certain(monkeypatch: pytest.MonkeyPatch):
    for name in ("PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY"):
        monkeypatch.setenv(name, f"/{name}")
    found = target("postgresql://h/bank?sslkey=/own")
    assert (found.sslrootcert, found.sslcert, found.sslkey) == ("/PGSSLROOTCERT", "/PGSSLCERT", "/own")
    assert target("postgresql://h/bank?sslmode=disable").sslrootcert is None
    assert target("postgresql://localhost/bank").sslrootcert is None


@pytest.mark.parametrize(("name", "value"), [("PGSSLMODE", "always"), ("PGPORT", "many")])
def test_a_variable_that_cannot_be_meant_is_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidStoreUrl, match=name):
        target("postgresql://h/bank")


@pytest.mark.parametrize(
    ("line", "url", "password"),
    [
        (r"h:5432:bank:ann:plain", "postgresql://ann@h/bank", "plain"),
        (r"*:*:*:*:a\:b\\c@/ü ", "postgresql://ann@h/bank", "a:b\\c@/ü "),
        (r"*:*:*:*:a:b", "postgresql://ann@h/bank", "a:b"),
        (r"localhost:6000:bank:ann:by socket", "postgresql://ann@/bank?host=/run/pg&port=6000", "by socket"),
        (r"/run/pg:6000:bank:ann:by path", "postgresql://ann@/bank?host=/run/pg&port=6000", "by path"),
        (r"\:\:1:*:a\\b\:c:ann:escaped", "postgresql://ann@[::1]/a%5Cb%3Ac", "escaped"),
        (r"*:*:*:ann:hers", "postgresql://ann:own@h/bank", "own"),
        (r"*:*:*:bob:his", "postgresql://ann@h/bank", None),
        (r"*:5433:*:*:another port", "postgresql://ann@h/bank", None),
        (r"*:*:shop:*:another database", "postgresql://ann@h/bank", None),
        (r"i:*:*:*:of the second host", "postgresql://ann@h,i/bank", "of the second host"),
        (r"#*:*:*:*:a comment", "postgresql://ann@h/bank", None),
    ],
)
def test_a_password_is_found_in_libpqs_file(
    line: str, url: str, password: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "pgpass"
    file.write_text(f"# who may what\n\nincomplete\n{line}\n*:*:*:bea:the last\n", encoding="utf-8")
    file.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(file))
    assert target(url).connect_arguments()["password"] == password


def test_a_password_file_that_others_may_read_or_that_pgpassword_overrides_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    bank = target("postgresql://ann@h/bank")
    assert bank.connect_arguments()["password"] is None
    file = tmp_path / ".pgpass"
    file.write_text("*:*:*:ann:hers\n")
    file.chmod(0o600)
    assert bank.connect_arguments()["password"] == "hers"
    monkeypatch.setenv("PGPASSWORD", "")  # As libpq has it: none.
    assert bank.connect_arguments()["password"] == "hers"
    monkeypatch.setenv("PGPASSWORD", "another")
    assert bank.connect_arguments()["password"] is None
    monkeypatch.delenv("PGPASSWORD")
    file.chmod(0o640)
    assert bank.connect_arguments()["password"] is None


def test_sslmode_disable_uses_no_tls():
    assert target("postgresql://db/bank?sslmode=disable").connect_arguments()["ssl"] is False


def test_a_named_authority_is_verified_with_sslmode_require_too(tmp_path: Path):
    with pytest.raises(InvalidStoreUrl, match="file that cannot be used"):
        target(f"postgresql://db/bank?sslmode=require&sslrootcert={tmp_path}/none.pem").connect_arguments()
    context = target("postgresql://db/bank?sslmode=require&sslrootcert=system").connect_arguments()["ssl"]
    assert context.verify_mode == ssl.CERT_REQUIRED


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://localhost", "name a database"),
        ("postgresql://localhost/", "name a database"),
        ("postgresql://localhost/a/b", "%2F"),
        ("postgresql://localhost/bank?colour=blue", "unknown parameter colour"),
        ("postgresql://localhost/bank?options=-csearch_path=x", "unknown parameter options"),
        ("postgresql://localhost/bank?schema=", "schema"),
        ("postgresql://localhost/bank?schema=Big", "schema"),
        ('postgresql://localhost/bank?schema=a";drop', "schema"),
        ("postgresql://localhost/bank?schema=" + "a" * 64, "schema"),
        ("postgresql://localhost/bank?schema=1a", "schema"),
        ("postgresql://localhost/bank?schema=pg_mine", "schema"),
        ("postgresql://localhost/bank?sslmode=maybe", "sslmode is disable or"),
        ("postgresql://localhost/bank?sslrootcert=/x.pem", "may go without TLS"),
        ("postgresql://db/bank?sslkey=/x.pem", "sslcert"),
        ("postgresql://localhost:0/bank", "port"),
        ("postgresql://localhost:65536/bank", "port"),
        ("postgresql://localhost:x/bank", "port"),
        ("postgresql://localhost/bank?port=1,2", "one port"),
        ("postgresql://localhost:1/bank?port=2", "port is given twice"),
        ("postgresql://localhost/bank?host=other", "host is given twice"),
        ("postgresql://ann@localhost/bank?user=bob", "user is given twice"),
        ("postgresql://::1/bank", "IPv6"),
        ("postgresql://localhost/bank?connect_timeout=0", "connect_timeout"),
        ("postgresql://localhost/bank?command_timeout=-1", "command_timeout"),
        ("postgresql://localhost/bank?command_timeout=nan", "command_timeout"),
        ("postgresql://localhost/bank?command_timeout=soon", "command_timeout"),
        ("postgresql://localhost/bank?pool_size=0", "pool_size"),
        ("postgresql://localhost/bank?pool_size=1000", "pool_size"),
        ("postgresql://localhost/bank?pool_size=\u0663", "pool_size"),
        ("postgresql://localhost/bank?durability=none", "durability"),
        ("postgresql://localhost/bank?pooling=statement", "pooling"),
        ("postgresql://localhost/%ff", "UTF-8"),
        ("postgresql://localhost/a%00b", "%00"),
        ("postgresql://localhost/bank?application_name=" + "a" * 64, "application_name"),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused_before_anything_is_opened(url: str, says: str):
    with pytest.raises(InvalidStoreUrl, match=says):
        EventStore.open(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:hunter2@db/bank?colour=blue",
        "postgresql://ann:hun/ter2@db/bank",
        "postgresql://ann:hunter2/@db/bank",
        "postgresql://ann:hunter2",
        "postgresql://hunter2:hunter2/bank?port=x",
        "postgresql://ann:hunter2?colour=blue",
        "postgresql://ann:hun:ter2/bank",
        "postgresql://db/bank?password=hunter2&colour=blue",
        "postgresql://db/bank?sslmode=verify-full&password=hunter2&sslrootcert=/none.pem",
    ],
)
def test_no_error_shows_a_password(url: str):
    with pytest.raises(InvalidStoreUrl) as refused:
        target(url).connect_arguments()
    assert "ter2" not in str(refused.value)


@pytest.mark.parametrize("password", ["hunter2", "p@s:s/w?r#d %", "ü"])
def test_no_repr_shows_a_password(password: str):
    found = target(f"postgresql://ann:{quote(password, safe='')}@db/bank")
    assert found.password == password
    assert found.connect_arguments()["password"] == password
    assert password not in repr(found) + str(found)
