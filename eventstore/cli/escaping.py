"""Escaping: what comes out of a journal, made safe and unambiguous to print.

Ids, payloads and messages may hold anything: terminal escapes, line ends, invisible and right-to-left marks.
"""

from __future__ import annotations

import re
import unicodedata

_SUSPECT = re.compile(r"[^ -~]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def escaped(text: str) -> str:
    """Text for a table: control and invisible characters as `\\n`, `\\x1b`, `\\u202e`; a backslash is doubled."""
    return printable(text.replace("\\", "\\\\"))


def printable(text: str) -> str:
    """Text for a message: as `escaped`, but backslashes stay, because messages have their own."""
    return text if text.isprintable() else _SUSPECT.sub(_python_escape, text)


def printable_json(text: str) -> str:
    """JSON text, on one line or with line ends, with such characters as `\\u202e`. It means the same."""
    return text if text.isprintable() else _SUSPECT.sub(_json_escape, text)


def one_line(text: str) -> str:
    """A message as one printable line."""
    return printable(" ".join(text.split()))


def _python_escape(match: re.Match[str]) -> str:
    character = match[0]
    if _can_be_shown(character):
        return character
    code = ord(character)
    if code <= 0xFF:
        return _SHORT.get(character, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _json_escape(match: re.Match[str]) -> str:
    character = match[0]
    if _can_be_shown(character) or character == "\n":
        return character
    encoded = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{encoded[start : start + 4]}" for start in range(0, len(encoded), 4))


def _can_be_shown(character: str) -> bool:
    # The ideographic space and its like are ordinary text, though Python calls them not printable.
    return character.isprintable() or unicodedata.category(character) == "Zs"


def of_tenant(stream_id: str, tenant: str) -> str:
    """A stream's id on one line, with its tenant behind it: under the same id others may have another stream."""
    return escaped(stream_id) if not tenant else f"{escaped(stream_id)} ({tenant})"
