"""How a server is started so that it is nobody of importance, and does not outlive the tests."""

from __future__ import annotations

import functools
import os
import pwd
import subprocess
from typing import NamedTuple

from .binaries import ServerUnavailable


class Account(NamedTuple):
    """Who a program runs as: what stands before its command line, or the ids its process changes to."""

    prefix: tuple[str, ...] = ()
    uid: int | None = None
    gid: int | None = None


@functools.cache
def unprivileged() -> Account:
    """An account for a program that refuses to run as root, as Postgres does."""
    if os.geteuid() != 0:
        return Account()
    # Inside a user namespace of its own the process is user 1000, and on disk it is still root: there is no account
    # to make, and no file to give away.
    namespace = ("unshare", "--user", "--map-user=1000", "--map-group=1000", "--")
    if _works(*namespace):
        return Account(namespace)
    # Containers often refuse user namespaces. There the user is changed for real.
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(uid=entry.pw_uid, gid=entry.pw_gid)
    raise ServerUnavailable(
        "Postgres does not run as root, and here are neither user namespaces nor an account named postgres or nobody: "
        "run the tests as another user, or set PG_DSN"
    )


@functools.cache
def leash(signal_name: str) -> tuple[str, ...]:
    """What stands before a command so that the kernel signals it when the process that started it dies.

    The kernel goes by the thread that started it, so that is to be the main one.
    """
    prefix = ("setpriv", "--pdeathsig", signal_name, "--")
    if not _works(*prefix):
        raise ServerUnavailable("the tests start their servers with setpriv: install util-linux")
    return prefix


def _works(*prefix: str) -> bool:
    try:
        done = subprocess.run(
            [*prefix, "true"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0
