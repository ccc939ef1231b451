"""Shapes: which objects each command prints with `--json`, and what is in them.

The reference is made of this, and a test compares it with what the commands print. Fields are only ever added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eventstore.cli.shape import Fields, Shape

_TENANT = '`""`: of none'
_EVENT: Fields = {
    "stream_id": "",
    "version": "",
    "position": "",
    "recorded_at": "",
    "type": "",
    "schema_version": "",
    "payload": "as stored",
    "metadata": "what is set of it, or null",
    "event_id": "",
    "batch_id": "",
    "tenant": _TENANT,
}
_SET_BY: Fields = {"recorded_at": "", "type": "", "event_id": "", "command_id": "", "user": ""}
_CHANGE: Fields = {"pointer": "", "kind": "`added`, `removed` or `changed`", "before?": "", "after?": ""}
_FENCE: Fields = {"reason": "", "fenced_at": ""}
_FOLD_ERROR: Fields = {"version": "", "name": "", "reason": ""}
_CUT: Fields = {
    "stream_id": "",
    "version": "",
    "through": "up to which version events go",
    "events": "",
    "size_bytes": "",
    "replay": "events that a recovery replays afterwards",
    "refusal": {"error": "", "message": ""},
}
_RETENTION = (
    Shape("for each stream", _CUT),
    Shape(
        "at the end",
        {
            "summary": {"streams": "", "events": "", "bytes": "", "replay": "", "refused": ""},
            "applied": "",
        },
    ),
)
_PROJECTION: Fields = {
    "name": "",
    "version": "",
    "partition": "",
    "partitions": "how many",
    "status": "`live` or `building`",
    "position": "",
    "lag": "",
    "events": "",
    "checksum": "",
    "dead_letters": "",
    "paused": "why, or null",
    "runner": "",
    "updated_at": "",
}
_SNAPSHOTS = (
    Shape(
        "for each actor",
        {"stream_id": "", "version": "", "saved": "false: failed, or there was one of it", "problem": ""},
    ),
)

_PROJECTION_STATUS = (
    Shape("for the projection", _PROJECTION),
    Shape(
        "for the projection, if it has several partitions",
        {
            "name": "",
            "version": "",
            "status": "",
            "position": "of the one that is last",
            "lag": "",
            "events": "",
            "dead_letters": "",
            "partitions": [_PROJECTION],
        },
    ),
)
_DEAD_LETTER: Fields = {
    "projection": "",
    "position": "",
    "stream_id": "",
    "version": "",
    "type": "",
    "error": "",
    "attempts": "",
    "parked_at": "",
    "tenant": _TENANT,
}
_SIDE: Fields = {
    "version": "",
    "origin": "",
    "sequence": "",
    "clock": "by replica, how many of its events were known",
    "time": "in µs",
    "type": "",
    "payload": "",
    "reason": "why it stands behind the one before",
}
_COUNTS: Fields = {"name": "", "events": ""}

SHAPES: Mapping[str, Sequence[Shape]] = {
    "streams": (
        Shape("for each stream", {"stream_id": "", "version": "", "truncated": "a version", "tenant": _TENANT}),
    ),
    "events": (Shape("for each event", _EVENT),),
    "tail": (Shape("for each event", _EVENT),),
    "show": (
        Shape(
            "for the actor",
            {
                "stream_id": "",
                "version": "",
                "stream_version": "of its newest event",
                "recorded_at": "null at version 0, and where the event was removed",
                "snapshot_version": "0: no snapshot was used",
                "state": "",
            },
        ),
    ),
    "diff": (
        Shape("for each change", _CHANGE),
        Shape("at the end", {"summary": {"stream_id": "", "before": "a version", "after": "a version", "changes": ""}}),
    ),
    "blame": (
        Shape("for each value", {"pointer": "", "value?": "", "is_removed": "", "version": "0: initial", **_SET_BY}),
        Shape("for each change, with `--all`", {"version": "", **_CHANGE, **_SET_BY}),
    ),
    "bisect": (
        Shape(
            "for the event found",
            {"expression": "", "tried": "the versions that were looked at", "folded": "how many events", **_EVENT},
        ),
    ),
    "fork": (Shape("for the stream", {"stream_id": "", "version": "", "events": "that were copied", "to": ""}),),
    "replay": (
        Shape("for each problem", {"stream_id": "", "version": "", "problem": ""}),
        Shape(
            "at the end",
            {
                "summary": {
                    "actors": "",
                    "events": "",
                    "snapshots_compared": "",
                    "snapshots_of_other_schema": "",
                    "truncated_actors": "",
                    "problems": "",
                }
            },
        ),
    ),
    "whatif": (
        Shape(
            "for each actor that differs, or that neither can fold: both errors are there then, nothing was compared",
            {
                "stream_id": "",
                "version": "the first at which they differ, or at which one stops",
                "changes": [_CHANGE],
                "changes_left_out": "",
                "old_error": _FOLD_ERROR,
                "new_error": _FOLD_ERROR,
            },
        ),
        Shape(
            "at the end",
            {
                "summary": {
                    "actors": "",
                    "compared": "those that both can fold",
                    "events": "of these",
                    "differ": "",
                    "only_old_can_fold": "",
                    "only_new_can_fold": "",
                    "neither_can_fold": "",
                    "undecodable": [
                        {"type": "", "schema_version": "", "error": "", "stream_id": "", "version": "", "actors": ""}
                    ],
                }
            },
        ),
    ),
    "verify": (
        Shape("for each place", {"stream_id": "", "version": "", "position": "", "problem": "", "tenant": _TENANT}),
        Shape("at the end", {"summary": {"streams": "", "events": "", "snapshots": "", "problems": ""}}),
    ),
    "owners": (
        Shape(
            "for each process, and one whose `id` is null for all that have no lease any more",
            {
                "id": "",
                "name": "",
                "is_running": "",
                "remaining": "seconds of its lease; below 0 since it ran out",
                "renewals": "",
                "streams": "how many",
            },
        ),
        Shape(
            "for each stream, with `--streams`",
            {"stream_id": "", "epoch": "", "owner_id": "", "owner": "", "is_free": "", "remaining": "as above"},
        ),
    ),
    "copy": (
        Shape(
            "for the copy",
            {
                "source": "",
                "target": "",
                "position": "up to which it is a copy",
                "events": "how many were copied now",
                "fence": _FENCE,
                "verified": {"events": "", "streams": "", "commands": "", "snapshots": "", "digest": ""},
                "difference": "",
            },
        ),
    ),
    "export": (
        Shape(
            "for each event, with `--json` or without: a CloudEvent",
            {
                "specversion": "",
                "id": "",
                "source": "",
                "type": "",
                "subject?": "the stream",
                "time": "",
                "datacontenttype": "",
                "dataschema": "",
                "schemaversion": "",
                "streamversion": "",
                "position": "",
                "batchid": "",
                **dict.fromkeys(
                    (
                        *("data?", "data_base64?", "streamid?", "epoch?", "tenant?", "origin?", "originsequence?"),
                        *("clock?", "concurrent?", "correlationid?", "causationid?", "commandid?", "user?"),
                        *("traceparent?", "metadata?"),
                    ),
                    "",
                ),
            },
        ),
    ),
    "import": (Shape("for the import", {"url": "", "stored": "", "known": "were stored already"}),),
    "migrate": (
        Shape("for the journal", {"url": "", "before": "a revision, or null", "after": ""}),
        Shape(
            "for the journal, with `--check`",
            {"url": "", "found": "a revision, or null", "expected": "", "pending": "a list", "is_current": ""},
        ),
        Shape("for the statements, with `--sql`", {"sql": ""}),
    ),
    "doctor": (
        Shape(
            "for the store",
            {
                "url": "",
                "backend": "",
                "database": "",
                "schema": {"found": "", "expected": ""},
                "durability": {"level": "", "meaning": "", "asked": "what the URL asks for"},
                "capabilities": {
                    "creates_schema": "",
                    "survives_restart": "",
                    "user_sql": "",
                    "tenants": "",
                    "archive": "",
                },
                "statistics": {"streams": "", "events": "", "snapshots": "", "last_position": "", "size_bytes": ""},
                "lag": "positions that are not settled yet",
                "processes": [
                    {"id": "", "name": "", "is_running": "", "remaining": "", "renewals": "", "report": "its own"}
                ],
                "copied": "up to which position it is a copy",
                "fence": _FENCE,
                "problems": [{"error": "", "message": ""}],
                "healthy": "",
            },
        ),
    ),
    "rebuild snapshots": _SNAPSHOTS,
    "snapshot": _SNAPSHOTS,
    "rebuild projections": _PROJECTION_STATUS,
    "projections rebuild": _PROJECTION_STATUS,
    "audit query": (Shape("for each event", _EVENT),),
    "audit trace": (Shape("for each command and each event", {"id": "", "parent": "", "depth": "", "event": _EVENT}),),
    "audit stats": (
        Shape(
            "for all of it",
            {
                "events": "",
                "payload_bytes": "",
                "metadata_bytes": "",
                "first": "a time",
                "last": "a time",
                "events_per_hour": "",
                "events_per_day": "",
                "days": "events by day",
                "hours": "events by hour",
                "types": [_COUNTS],
                "streams": [_COUNTS],
                "users": [_COUNTS],
                "end": "up to which position",
                "is_exact": "",
            },
        ),
    ),
    "audit seal": (
        Shape(
            "for each seal",
            {
                "form": "",
                "number": "",
                "first": "",
                "last": "",
                "count": "",
                "root": "",
                "removals": {"count": "", "digest": "", "through": ""},
                "previous": "",
                "key": "",
                "next_key": "",
                "sealed_at": "",
            },
        ),
    ),
    "audit verify": (
        Shape(
            "for each place",
            {
                "what": "",
                "stream_id": "",
                "version": "",
                "position": "",
                "text": "",
                "tenant": _TENANT,
                "is_problem": "",
            },
        ),
        Shape(
            "at the end",
            {"summary": {"seals": "", "events": "", "truncated": "", "sealed": "", "end": "", "problems": ""}},
        ),
        Shape(
            "for the proof, with `--proof`",
            {
                "stream_id": "",
                "tenant": _TENANT,
                "version": "",
                "position": "",
                "type": "",
                "recorded_at": "",
                "seal": "its number",
                "sealed_at": "",
                "key": "",
                "is_proven": "",
            },
        ),
    ),
    "audit keys new": (Shape("for the key", {"private_key": "a file", "public_key": "a file", "key": ""}),),
    "replication status": (
        Shape(
            "for each reader of a log",
            {
                "reader": "",
                "source": "whose log",
                "kind": "",
                "position": "",
                "behind": "positions, or null: not known",
                "note": "",
            },
        ),
    ),
    "conflicts list": (
        Shape(
            "for each event that met others",
            {
                "stream_id": "",
                "version": "",
                "origin": "",
                "type": "",
                "payload": "",
                "recorded_at": "",
                "against": [_SIDE],
            },
        ),
    ),
    "conflicts show": (
        Shape(
            "for the conflict",
            {"stream_id": "", "version": "", "order": [_SIDE], "states": "by what `--resolver` named"},
        ),
    ),
    "projections list": (Shape("for each projection, and each of its partitions", _PROJECTION),),
    "projections status": _PROJECTION_STATUS,
    "projections check": (
        Shape(
            "for the projection",
            {
                "projection": "",
                "is_complete": "",
                "truncated": "whether events were removed",
                "applied": "",
                "expected": "",
                "first_missing": {"position": "", "stream_id": "", "tenant": _TENANT, "version": ""},
                "first_gone": {"stream_id": "", "version": "", "tenant": _TENANT},
                "after": "a position",
                "through": "a position",
            },
        ),
    ),
    "dead-letters list": (Shape("for each dead letter", _DEAD_LETTER),),
    "dead-letters show": (Shape("for the dead letter", {**_DEAD_LETTER, "payload": "null: it was removed"}),),
    "retention plan": _RETENTION,
    "retention apply": _RETENTION,
    "schema check": (
        Shape(
            "for each way in which events cannot be read",
            {"type": "", "schema_version": "", "stream_id": "", "version": "", "problem": "", "events": "how many"},
        ),
        Shape("at the end", {"summary": {"events": "that were decoded", "of": "", "problems": ""}}),
    ),
    "schema diff": (Shape("for each change", {"verdict": "`compatible` and the like", "what": "", "text": ""}),),
}
