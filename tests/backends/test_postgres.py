"""Postgres keeps the backend contract."""

from __future__ import annotations

import pytest

from backends.conformance import BackendContract, SQLTransactions


class TestPostgres(SQLTransactions, BackendContract):
    @pytest.fixture
    def url(self, emptied_postgres_url: str) -> str:
        return emptied_postgres_url
