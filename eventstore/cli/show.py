"""`eventstore show`: the state of one actor, now, as of a version, or as of a moment."""

from __future__ import annotations

import asyncio
import json as stdlib_json
from datetime import datetime
from typing import Any

from actors.actor import PersistentActor, stream_id_of
from actors.time_travel.folding import fold
from eventstore.cli.arguments import Address, At, AtTime, Full, Json, Key, Target, Tenant, Url
from eventstore.cli.escaping import escaped, printable_json
from eventstore.cli.exits import Exit
from eventstore.cli.output import json_fragment, timestamp, write_fields, write_json, write_line
from eventstore.cli.targets import actor_class
from eventstore.cli.versions import event_at, head_of, parse_wanted, version_of


def show(
    url: Url,
    target: Target,
    key: Key,
    at: At = None,
    at_time: AtTime = None,
    full: Full = False,
    tenant: Tenant = None,
    json: Json = False,
) -> Exit:
    """Show the state of an actor, rebuilt from its events. Nothing is written, and no command is run.

    \b
    Examples:
      eventstore show sqlite:///bank.db bank:Account alice
      eventstore show sqlite:///bank.db bank:Account alice --at 3
      eventstore show sqlite:///bank.db bank:Account alice --at-time 2026-01-31T12:00:00+01:00
    """
    wanted = parse_wanted(at, at_time)
    return asyncio.run(_show(Address(url, tenant), actor_class(target), key, wanted, full=full, json=json))


async def _show(
    address: Address,
    cls: type[PersistentActor[Any]],
    key: str,
    wanted: int | datetime | None,
    *,
    full: bool,
    json: bool,
) -> Exit:
    stream_id = stream_id_of(cls, key)
    async with address.store() as store:
        head = await head_of(store, stream_id)
        through = None if wanted is None else await version_of(store, stream_id, head, wanted)
        state, version, snapshot_version = await fold(store, cls, key, through=through, use_snapshots=not full)
        recorded_at = None
        if version > head.truncated:
            recorded_at = timestamp((await event_at(store, stream_id, version)).recorded_at)
    data = cls.state_type.dump(state)
    if json:
        write_json(
            {
                "stream_id": stream_id,
                "version": version,
                "stream_version": max(head.version, version),
                "recorded_at": recorded_at,
                "snapshot_version": snapshot_version,
                "state": json_fragment(data),
            }
        )
        return Exit.FINE
    fields = {"actor": escaped(stream_id), "version": f"{version} of {max(head.version, version)}"}
    if recorded_at is not None:
        fields["recorded"] = recorded_at
    fields["rebuilt"] = f"from the snapshot at version {snapshot_version}" if snapshot_version else "from its events"
    write_fields(fields)
    # Not orjson: it would turn integers of more than 64 bits into floats.
    pretty = stdlib_json.dumps(stdlib_json.loads(data), indent=2, ensure_ascii=False)
    for line in printable_json(pretty).splitlines():
        write_line((line, ""))
    return Exit.FINE
