"""Tamper evidence: what was stored is sealed, compared with its seals, and proven."""
