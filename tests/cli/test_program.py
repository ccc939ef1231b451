"""The program as a whole: help, exit codes, signals, pipes, terminals, and what is never printed."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import pytest

from eventstore import EventStore
from eventstore.cli.exits import Exit
from eventstore.cli.messages import Messages

from .conftest import EVIL_ID, PROJECT, Result, Run, command, environment, start

ACCOUNT = "cli_ledger:Account"
COMMANDS = [
    *("streams", "events", "tail", "show", "diff", "blame", "bisect", "fork", "replay", "snapshot", "verify", "owners"),
    *("copy", "export", "import", "migrate", "doctor"),
]
GROUPS = {
    "rebuild": ["snapshots", "projections"],
    "audit": ["query", "trace", "stats"],
    "schema": ["export", "check", "diff"],
    "retention": ["plan", "apply"],
    "projections": ["list", "status", "run", "pause", "resume", "seek", "forget", "check"],
    "dead-letters": ["list", "show", "replay", "purge"],
}
NOTES = [
    "this module prints while it is imported",
    "note: 'Account-carol': the events up to version 3 were removed; it was folded from the snapshot at version 4, "
    "which could not be checked",
]
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def in_a_terminal(*arguments: str, columns: int = 100, **environ: str) -> Result:
    """Run the program with all its streams on a terminal. Its output and its errors come together."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    process = subprocess.Popen(
        command(*arguments),
        cwd=PROJECT,
        env=environment(TERM="xterm-256color", **environ),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    shown = bytearray()
    # Linux ends a terminal that nobody holds any more with an error, not with an end of file.
    with suppress(OSError):
        while chunk := os.read(controller, 65536):
            shown += chunk
    os.close(controller)
    return Result(process.wait(timeout=180), shown.decode().replace("\r\n", "\n"), "")


class TestHelp:
    def test_help_imports_no_database(self) -> None:
        code = "import sys; from eventstore.cli.app import main; main(['--help']); print(*sys.modules)"
        output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        modules = set(output.splitlines()[-1].split())
        assert not modules & {"sqlalchemy", "alembic", "sqlite3", "aiosqlite", "rich", "asyncpg"}

    def test_help_names_every_command_and_exit_code(self, cli: Run) -> None:
        result = cli("--help")
        assert result.code == 0
        for name in COMMANDS:
            assert re.search(rf"^  {name} ", result.out, re.MULTILINE)
        for code in Exit:
            assert re.search(rf"^ +{code.value}  ", result.out, re.MULTILINE)

    @pytest.mark.parametrize("name", COMMANDS)
    def test_every_command_has_an_example_and_json(self, cli: Run, name: str) -> None:
        result = cli(name, "-h")
        assert result.code == 0
        assert f"    eventstore {name} sqlite:///bank.db" in result.out
        assert "--json" in result.out

    def test_the_page_names_every_command_and_exit_code(self) -> None:
        page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text("utf-8")
        for name in COMMANDS:
            assert f"| `{name} URL" in page
        for code in Exit:
            assert f"| {code.value} | " in page

    @pytest.mark.parametrize("group", GROUPS)
    def test_every_command_of_a_group_has_an_example_and_stands_in_the_reference(self, cli: Run, group: str) -> None:
        reference = (Path(__file__).parents[2] / "docs" / "cli.md").read_text("utf-8")
        assert re.search(rf"^  {group} ", cli("--help").out, re.MULTILINE)
        shown = cli(group)
        assert (shown.code, shown.out) == (2, "")
        for name in GROUPS[group]:
            assert re.search(rf"^  {name} ", shown.err, re.MULTILINE)
            assert f"    eventstore {group} {name} " in cli(group, name, "-h").out
            assert re.search(rf"^\| `{group} .*\b{name}\b", reference, re.MULTILINE)

    def test_without_a_command_the_help_is_shown_as_wrong_usage(self, cli: Run) -> None:
        result = cli()
        assert (result.code, result.out) == (2, "")
        assert "Commands:" in result.err

    def test_the_version_is_the_distribution_s(self, program: Run) -> None:
        assert re.fullmatch(r"eventstore-actors \d+\.\d+\.\d+\n", program("--version").out)


class TestErrors:
    def test_an_error_is_one_line_on_stderr(self, program: Run) -> None:
        result = program("streams", "sqlite:////nowhere/at/all.db")
        assert (result.code, result.out) == (3, "")
        assert re.fullmatch(r"error: [^\n]+\n", result.err)

    def test_with_json_an_error_is_one_object_on_stderr(self, cli: Run, tmp_path: Path) -> None:
        result = cli("streams", f"sqlite:///{tmp_path}/nothing.db", "--json")
        assert (result.code, result.out) == (3, "")
        error = json.loads(result.err)
        assert (error["error"], error["exit_code"]) == ("SchemaMissing", 3)

    @pytest.mark.parametrize(
        "arguments",
        [
            ["streams"],
            ["strems", "memory://"],
            ["streams", "memory://", "extra"],
            ["streams", "memory://", "--nonsense"],
            ["events", "memory://", "a", "--limit", "-1"],
            ["events", "memory://", "a", "--after", "x"],
        ],
        ids=" ".join,
    )
    def test_wrong_usage_is_2_and_one_line(self, cli: Run, arguments: list[str]) -> None:
        result = cli(*arguments)
        assert (result.code, result.out) == (2, "")
        assert re.fullmatch(r"error: [^\n]+\n", result.err)
        assert json.loads(cli(*arguments, "--json").err)["exit_code"] == 2

    def test_an_unexpected_error_is_one_line_and_its_traceback_on_demand(
        self, cli: Run, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        result = cli("show", url, "cli_ledger:Unmade", "alice")
        assert result.code == 70
        assert re.fullmatch(r"error: unexpected LookupError: [^\n]+\n", result.err)
        monkeypatch.setenv("EVENTSTORE_TRACEBACK", "1")
        assert "in initial_state" in cli("show", url, "cli_ledger:Unmade", "alice").err

    def test_an_argument_that_is_no_text_is_an_error_like_any_other(self, url: str) -> None:
        for code, arguments in (2, [b"Account-\xff"]), (2, [b"--nonsense\xff", "--json"]):
            process = start("events", url, *arguments)
            _, errors = process.communicate(timeout=180)
            assert process.returncode == code
            assert errors.count(b"\n") == 1
            assert b"udcff" in errors

    def test_what_stands_behind_two_dashes_is_no_option(self, cli: Run) -> None:
        assert cli("events", "memory://", "--", "--json").err.startswith("error: stream '--json' has no events")


class TestSecrets:
    URL = "postgres://admin:s3cr3t-canary@db.example/bank?sslpassword=s3cr3t-canary"

    @pytest.mark.parametrize(
        "arguments",
        [
            ["streams", URL],
            ["doctor", URL],
            ["doctor", URL, "--json"],
            ["migrate", URL],
            ["migrate", URL, "--check", "--json"],
            ["streams", "memory://", URL],
            ["events", "memory://", URL],
            ["events", "memory://", "a", "--limit", URL],
            ["show", "memory://", URL, "alice"],
            ["show", "memory://", ACCOUNT, URL],
            ["replay", "memory://", ACCOUNT, URL],
            ["streams", URL.replace("://", ":/")],
            ["streams", "sqlite:///x.db?password=s3cr3t-canary"],
            [URL],
        ],
        ids=lambda arguments: " ".join(arguments).replace("s3cr3t-canary", "…"),
    )
    def test_a_password_is_never_shown(self, cli: Run, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("EVENTSTORE_TRACEBACK", "1")
        result = cli(*arguments)
        assert result.code != 0
        assert "s3cr3t" not in result.err
        if arguments[0] != "replay":  # There it is the key of an actor that does not exist.
            assert "s3cr3t" not in result.out

    @pytest.mark.parametrize("password", ["pw", "it's", "p%40ss", "a b\\c"])
    def test_a_password_of_any_form_is_never_shown(self, password: str) -> None:
        url = f"postgres://admin:{password}@db/bank"
        messages = Messages(["streams", url])
        for text in (f"cannot open {url}!", f"bad argument {url!r}"):
            assert password not in messages.masked(text)
            assert "postgres://admin:***@db/bank" in messages.masked(text)

    def test_a_password_is_not_shown_without_its_url_either(self) -> None:
        messages = Messages(["doctor", "postgres://admin:p%40ssword@db/bank?sslkey=s3cr3t-canary"])
        shown = messages.masked("login failed: p@ssword, p%40ssword, s3cr3t-canary; pass")
        assert shown == "login failed: ***, ***, ***; pass"

    def test_the_rest_of_the_url_is(self, cli: Run) -> None:
        assert "postgres://admin:***@db.example/bank?sslpassword=***" in cli("doctor", self.URL).out


class TestEscapes:
    @pytest.mark.parametrize(
        "arguments",
        [["streams"], ["events", EVIL_ID], ["events", EVIL_ID + "x"], ["tail"], ["show", ACCOUNT, EVIL_ID[8:]]],
        ids=lambda arguments: arguments[0],
    )
    @pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
    def test_no_control_character_is_printed(self, cli: Run, url: str, arguments: list[str], form: list[str]) -> None:
        result = cli(arguments[0], url, *arguments[1:], *form)
        assert result.out + result.err
        assert not CONTROL.search(result.out + result.err)

    def test_an_id_is_one_cell_whatever_is_in_it(self, cli: Run, url: str) -> None:
        line = next(line for line in cli("streams", url).lines if "red" in line)
        shown = r"Account-\x1b[31mred\x1b[0m\u202e\r\n\t\\ [bold]x[/bold] é"
        assert line.split("\t") == [shown, "1", "0"]

    def test_json_means_what_is_stored(self, cli: Run, url: str) -> None:
        assert EVIL_ID in [stream["stream_id"] for stream in cli("streams", url, "--json").objects]

    def test_markup_in_data_is_not_interpreted_on_a_terminal(self, url: str) -> None:
        shown = in_a_terminal("tail", url, columns=300).out
        assert r"\u202e\r\n\t\\ [bold]x[/bold] é" in shown
        assert "[red]y[/red]" in shown
        assert r"\x1b[31mred" in shown
        assert "\x1b[31m" not in shown

    @pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
    def test_a_poor_encoding_fails_nothing(self, url: str, encoding: str) -> None:
        text, objects = (
            start("tail", url, *form, PYTHONIOENCODING=encoding).communicate(timeout=180)[0]
            for form in ([], ["--json"])
        )
        assert b"\\U0001f642" in text
        assert "🙂" in objects.decode()


class TestOutput:
    def test_nothing_is_cut_or_coloured_where_there_is_no_terminal(self, program: Run, url: str) -> None:
        result = program("events", url, "Account-huge")
        assert len(result.lines) == 1
        assert "x" * 500 in result.out
        assert "\x1b" not in result.out

    def test_a_terminal_gets_a_header_and_lined_up_columns(self, url: str) -> None:
        result = in_a_terminal("streams", url)
        header, _, alice, *_ = re.sub(r"\x1b\[[0-9;]*m", "", result.out).splitlines()
        assert result.code == 0
        assert header.split() == ["STREAM", "VERSION", "TRUNCATED"]
        assert alice.split() == ["Account-alice", "5", "0"]
        assert header.index("VERSION") + len("VERSION") == alice.index("5") + 1

    def test_a_terminal_shows_long_payloads_whole(self, url: str) -> None:
        result = in_a_terminal("events", url, "Account-huge", columns=60)
        assert "x" * 500 in result.out

    def test_a_replay_shows_a_bar_on_a_terminal_and_takes_it_away(self, url: str) -> None:
        result = in_a_terminal("replay", url, ACCOUNT)
        assert "Account: events" in result.out
        assert result.out.endswith("\x1b[1;32mno differences\x1b[0m\n")

    def test_a_full_disk_is_an_error(self, url: str) -> None:
        with Path("/dev/full").open("wb") as full:
            process = start("events", url, "Account-alice", stdout=full.fileno())
            _, errors = process.communicate(timeout=180)
        assert process.returncode == 3
        assert errors == b"error: the output cannot be written: No space left on device\n"

    def test_closed_streams_are_no_error(self, url: str) -> None:
        shell = f'"$0" -m eventstore.cli streams {url} >&- 2>&-'
        ended = subprocess.run(["sh", "-c", shell, sys.executable], cwd=PROJECT, env=environment(), check=False)
        assert ended.returncode == 0

    @pytest.mark.parametrize("arguments", [["tail"], ["tail", "-n1", "--follow"], ["replay", ACCOUNT]], ids=" ".join)
    def test_a_reader_that_goes_away_ends_it_quietly(self, url: str, arguments: list[str]) -> None:
        process = start(arguments[0], url, *arguments[1:], PYTHONWARNINGS="default")
        assert process.stdout is not None
        assert process.stderr is not None
        if "--follow" in arguments:
            # Nothing more comes: it is the pipe itself that tells.
            process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
        process.stderr.close()
        assert process.wait(timeout=180) == Exit.READER_GONE
        assert errors.decode().splitlines() in ([], NOTES)


class TestInterrupt:
    def test_following_shows_new_events_until_it_is_interrupted(self, own_journal: Path, own_url: str) -> None:
        from cli_ledger import Deposited  # type: ignore[import-not-found]

        async def append() -> None:
            async with EventStore.open(own_url) as store:
                await store.append("Account-new", [Deposited(amount=99)])

        process = start("tail", own_url, "--follow", "-n", "1", "--json", "--kind", "Account")
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["stream_id"] == "Account-huge"
        asyncio.run(append())
        assert json.loads(process.stdout.readline())["payload"] == {"amount": 99, "note": ""}
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=180)
        assert (process.returncode, output, errors) == (130, b"", b"")
        # A closed store leaves no log beside its file.
        assert not own_journal.with_name("own.db-wal").exists()


class TestProgram:
    @pytest.mark.parametrize(
        ("arguments", "code"),
        [
            (["streams"], 0),
            (["events", "Account-alice"], 0),
            (["show", ACCOUNT, "nobody"], 1),
            (["replay", ACCOUNT], 0),
            (["rebuild", "snapshots", ACCOUNT], 2),
            (["doctor"], 0),
            (["migrate", "--check"], 0),
        ],
        ids=lambda value: value[0] if isinstance(value, list) else None,
    )
    def test_the_exit_code_reaches_the_shell(self, program: Run, url: str, arguments: list[str], code: int) -> None:
        name = 2 if arguments[0] == "rebuild" else 1
        result = program(*arguments[:name], url, *arguments[name:])
        assert result.code == code
        assert "Traceback" not in result.err

    def test_the_console_script_is_this_program(self) -> None:
        from importlib.metadata import entry_points

        (script,) = [point for point in entry_points(group="console_scripts") if point.name == "eventstore"]
        assert script.value == "eventstore.cli.command:main"
