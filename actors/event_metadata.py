"""The metadata that events are stored with: those of one command, and those of a transaction."""

from __future__ import annotations

from typing import cast

import orjson
from uuid_utils import uuid7

from actors.command_identity import CommandIdentity
from actors.message_metadata import merged, sent_with
from eventstore.codec import encode_metadata
from eventstore.events import Metadata


def metadata_of_command(metadata: Metadata | bytes | None, identity: CommandIdentity | None) -> bytes | None:
    """The events name their command. A transaction has encoded what its own are stored with."""
    if isinstance(metadata, bytes):
        return metadata
    if identity is None:
        return None if metadata is None else encode_metadata(metadata)
    if metadata is None:
        return b'{"command_id":' + orjson.dumps(identity.command_id) + b"}"
    return encode_metadata(metadata.model_copy(update={"command_id": identity.command_id}))


def metadata_of_transaction(metadata: Metadata | None, command_id: str | None) -> bytes:
    """One for the events of all actors: by the correlation id they are found together."""
    metadata = merged(sent_with(), metadata)
    if metadata is None:
        if command_id is None:
            return b'{"correlation_id":"%b"}' % str(uuid7()).encode()
        return orjson.dumps({"correlation_id": command_id, "command_id": command_id})
    update: dict[str, str] = {}
    if command_id is not None:
        update["command_id"] = command_id
    if metadata.correlation_id is None:
        update["correlation_id"] = command_id or str(uuid7())
    return cast("bytes", encode_metadata(metadata.model_copy(update=update)))
