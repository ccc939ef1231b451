"""RedisTarget: what a redis://, rediss:// or unix:// URL says, checked, and never shown with its password."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from eventstore.backend import Durability
from eventstore.errors import InvalidStoreUrl
from eventstore.url import StoreUrl

BEST_EFFORT = "best-effort"

_DEFAULT_PORT = 6379
_DEFAULT_PREFIX = "journal"
_MAX_PREFIX = 64
_MAX_SECONDS = 600.0
_MAX_POOL_SIZE = 64

# What stands between the braces of a key is Cluster's hash tag, so it can hold no brace itself.
_PREFIX = re.compile(rf"[A-Za-z0-9_.:-]{{1,{_MAX_PREFIX}}}")

_COMMON = frozenset({"prefix", "durability", "connect_timeout", "command_timeout", "pool_size"})
_TLS = frozenset(
    {
        "ssl_ca_certs",
        "ssl_ca_path",
        "ssl_certfile",
        "ssl_keyfile",
        "ssl_password",
        "ssl_cert_reqs",
        "ssl_check_hostname",
    }
)
_PARAMETERS = {"redis": _COMMON, "rediss": _COMMON | _TLS, "unix": _COMMON | {"db"}}
_VERIFICATION = ("required", "optional", "none")


@dataclass(frozen=True, slots=True)
class RedisTarget:
    """Where a journal is and how to reach it. `durability` is None for `best-effort`: whatever the server has.

    Timeouts are seconds. `tls` holds redis-py's `ssl_…` arguments; it is None for a connection without TLS.
    """

    url: StoreUrl
    host: str
    port: int
    socket: str
    username: str | None
    password: str | None = field(repr=False)
    database: int
    prefix: str
    durability: Durability | None
    connect_timeout: float
    command_timeout: float
    pool_size: int
    tls: dict[str, Any] | None = field(repr=False)

    @property
    def key(self) -> bytes:
        """The journal's own key. Every other one starts with it and a colon, so that one Cluster slot has them all."""
        return f"{{{self.prefix}}}".encode()


def parse_redis_url(url: StoreUrl) -> RedisTarget:
    """Read a Redis URL. Raises `InvalidStoreUrl`, which names the part and what it may be."""
    if url.scheme != "unix" and "@" in url.raw.partition("://")[2].removeprefix(url.authority):
        # What stands before it may be the rest of a password, so the URL is not shown.
        raise InvalidStoreUrl(
            f"the {url.scheme} URL holds a '@' behind its host: in a password write / as %2F and ? as %3F, and @ "
            "everywhere as %40"
        )
    url.check_parameters(_PARAMETERS[url.scheme])
    userinfo, _, address = url.authority.rpartition("@")
    user, _, password = userinfo.partition(":")
    host, port, socket = "", _DEFAULT_PORT, ""
    if url.scheme == "unix":
        socket = _socket(url, address)
        database = _database(url, url.parameters.get("db", "0"))
    else:
        host, port = _address(url, address)
        database = _database(url, url.path.removeprefix("/") or "0")
    return RedisTarget(
        url=url,
        host=host,
        port=port,
        socket=socket,
        username=_decoded(url, user) or None,
        password=_decoded(url, password) or None,
        database=database,
        prefix=_prefix(url),
        durability=_durability(url),
        connect_timeout=url.seconds("connect_timeout", 5.0, most=_MAX_SECONDS),
        command_timeout=url.seconds("command_timeout", 10.0, most=_MAX_SECONDS),
        pool_size=url.count("pool_size", 4, most=_MAX_POOL_SIZE),
        tls=_tls(url) if url.scheme == "rediss" else None,
    )


def _address(url: StoreUrl, address: str) -> tuple[str, int]:
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^:\[\]@/,\s]*))(?::(\d{1,5}))?", address)
    if match is None:
        raise InvalidStoreUrl(f"{url}: the address is a host name or [IPv6 address] with a port, such as db.local:6379")
    port = int(match[3] or _DEFAULT_PORT)
    if not 0 < port < 65536:
        raise InvalidStoreUrl(f"{url}: the port is a number from 1 to 65535, not {port}")
    return _decoded(url, match[1] or match[2] or "") or "localhost", port


def _socket(url: StoreUrl, address: str) -> str:
    path = _decoded(url, url.path)
    if address or not path.startswith("/") or path.endswith("/") or "\0" in path:
        raise InvalidStoreUrl(f"{url}: name a socket by its whole path, such as unix:///run/redis/redis.sock")
    return path


def _database(url: StoreUrl, number: str) -> int:
    if not re.fullmatch(r"\d{1,9}", number):
        raise InvalidStoreUrl(f"{url}: a Redis database is a number from 0, not {number!r}")
    return int(number)


def _prefix(url: StoreUrl) -> str:
    prefix = url.parameters.get("prefix", _DEFAULT_PREFIX)
    if not _PREFIX.fullmatch(prefix):
        raise InvalidStoreUrl(
            f"{url}: a prefix has 1 to {_MAX_PREFIX} letters, digits or any of . _ : - and no other characters"
        )
    return prefix


def _durability(url: StoreUrl) -> Durability | None:
    name = url.parameters.get("durability", Durability.POWER_LOSS.value)
    if name == BEST_EFFORT:
        return None
    known = (Durability.POWER_LOSS, Durability.PROCESS_CRASH)
    for durability in known:
        if durability.value == name:
            return durability
    names = ", ".join(durability.value for durability in known)
    raise InvalidStoreUrl(f"{url}: durability is {names} or {BEST_EFFORT}, not {name!r}")


def _tls(url: StoreUrl) -> dict[str, Any]:
    """Verified by default, host name included; less only where the URL says so in words."""
    given: dict[str, Any] = {name: value for name, value in url.parameters.items() if name in _TLS}
    requirement = given.setdefault("ssl_cert_reqs", "required")
    if requirement not in _VERIFICATION:
        raise InvalidStoreUrl(f"{url}: ssl_cert_reqs is {', '.join(_VERIFICATION)}, not {requirement!r}")
    checks_name = given.get("ssl_check_hostname", str(requirement != "none")).lower()
    if checks_name not in {"true", "false"}:
        raise InvalidStoreUrl(f"{url}: ssl_check_hostname is true or false, not {checks_name!r}")
    if checks_name == "true" and requirement == "none":
        raise InvalidStoreUrl(f"{url}: a host name cannot be checked with ssl_cert_reqs=none")
    given["ssl_check_hostname"] = checks_name == "true"
    return given


def _decoded(url: StoreUrl, text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError as error:
        raise InvalidStoreUrl(f"{url}: its %-escapes are not UTF-8") from error
