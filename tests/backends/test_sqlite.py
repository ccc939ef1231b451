"""SQLite keeps the backend contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.conformance import BackendContract, SQLTransactions


class TestSQLite(SQLTransactions, BackendContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/journal.db"
