"""The server behind a URL, as it is found when connecting: whether it can hold a journal, and how durably."""

from __future__ import annotations

from typing import NamedTuple

from redis import exceptions as driver

from backends.redis_connection import RedisConnection
from backends.redis_url import RedisTarget
from eventstore.backend import Durability
from eventstore.errors import BackendUnavailable, DurabilityError

_OLDEST = (6, 2)

_WAY_OUT = (
    "change it (CONFIG SET, and the server's configuration file), or ask for less in the URL: "
    "durability=process-crash, or durability=best-effort for whatever the server has"
)


class ServerSettings(NamedTuple):
    """What decides how durable the server is. None: the user may not see it."""

    appendonly: str | None
    appendfsync: str | None
    no_appendfsync_on_rewrite: str | None
    maxmemory_policy: str | None


class RedisServer(NamedTuple):
    """The server's name and version, as far as the user may see them, and the durability that appends have on it."""

    name: str
    durability: Durability


async def check_server(connection: RedisConnection, target: RedisTarget) -> RedisServer:
    """What the server is. Raises `DurabilityError` if it is less than the URL asks for,
    and `BackendUnavailable` for a server that is too old, or a replica."""
    info = await _info(connection)
    _check_version(info)
    if info.get("role") not in {None, "master"}:
        raise BackendUnavailable(
            f"{target.url} is a read-only replica of {info.get('master_host')}:{info.get('master_port')}: "
            "name the primary in the URL"
        )
    settings = await _settings(connection, info)
    wanted = target.durability
    if wanted is None:
        return RedisServer(_name(info), _found(settings))
    lacking = _lacking(settings, wanted)
    if lacking:
        raise DurabilityError(f"{target.url}: durability={wanted.value} needs {'; '.join(lacking)}. {_WAY_OUT}")
    return RedisServer(_name(info), wanted)


def _name(info: dict[str, str]) -> str:
    if "valkey_version" in info:
        return f"Valkey {info['valkey_version']}"
    return f"Redis {info['redis_version']}" if "redis_version" in info else "Redis"


async def _info(connection: RedisConnection) -> dict[str, str]:
    info: dict[str, str] = {}
    for section in (b"server", b"replication", b"persistence", b"memory"):
        try:
            text: bytes = await connection.call(b"INFO", section)
        except driver.NoPermissionError:
            # The role is found out by the first write then, and durability by CONFIG.
            return {}
        pairs = (line.partition(":") for line in text.decode(errors="replace").splitlines())
        info.update((name, value) for name, _, value in pairs)
    return info


async def _settings(connection: RedisConnection, info: dict[str, str]) -> ServerSettings:
    values: list[str | None] = []
    for name in ServerSettings._fields:
        try:
            reply: list[bytes] = await connection.call(b"CONFIG", b"GET", name.replace("_", "-").encode())
            values.append(reply[1].decode() if len(reply) > 1 else None)
        except driver.ResponseError as error:
            # Not allowed, or, as on many hosted servers, not there at all. Anything else says nothing about settings.
            if not isinstance(error, driver.NoPermissionError) and "unknown command" not in str(error):
                raise
            values.append(None)
    found = ServerSettings(*values)
    enabled = {"0": "no", "1": "yes"}.get(info.get("aof_enabled", ""))
    return found._replace(
        appendonly=found.appendonly or enabled,
        maxmemory_policy=found.maxmemory_policy or info.get("maxmemory_policy"),
    )


def _found(settings: ServerSettings) -> Durability:
    for durability in (Durability.POWER_LOSS, Durability.PROCESS_CRASH):
        if not _lacking(settings, durability):
            return durability
    return Durability.NONE


def _lacking(settings: ServerSettings, wanted: Durability) -> list[str]:
    """What stands between the settings and a durability, as sentences without an end."""
    needed = [
        ("appendonly", "yes", settings.appendonly, "without it nothing is kept when the server ends"),
        ("maxmemory-policy", "noeviction", settings.maxmemory_policy, "any other deletes the journal's keys"),
    ]
    if wanted is Durability.POWER_LOSS:
        needed += [
            ("appendfsync", "always", settings.appendfsync, "any other loses acknowledged events with the power"),
            (
                "no-appendfsync-on-rewrite",
                "no",
                settings.no_appendfsync_on_rewrite,
                "with yes nothing is synced while the server rewrites its files",
            ),
        ]
    return [f"{name} {value}, {_shown(found)} ({reason})" for name, value, found, reason in needed if found != value]


def _shown(found: str | None) -> str:
    if found is None:
        return "which this user may not see: grant it +config|get and +info"
    return f"which is {found}"


def _check_version(info: dict[str, str]) -> None:
    version = info.get("redis_version", "")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if len(numbers) == 2 and numbers < _OLDEST:
        raise BackendUnavailable(
            f"the server is Redis {version}; the journal needs at least {'.'.join(map(str, _OLDEST))}"
        )
