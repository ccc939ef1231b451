"""StoreUrl: the one string that chooses a database, taken apart once and never printed with its secrets."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from eventstore.errors import InvalidStoreUrl
from eventstore.tenant import NO_TENANT

SQLITE_PARAMETERS = frozenset({"durability", "busy_timeout"})
"""What may stand behind the `?` of a sqlite:// URL."""

_SECRET_PARAMETERS = re.compile(r"pass|secret|token|key|credential", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """A store URL's parts. `str()` and `repr()` mask every secret; `raw` is for the driver alone.

    `path` is what stands behind `scheme://host/`, still percent-encoded: each backend decides what it means.
    """

    scheme: str
    authority: str
    path: str
    parameters: dict[str, str]
    raw: str = field(repr=False)
    tenant: str = NO_TENANT
    """Whose streams the backend is about. It never comes out of the URL's text: whoever opens the store says it."""

    def __str__(self) -> str:
        user, at, host = self.authority.rpartition("@")
        shown_user = user.partition(":")[0] + ":***" if ":" in user else user
        query = "&".join(
            f"{name}={'***' if _SECRET_PARAMETERS.search(name) else value}" for name, value in self.parameters.items()
        )
        return f"{self.scheme}://{shown_user}{at}{host}{self.path}" + (f"?{query}" if query else "")

    def __repr__(self) -> str:
        return f"StoreUrl({str(self)!r})"

    def check_parameters(self, known: frozenset[str]) -> None:
        """Raise `InvalidStoreUrl` for a parameter that is not among these."""
        unknown = sorted(self.parameters.keys() - known)
        if unknown:
            raise InvalidStoreUrl(f"{self}: unknown parameter {', '.join(unknown)}; known: {', '.join(sorted(known))}")

    def seconds(self, name: str, default: float, *, most: float) -> float:
        """A parameter that is a time. Raises `InvalidStoreUrl` for what is none, or is longer than `most`."""
        given = self.parameters.get(name, str(default))
        try:
            seconds = float(given)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds <= most:
            raise InvalidStoreUrl(
                f"{self}: {name} is a number of seconds, more than 0 and at most {most:g}, not {given!r}"
            )
        return seconds

    def count(self, name: str, default: int, *, most: int) -> int:
        """A parameter that says how many. Raises `InvalidStoreUrl` for what is no number from 1 to `most`."""
        given = self.parameters.get(name, str(default))
        if not (given.isascii() and given.isdigit() and len(given) < 6 and 1 <= int(given) <= most):
            raise InvalidStoreUrl(f"{self}: {name} is a number from 1 to {most}, not {given!r}")
        return int(given)

    def file_path(self, *, parameters: frozenset[str]) -> Path:
        """The absolute path of a store that is one file: `scheme:///relative/path` or `scheme:////absolute/path`.

        Refused with `InvalidStoreUrl`: a host, a path that is empty, climbs with `..` or is a URI of its own, any
        parameter not named in `parameters`, and a file that is a symbolic link, which may lead anywhere, or has several
        names by hard links: two names for one file would get two sets of locks.
        """
        try:
            text = unquote(self.path.removeprefix("/"), errors="strict")
        except UnicodeDecodeError as error:
            raise InvalidStoreUrl(f"{self}: the path's %-escapes are not UTF-8") from error
        if self.authority:
            raise InvalidStoreUrl(
                f"{self}: a file store has no host; write {self.scheme}:///relative/path or {self.scheme}:////absolute/path"
            )
        if not text or text.endswith("/") or "\0" in text or not text.isprintable():
            raise InvalidStoreUrl(f"{self}: name a file, such as {self.scheme}:///bank.db")
        if text == ":memory:":
            raise InvalidStoreUrl(f"{self}: a journal in memory is memory://, and {self.scheme}:// is one in a file")
        if text.startswith((":", "file:")):
            raise InvalidStoreUrl(f"{self}: the path cannot be a URI; give an absolute path")
        if ".." in Path(text).parts:
            # A name in `sqlite:///data/{name}.db` would lead out of the folder. Who has typed it can copy this.
            raise InvalidStoreUrl(
                f"{self}: the path climbs with '..', which leads out of a folder if somebody else chose a part of it; "
                f"if it is meant, write {replace(self, path='/' + quote(os.path.realpath(text)))}"
            )
        self.check_parameters(parameters)
        path = Path(text).absolute()
        try:
            found = path.lstat()
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return path  # Whoever opens the file says so: it is not the URL that is wrong.
        except OSError as error:
            raise InvalidStoreUrl(f"{self}: the path cannot be used: {error.strerror}") from error
        if stat.S_ISLNK(found.st_mode):
            raise InvalidStoreUrl(f"{self}: the file is a symbolic link; name the file it points to")
        if stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
            raise InvalidStoreUrl(
                f"{self}: the file has {found.st_nlink} names (hard links), and whoever opened it by another one would "
                f"not see what is written here; `find DIRECTORY -samefile {path.name}` shows them. Keep the one by "
                "which it was opened last, with the -wal file beside it if there is one, which has the newest events, "
                "and remove the others. Who copies the file copies that one too"
            )
        return path


def parse_store_url(url: str) -> StoreUrl:
    """Take a store URL apart. Raises `InvalidStoreUrl` for what is no URL, or sets a parameter twice."""
    if not isinstance(cast("object", url), str):
        # A setting that is not there, or a path.
        raise InvalidStoreUrl(
            "a store is named by a URL, such as sqlite:///bank.db or memory://, which is text and not a "
            f"{type(url).__name__}"
        )
    if not url.isprintable():
        raise InvalidStoreUrl("a store URL cannot hold control characters")
    scheme, separator, _ = url.partition("://")
    if not separator or not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme):
        # The text may hold a password, so it is not shown.
        raise InvalidStoreUrl(
            "a store URL starts with its scheme, such as sqlite:///bank.db or memory://; this one has none"
        )
    try:
        parts = urlsplit(url)
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        # What was raised may quote a password.
        raise InvalidStoreUrl(
            f"the {scheme} URL cannot be read: its host or its ?parameters are malformed; write '?', '#', '/' and '@' "
            "in names and passwords as %3F, %23, %2F and %40"
        ) from None
    if parts.netloc and "@" in parts.path:
        # What stands before it may be the rest of a password, which `str()` would show as part of the path.
        raise InvalidStoreUrl(f"the {scheme} URL has an '@' behind a '/': write '/' as %2F and '@' as %40 in names")
    if parts.fragment:
        raise InvalidStoreUrl(f"the {scheme} URL holds a '#': write it as %23")
    parameters = dict(pairs)
    if len(parameters) != len(pairs):
        raise InvalidStoreUrl(f"the {scheme} URL sets a parameter twice")
    return StoreUrl(scheme, parts.netloc, parts.path, parameters, url)
