"""PostgresTarget: what a postgresql:// URL says, checked and taken apart, for the backend and the migrations."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from eventstore.errors import InvalidStoreUrl
from eventstore.postgres_password import password_from_file
from eventstore.url import StoreUrl

POSTGRES_PARAMETERS = frozenset(
    {
        "application_name",
        "command_timeout",
        "connect_timeout",
        "durability",
        "host",
        "password",
        "pool_size",
        "pooling",
        "port",
        "schema",
        "sslcert",
        "sslkey",
        "sslmode",
        "sslrootcert",
        "user",
    }
)
"""What may stand behind the `?` of a postgresql:// URL."""

# What is taken for parameters that a URL does not have. It names its database itself.
_VARIABLES = {
    "host": "PGHOST",
    "port": "PGPORT",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
}
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_DURABILITIES = ("power-loss", "process-crash")
_POOLINGS = ("auto", "session", "transaction")
_DEFAULT_PORT = 5432
_MAX_SECONDS = 3600.0
# Where libpq's packages put the server's socket, and then the loopback.
_LOCAL_HOSTS = ("/var/run/postgresql", "/tmp", "localhost")  # noqa: S108  (a socket to connect to, no file to make)


@dataclass(frozen=True, slots=True)
class PostgresTarget:
    """One Postgres database, and the schema in it that holds the journal. The password is in no `repr`.

    `hosts` are (host or directory of a unix socket, port); with several, the first that is a primary is used.
    `user` and `password` None: as libpq has it (PGUSER, PGPASSWORD, ~/.pgpass), so that a URL need hold no secret.
    Timeouts are in seconds. `pooling` says what stands between: `transaction` is a proxy such as pgbouncer that may
    give every transaction another server session; `auto` finds out.

    `sslmode` has libpq's words. Where neither the URL nor PGSSLMODE has one it is `verify-full` for every host but the
    loopback and unix sockets: libpq's default, `prefer`, goes on in clear text with whoever says that he has no TLS.
    """

    hosts: tuple[tuple[str, int], ...]
    user: str | None
    password: str | None = field(repr=False)
    database: str
    schema: str = "public"
    sslmode: str = "prefer"
    sslrootcert: str | None = None
    sslcert: str | None = None
    sslkey: str | None = None
    connect_timeout: float = 10.0
    command_timeout: float = 30.0
    pool_size: int = 4
    durability: str = "power-loss"
    pooling: str = "auto"
    application_name: str = "eventstore"

    def __str__(self) -> str:
        places = (f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        return f"{', '.join(places)}, database {self.database!r}"

    def connect_arguments(self) -> dict[str, Any]:
        """What `asyncpg.connect` takes. Raises `InvalidStoreUrl` where a certificate cannot be read."""
        arguments: dict[str, Any] = {
            "host": [host for host, _ in self.hosts],
            "port": [port for _, port in self.hosts],
            "user": self.user,
            "password": self.password or password_from_file(self.hosts, self.database, self.user),
            "database": self.database,
            "ssl": self._ssl(),
            "timeout": self.connect_timeout,
            "server_settings": {"application_name": self.application_name},
        }
        if len(self.hosts) > 1:
            arguments["target_session_attrs"] = "primary"
        return arguments

    def _ssl(self) -> ssl.SSLContext | str | bool:
        if self.sslmode == "disable":
            return False
        if self.sslmode in {"allow", "prefer"}:
            return self.sslmode
        # As with libpq: to name the authority is to ask that the certificate be its.
        is_verified = self.sslmode.startswith("verify") or self.sslrootcert is not None
        roots = None if self.sslrootcert == "system" else self.sslrootcert
        try:
            context = ssl.create_default_context(cafile=roots)
            # Some Pythons leave the floor to OpenSSL's configuration.
            context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)
            context.check_hostname = self.sslmode == "verify-full"
            context.verify_mode = ssl.CERT_REQUIRED if is_verified else ssl.CERT_NONE
            if self.sslcert is not None:
                context.load_cert_chain(self.sslcert, self.sslkey)
        except (OSError, ssl.SSLError) as error:
            raise InvalidStoreUrl(
                f"sslrootcert, sslcert or sslkey names a file that cannot be used: {error}"
            ) from error
        return context


def postgres_target(url: StoreUrl) -> PostgresTarget:
    """Read `postgresql://user:password@host:port/database?schema=…`. Raises `InvalidStoreUrl`.

    As with libpq, `host`, `port`, `user` and `password` may stand among the parameters instead (`host` is how a unix
    socket's directory is named), several hosts may be given with commas between them, and what the URL does not say of
    the host, the port and TLS is taken from PGHOST, PGPORT, PGSSLMODE, PGSSLROOTCERT, PGSSLCERT and PGSSLKEY.
    """
    if "@" in url.path + "".join(url.parameters):
        # The text before it may be the rest of a password, so the URL is not shown.
        raise InvalidStoreUrl(
            f"the {url.scheme} URL holds a '@' behind its host: write / as %2F and ? as %3F in a password, and @ as %40"
        )
    given = url.parameters
    userinfo, _, hosts = url.authority.rpartition("@")
    # First of all: until the ports are known to be numbers, what stands there may be a password.
    places = _hosts(url, hosts)
    url.check_parameters(POSTGRES_PARAMETERS)
    user, _, password = userinfo.partition(":")
    stated = {"user": _decoded(url, user), "password": _decoded(url, password), "host": hosts}
    for name, value in stated.items():
        if value and name in given:
            raise InvalidStoreUrl(f"{url}: {name} is given twice, before the database and behind the '?'")
    database = _decoded(url, url.path.removeprefix("/"))
    if not database:
        raise InvalidStoreUrl(f"{url}: name a database, as in postgresql://user@host/database")
    if "/" in url.path.removeprefix("/"):
        raise InvalidStoreUrl(f"{url}: a database name holds no '/'; write it as %2F if this one does")
    is_local = all(_is_local(host) for host, _ in places)
    usual = _of_environment("sslmode") or ("prefer" if is_local else "verify-full")
    if usual not in _SSL_MODES:
        raise InvalidStoreUrl(f"PGSSLMODE is {' or '.join(_SSL_MODES)}, not {usual!r}")
    sslmode = _one_of(url, "sslmode", _SSL_MODES, default=usual)
    certificates = {name: given.get(name) for name in ("sslrootcert", "sslcert", "sslkey")}
    if sslmode not in {"disable", "allow", "prefer"}:
        certificates = {name: named or _of_environment(name) for name, named in certificates.items()}
    elif any(certificates.values()):
        raise InvalidStoreUrl(
            f"{url}: sslmode={sslmode} may go without TLS, so certificates mean nothing; say sslmode=verify-full"
        )
    if given.get("sslkey") and not certificates["sslcert"]:
        raise InvalidStoreUrl(f"{url}: sslkey is the key of a certificate: name sslcert too")
    schema = given.get("schema", "public")
    if not re.fullmatch(r"(?!pg_)[a-z_][a-z0-9_]{0,62}", schema):
        raise InvalidStoreUrl(
            f"{url}: a schema is 1 to 63 of a-z, 0-9 and _, and starts with no digit and not with pg_"
        )
    return PostgresTarget(
        hosts=places,
        user=stated["user"] or given.get("user") or None,
        password=stated["password"] or given.get("password") or None,
        database=database,
        schema=schema,
        sslmode=sslmode,
        **certificates,
        connect_timeout=url.seconds("connect_timeout", 10.0, most=_MAX_SECONDS),
        command_timeout=url.seconds("command_timeout", 30.0, most=_MAX_SECONDS),
        pool_size=url.count("pool_size", 4, most=100),
        durability=_one_of(url, "durability", _DURABILITIES, default="power-loss"),
        pooling=_one_of(url, "pooling", _POOLINGS, default="auto"),
        application_name=_application_name(url),
    )


def _hosts(url: StoreUrl, authority: str) -> tuple[tuple[str, int], ...]:
    named = authority or url.parameters.get("host") or _of_environment("host") or ""
    texts = [text for text in named.split(",") if text]
    ports = url.parameters.get("port", "").split(",")
    # The URL gives a port once; the variable may give one as well, for the hosts that the URL gives none.
    usual = (_of_environment("port") or "").split(",")
    places: list[tuple[str, int]] = []
    for index, text in enumerate(texts or _LOCAL_HOSTS):
        host, port = _host_and_port(url, text) if authority else (text, "")
        shared = ports[index] if len(ports) == len(texts) else ports[0]
        number = _port(url, port or shared or (usual[index] if len(usual) == len(texts) else usual[0]))
        if port and shared:
            raise InvalidStoreUrl(f"{url}: port is given twice, before the database and behind the '?'")
        places.append((_decoded(url, host), number))
    if len(ports) not in {1, len(texts)}:
        raise InvalidStoreUrl(f"{url}: give one port, or one for each of the {len(texts)} hosts")
    return tuple(places)


def _of_environment(name: str) -> str | None:
    return os.environ.get(_VARIABLES[name]) or None


def _host_and_port(url: StoreUrl, text: str) -> tuple[str, str]:
    matched = re.fullmatch(r"(?:\[(?P<six>[^\]]+)\]|(?P<name>[^:\[\]]+))(?::(?P<port>[^:]*))?", text)
    if matched is None:
        raise InvalidStoreUrl(
            f"the {url.scheme} URL's host is a name, an address or [an IPv6 address], perhaps with :port"
        )
    return matched["six"] or matched["name"], matched["port"] or ""


def _port(url: StoreUrl, text: str) -> int:
    if not text:
        return _DEFAULT_PORT
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise InvalidStoreUrl(f"the {url.scheme} URL's port is not a number from 1 to 65535, or PGPORT's is not")
    return int(text)


def _is_local(host: str) -> bool:
    if host.startswith("/") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _decoded(url: StoreUrl, text: str) -> str:
    try:
        decoded = unquote(text, errors="strict")
    except UnicodeDecodeError as error:
        raise InvalidStoreUrl(f"{url}: the %-escapes are not UTF-8") from error
    if "\0" in decoded:
        raise InvalidStoreUrl(f"{url}: no part of it can hold %00")
    return decoded


def _one_of(url: StoreUrl, name: str, words: tuple[str, ...], *, default: str) -> str:
    given = url.parameters.get(name, default)
    if given not in words:
        raise InvalidStoreUrl(f"{url}: {name} is {' or '.join(words)}, not {given!r}")
    return given


def _application_name(url: StoreUrl) -> str:
    given = url.parameters.get("application_name", "eventstore")
    if len(given.encode(errors="replace")) > 63:
        raise InvalidStoreUrl(f"{url}: application_name takes at most 63 bytes")
    return given
