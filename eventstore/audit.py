"""Audit: questions to the whole journal: which events match, what came of one request, and how much there is.

All that a question is made of, and that an answer is, can be had from here.
"""

from __future__ import annotations

from eventstore.auditing.audit_find import find
from eventstore.auditing.audit_totals import totals
from eventstore.auditing.audit_trace import Trace, TraceNode, trace
from eventstore.contract.audit_query import AuditQuery, AuditTotals, Count
from eventstore.contract.event_filter import EventFilter
from eventstore.contract.json_condition import JsonCondition, Operator

__all__ = [
    "AuditQuery",
    "AuditTotals",
    "Count",
    "EventFilter",
    "JsonCondition",
    "Operator",
    "Trace",
    "TraceNode",
    "find",
    "totals",
    "trace",
]
