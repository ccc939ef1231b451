"""`eventstore audit`: questions to the whole journal, and what proves that it is whole."""

from __future__ import annotations

from eventstore.cli.audit_query import query_command
from eventstore.cli.audit_stats import stats_command
from eventstore.cli.audit_trace import trace_command
from eventstore.cli.groups import command_group
from eventstore.cli.sealing import keys, prove, seal
from eventstore.cli.sealing_verify import verify

audit = command_group("Questions to the whole journal.", "audit query sqlite:///bank.db --user ann --from -2h")

audit.command("query", short_help="Find events.")(query_command)
audit.command("trace", short_help="Show what came of one request.")(trace_command)
audit.command("stats", short_help="Count events: how many, when, of what, by whom.")(stats_command)
audit.command(short_help="Seal what was appended.")(seal)
audit.command(short_help="Compare the journal with its seals.")(verify)
audit.command(short_help="Prove that an event was sealed.")(prove)
audit.add_typer(keys, name="keys", short_help="Keys to seal with.")
