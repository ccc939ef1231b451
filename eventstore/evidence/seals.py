"""Seal: a signed statement about a part of the log, which names the seal before it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256
from typing import Annotated, Any, Literal, NamedTuple

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eventstore.backend import Removal, StoredSeal
from eventstore.errors import ProofInvalid
from eventstore.evidence.signing import SigningKey, is_signed

NO_SEAL = bytes(32).hex()
"""What the first seal names as the one before it."""

_SIGNED = b"eventstore seal 1\0"

_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Number = Annotated[int, Field(gt=0, lt=2**63)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class SealedRemovals(_Strict):
    """The truncations that were recorded since the seal before: their number, the SHA-256 of their list, and the number
    of the last there was, whether in this seal or before."""

    count: _Count
    digest: _Hash
    through: _Count


class Statement(_Strict):
    """What a seal says. From position `first` through `last` the log held `count` events, whose tree has this `root`.

    `previous` is the SHA-256 of the statement before. `key` is the public key it is signed with, and `next_key`, where
    it is set, the one that signs from the next seal on.
    """

    form: Literal["eventstore seal 1"] = "eventstore seal 1"
    number: _Number
    first: _Number
    last: _Count
    count: _Count
    root: _Hash
    removals: SealedRemovals
    previous: _Hash
    key: _Hash
    next_key: _Hash | None = None
    sealed_at: str

    def encoded(self) -> bytes:
        """The one form in which it is stored and signed: JSON with sorted names, and nothing between."""
        return orjson.dumps(self.model_dump(), option=orjson.OPT_SORT_KEYS)


class Seal(NamedTuple):
    """A statement and its signature."""

    statement: Statement
    signature: bytes

    @property
    def hash(self) -> str:
        """What the next seal names it by."""
        return sha256(self.statement.encoded()).hexdigest()

    @property
    def is_signed(self) -> bool:
        """Whether it is signed with the key that it names. Whose that is, is another question."""
        return is_signed(_SIGNED + self.statement.encoded(), self.signature, self.statement.key)

    @property
    def signing_key(self) -> str:
        """The public key of the next seal."""
        return self.statement.next_key or self.statement.key


def sign(statement: Statement, key: SigningKey) -> Seal:
    """The seal of a statement that names this key."""
    return Seal(statement, key.sign(_SIGNED + statement.encoded()))


def parse_seal(statement: bytes, signature: bytes) -> Seal:
    """The seal of stored bytes. Raises `ValueError` if the statement is none, or not in its one form."""
    try:
        found = Statement.model_validate_json(statement)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{where or 'it'}: {first['msg']}") from error
    if found.encoded() != statement:
        raise ValueError("it is not in the form that seals are written in")
    return Seal(found, signature)


def parse_stored(stored: StoredSeal) -> Seal:
    """Raises `ValueError` as `parse_seal` does, and where it is stored under another number."""
    seal = parse_seal(stored.statement, stored.signature)
    if seal.statement.number != stored.number:
        raise ValueError(f"it is seal {seal.statement.number}")
    return seal


def export(seal: Seal, form: str, **more: Any) -> bytes:
    """A seal as JSON to be kept elsewhere."""
    record = {"form": form, "statement": seal.statement.encoded().decode(), "signature": seal.signature.hex(), **more}
    return orjson.dumps(record, option=orjson.OPT_INDENT_2) + b"\n"


def imported(data: bytes, form: str) -> tuple[Seal, dict[str, Any]]:
    """What `export` has written, and what else there is. Raises `ProofInvalid` for anything else, and where the seal is
    not signed with the key that it names."""
    try:
        record: Any = orjson.loads(data)
        if record.pop("form") != form:
            raise ValueError(f"it is not an {form}")
        seal = parse_seal(record.pop("statement").encode(), bytes.fromhex(record.pop("signature")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProofInvalid(f"it cannot be read as an {form}: {error}") from error
    if not seal.is_signed:
        raise ProofInvalid("its signature does not belong to it: it was changed after it was signed")
    return seal, record


ANCHOR = "eventstore anchor 1"
"""The form of an exported seal."""


def pack_removals(removals: Sequence[Removal]) -> bytes:
    """The list of truncations that is kept with a seal: JSON, one a line."""
    return b"".join(
        orjson.dumps([*removal[:5], _text(removal.recorded_at), removal.tenant]) + b"\n" for removal in removals
    )


def unpack_removals(packed: bytes) -> Sequence[Removal]:
    """Raises `ValueError` for what `pack_removals` has not written."""
    try:
        return [_removal(*orjson.loads(line)) for line in packed.splitlines()]
    except TypeError as error:
        raise ValueError("it is not a list of truncations") from error


def digest_of(packed: bytes) -> str:
    """The hash under which a list of truncations is sealed."""
    return sha256(packed).hexdigest()


def _removal(
    number: int, stream_id: str, through: int, removed: int, reason: str, recorded_at: str, tenant: str
) -> Removal:
    return Removal(number, stream_id, through, removed, reason, datetime.fromisoformat(recorded_at), tenant)


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds")
