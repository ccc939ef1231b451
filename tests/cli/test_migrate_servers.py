"""`eventstore migrate` on databases that are servers."""

from __future__ import annotations

import pytest

from eventstore.url import parse_store_url

from .conftest import Run


@pytest.fixture(params=["empty_postgres_url", "empty_redis_url"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


def test_a_journal_is_made_once(cli: Run, url: str) -> None:
    assert cli("migrate", url) == (0, f"{url} is at schema revision 0001 now (there was no journal)\n", "")
    assert cli("migrate", url) == (0, f"{url} is at schema revision 0001 already: nothing was changed\n", "")


def test_check_says_what_would_be_done_and_does_nothing(cli: Run, url: str) -> None:
    for _ in range(2):
        result = cli("migrate", url, "--check")
        assert result.code == 1
        assert "pending   0001" in result.lines
    cli("migrate", url)
    assert cli("migrate", url, "--check").code == 0


def test_a_revision_that_is_not_known_is_an_error(cli: Run, url: str) -> None:
    result = cli("migrate", url, "--to", "9999")
    assert (result.code, result.out) == (3, "")
    assert "there is no schema revision '9999'; those of this version are 0001" in result.err
    assert cli("migrate", url, "--check").code == 1


def test_the_sql_for_postgres_is_printed_and_opens_nothing(cli: Run) -> None:
    result = cli("migrate", "postgresql://ann:hunter2@127.0.0.1:1/shop?schema=audit", "--sql")
    assert (result.code, result.err) == (0, "")
    assert "CREATE TABLE journal_events" in result.out
    assert 'SET LOCAL search_path TO "audit"' in result.out
    assert "hunter2" not in result.out


def test_there_is_no_sql_for_redis(cli: Run) -> None:
    result = cli("migrate", "redis://127.0.0.1:1/0", "--sql")
    assert (result.code, result.out) == (3, "")
    assert "redis:// stores are not made by SQL" in result.err


@pytest.mark.parametrize("command", ["migrate", "doctor"])
@pytest.mark.parametrize("scheme", ["postgresql", "redis"])
def test_a_server_that_is_not_there_is_an_error_without_a_password(cli: Run, command: str, scheme: str) -> None:
    path = {"postgresql": "/shop", "redis": "/0"}[scheme]
    result = cli(command, f"{scheme}://ann:hunter2@127.0.0.1:1{path}")
    assert result.code == {"migrate": 3, "doctor": 1}[command]
    assert "BackendUnavailable" in result.out or "127.0.0.1:1" in result.err
    assert "hunter2" not in result.out + result.err


@pytest.mark.parametrize("fixture", ["postgres_url", "redis_url"])
def test_doctor_describes_a_healthy_server(cli: Run, request: pytest.FixtureRequest, fixture: str) -> None:
    url: str = request.getfixturevalue(fixture)
    result = cli("doctor", url)
    assert result.code == 0, result
    fields = dict(line.split("  ", 1) for line in result.lines[:-1])
    assert fields["backend"].strip() == parse_store_url(url).scheme
    assert fields["schema"].strip() == "0001"
    promised = "process-crash" if "durability=process-crash" in url else "power-loss"
    assert fields["durability"].strip().startswith(f"{promised}: ")
    assert fields["lag"].strip() == "none"
    assert result.lines[-1] == "healthy"


@pytest.mark.parametrize("fixture", ["empty_postgres_url", "empty_redis_url"])
def test_doctor_names_what_makes_a_missing_journal(cli: Run, request: pytest.FixtureRequest, fixture: str) -> None:
    url: str = request.getfixturevalue(fixture)
    result = cli("doctor", url)
    assert result.code == 1
    assert "problem: SchemaMissing" in result.out
    assert result.out.replace("'", "").count(f"eventstore migrate {url}") == result.out.count("eventstore migrate") == 1
