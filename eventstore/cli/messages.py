"""Messages: errors, warnings and notes, one line each on stderr, with no secret in them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import unquote

import orjson

from eventstore.cli.escaping import one_line, printable_json
from eventstore.errors import InvalidStoreUrl
from eventstore.url import parse_store_url

# A shorter password is not looked for in running text: it would be found inside of ordinary words.
_SHORTEST_SECRET = 4


class Messages:
    """What goes to stderr: `error: …` lines, or JSON objects with --json.

    `arguments` are those of the command: a URL among them, wherever it turns up, is shown without its password.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        options = arguments[: arguments.index("--")] if "--" in arguments else arguments
        self.is_json = "--json" in options
        self._masks = dict(_masks(arguments))

    def error(self, message: str, *, name: str, code: int) -> None:
        """Say why the command ends."""
        self._write("error", message, {"error": name, "message": message, "exit_code": code})

    def warning(self, message: str) -> None:
        """Say what the user should know, while the command goes on."""
        self._write("warning", message, {"warning": message})

    def note(self, message: str) -> None:
        """Say what explains the output."""
        self._write("note", message, {"note": message})

    def after_interrupt(self) -> None:
        """Let the shell's prompt stand on a line of its own, behind the `^C` of the terminal."""
        if sys.stderr.isatty():
            sys.stderr.write("\n")

    def masked(self, text: str) -> str:
        """The text without the secrets of the command's arguments."""
        for secret, shown in self._masks.items():
            text = text.replace(secret, shown)
        return text

    def _encodable(self, text: str) -> str:
        # An argument that is no UTF-8 comes from the shell as halves of surrogate pairs.
        return self.masked(text).encode(errors="backslashreplace").decode()

    def _write(self, label: str, message: str, record: dict[str, object]) -> None:
        if self.is_json:
            record = {key: self._encodable(value) if isinstance(value, str) else value for key, value in record.items()}
            line = printable_json(orjson.dumps(record).decode())
        else:
            line = f"{label}: {one_line(self.masked(message))}"
        try:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        except OSError:
            # Nobody listens on stderr: the exit code still tells.
            pass


@contextmanager
def logged_to(messages: Messages) -> Generator[None]:
    """Let the library's log warnings reach the user as messages."""
    handler = _LogHandler(messages)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


class _LogHandler(logging.Handler):
    def __init__(self, messages: Messages) -> None:
        super().__init__(logging.WARNING)
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.warning(record.getMessage())


def _masks(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What to replace in every message, and by what; whole arguments first, then the passwords alone."""
    suspects = [argument for argument in arguments if "://" in argument or "@" in argument]
    for argument in suspects:
        try:
            shown = str(parse_store_url(argument))
        except InvalidStoreUrl:
            shown = "***"
        if shown != argument:
            yield argument, shown
            # Typer shows some arguments as Python would write them.
            yield repr(argument), repr(shown)
    for argument in suspects:
        for secret in _passwords(argument):
            for form in (secret, unquote(secret)):
                if len(form) >= _SHORTEST_SECRET:
                    yield form, "***"


def _passwords(url: str) -> Iterator[str]:
    before_host, at, _ = url.rpartition("@")
    if at:
        yield before_host.rpartition("://")[2].partition(":")[2]
    try:
        parsed = parse_store_url(url)
    except InvalidStoreUrl:
        return
    for name, value in parsed.parameters.items():
        if f"{name}=***" in str(parsed):
            yield value
