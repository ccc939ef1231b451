"""`eventstore audit`: questions to the whole journal, and what proves that it is whole."""

from __future__ import annotations

from eventstore.cli.audit_query import query_command
from eventstore.cli.audit_stats import stats_command
from eventstore.cli.audit_trace import trace_command
from eventstore.cli.groups import command_group

audit = command_group("Questions to the whole journal.")

audit.command("query", short_help="Find events.")(query_command)
audit.command("trace", short_help="Show what came of one request.")(trace_command)
audit.command("stats", short_help="Count events: how many, when, of what, by whom.")(stats_command)
