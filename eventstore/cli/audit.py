"""`eventstore audit`: questions to the whole journal, and what proves that it is whole."""

from __future__ import annotations

from eventstore.cli.audit_query import query
from eventstore.cli.groups import command_group

audit = command_group("Questions to the whole journal.")

audit.command(short_help="Find events.")(query)
