"""The password of a Postgres URL that holds none: libpq's PGPASSWORD, or its password file."""

from __future__ import annotations

import getpass
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

_FIELD = r"((?:[^:\\]|\\.)*)"
_LINE = re.compile(":".join([_FIELD] * 4) + ":(.*)")


def password_from_file(places: Sequence[tuple[str, int]], database: str, user: str | None) -> str | None:
    """The first password for one of the hosts and their ports in PGPASSFILE or `~/.pgpass`, as libpq reads it. None
    where PGPASSWORD says it, where there is no file, or where others than its owner may read it.

    The driver reads the file too, but leaves the backslashes in what it has read, so that no password was right that
    holds a colon or a backslash.
    """
    if os.environ.get("PGPASSWORD"):
        return None
    try:
        path = Path(os.environ.get("PGPASSFILE") or Path.home() / ".pgpass")
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) or mode & (stat.S_IRWXG | stat.S_IRWXO):
            return None
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        who = user or os.environ.get("PGUSER") or getpass.getuser()
    except (OSError, RuntimeError, KeyError, ImportError):
        # The latter where the process's user has no home, or no name.
        return None
    entries = [matched.groups() for line in lines if not line.startswith("#") and (matched := _LINE.match(line))]
    for host, port in places:
        # Who is asked by a socket is this machine, whatever the socket's directory.
        names = {host, "localhost"} if host.startswith("/") else {host}
        wanted = (names, {str(port)}, {database}, {who})
        for *fields, password in entries:
            if all(field == "*" or _unescaped(field) in of for field, of in zip(fields, wanted, strict=True)):
                return _unescaped(password.rstrip("\r"))
    return None


def _unescaped(field: str) -> str:
    return re.sub(r"\\(.)", r"\1", field)
