"""Empty journals to test on: making the schema anew takes longer than most tests."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from uuid import uuid4

from eventstore import schema
from eventstore.url import parse_store_url


def new_journal(kind: str, folder: Path) -> str:
    """The URL of an empty journal that no one else has."""
    if kind == "memory":
        return f"memory://{uuid4()}"
    (folder / "journal.db").write_bytes(_empty_file())
    return f"sqlite:///{folder}/journal.db"


@functools.cache
def _empty_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        schema.upgrade(parse_store_url(f"sqlite:///{folder}/journal.db"))
        return (Path(folder) / "journal.db").read_bytes()
