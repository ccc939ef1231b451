"""A journal of any size, and the commands that read or write much of one."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from uuid_utils import uuid7

from eventstore import EventStore
from eventstore.codec import checksum_of

from .conftest import PROJECT, environment

START = 1_700_000_000_000_000
HOT_SHARE = 10
"""Every so many events one is of the stream `Wide-0`."""
STREAM_EVENTS = 50
"""About so many events are of each other stream."""

_EVENT_COLUMNS = (
    "position", "stream", "version", "type", "schema_version", "payload", "metadata", "event_id", "epoch",
    "recorded_at", "checksum",
)  # fmt: skip


class Command(NamedTuple):
    """A command line with `{url}` for a journal's URL and `{dir}` for its directory, and the files that it reads from
    and writes to there."""

    line: str
    stdin: str = os.devnull
    stdout: str = os.devnull


# In this order: some need what others made.
COMMANDS = (
    Command("streams {url}"),
    Command("streams {url} --json"),
    Command("events {url} Wide-0"),
    Command("events {url} Wide-0 --reverse --json"),
    Command("tail {url} --last 1000000000"),
    Command("show {url} cli_wide:Wide 0"),
    Command("diff {url} cli_wide:Wide 0 1"),
    Command("blame {url} cli_wide:Wide 0 /amount"),
    Command("blame {url} cli_wide:Wide 0 /amount --all"),
    Command("bisect {url} cli_wide:Wide 0 bookings<700"),
    Command("replay {url} cli_wide:Wide"),
    Command("replay {url} cli_wide:Wide --check"),
    Command("whatif {url} cli_wide:Wide --old . --new {dir}/new"),
    Command("verify {url}"),
    Command("owners {url} --streams"),
    Command("doctor {url}"),
    Command("export {url}", stdout="exported.jsonl"),
    Command("conflicts list {url}"),
    Command("retention plan {url} --keep-versions 10 --kind Wide --no-snapshots"),
    Command("schema check {url} cli_wide --all"),
    Command("audit query {url}"),
    Command("audit query {url} --newest --json"),
    Command("audit query {url} --csv"),
    Command("audit query {url} --parquet {dir}/all.parquet"),
    Command("audit query {url} --where /amount>=0 --json"),
    Command("audit stats {url}"),
    Command("audit stats {url} --where /amount>=0"),
    Command("audit trace {url} request-1 --limit 100000"),
    Command("audit keys new {dir}/seal.key"),
    Command("audit seal {url} --key {dir}/seal.key --anchor {dir}/anchor"),
    Command("audit verify {url} --public-key {dir}/seal.key.pub --anchor {dir}/anchor"),
    Command("audit prove {url} 1000 --out {dir}/proof.json"),
    Command("fork {url} cli_wide:Wide 0 {dir}/fork.db"),
    Command("rebuild snapshots {url} cli_wide:Wide --all"),
    Command("projections run {url} cli_wide:Sums"),
    Command("projections check {url} cli_wide:Sums"),
    Command("rebuild projections {url} cli_wide:Sums"),
    Command("dead-letters list {url}"),
    Command("copy {url} sqlite:///{dir}/copy.db --verify"),
    Command("migrate sqlite:///{dir}/imported.db"),
    Command("import sqlite:///{dir}/imported.db", stdin="exported.jsonl"),
    Command("retention apply {url} --keep-versions 10 --actor cli_wide:Wide"),
)


def build(path: Path, count: int) -> str:
    """A journal of so many events, a fast way. Returns its URL."""
    url = f"sqlite:///{path}"

    async def create() -> None:
        async with EventStore.open(url):
            pass

    asyncio.run(create())
    names, places = ", ".join(_EVENT_COLUMNS), ", ".join("?" * len(_EVENT_COLUMNS))
    with closing(sqlite3.connect(path)) as connection, connection:
        streams = count // STREAM_EVENTS + 1
        connection.executemany(
            "INSERT INTO journal_streams (id, stream_id, kind, created_at) VALUES (?, ?, 'Wide', 1)",
            ((number + 1, f"Wide-{number}") for number in range(streams)),
        )
        connection.executemany(f"INSERT INTO journal_events ({names}) VALUES ({places})", _events(count, streams))
    return url


def peak(command: Command, url: str, directory: Path) -> tuple[int, int]:
    """The exit code of a command, and the most memory that it had, in KiB: its own, or that of a process it began."""
    arguments = [part.format(url=url, dir=directory) for part in command.line.split()]
    code = (
        # What `getrusage` calls the most is at least what the process had that began this one.
        "import re, resource, sys; from eventstore.cli.app import main; code = main(sys.argv[1:]); "
        "own = int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]); "
        "most = max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); "
        "sys.stderr.write(f'\\npeak {most}'); sys.exit(code)"
    )
    with open(directory / command.stdin, "rb") as source, open(directory / command.stdout, "wb") as target:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=PROJECT,
            env=environment(MALLOC_ARENA_MAX="2"),
            stdin=source,
            stdout=target,
            stderr=subprocess.PIPE,
            # `retention apply` commits once for each of 20,000 streams.
            timeout=3600,
            check=False,
        )
    found = re.search(rb"\npeak (\d+)$", done.stderr)
    assert found is not None, done.stderr.decode()
    return done.returncode, int(found[1])


def _events(count: int, streams: int) -> Iterator[tuple[Any, ...]]:
    versions = [0] * streams
    for number in range(count):
        stream = 0 if number % HOT_SHARE == 0 else number % (streams - 1) + 1
        versions[stream] += 1
        payload = f'{{"amount":{number % 1000},"note":"a note that is as long as notes are"}}'
        notes = f'{{"correlation_id":"request-{number // 200}","user":"user-{number % 1009}"}}' if number % 2 else None
        checksum = checksum_of("cli-wide.booked", 1, payload.encode(), notes.encode() if notes else None)
        place = (number + 1, stream + 1, versions[stream])
        at = START + number * 1_000_000
        yield (*place, "cli-wide.booked", 1, payload, notes, uuid7().bytes, 0, at, checksum)
