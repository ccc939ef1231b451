"""SQLite keeps the backend contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.conformance import BackendContract, SQLTransactions
from tests.actors.journals import new_journal


class TestSQLite(SQLTransactions, BackendContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return new_journal("sqlite", tmp_path)
